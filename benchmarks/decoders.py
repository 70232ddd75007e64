"""Decoders as teachers: causal, bidirectional, and bidirectional after masked next-token prediction (MNTP).

    python -m benchmarks.decoders --decoder MODEL --data FOLDER --output runs/decoders

FOLDER holds `banking77/` and `hwu64/`, each with `train.jsonl` and `test.jsonl` with the columns `text` and `label`.

- Each way to run the decoder is scored with its own vectors (`raw`) and through its own sense dictionary (`hard`,
  `soft`), which has the default size.
- The best way, by few-shot accuracy of its own vectors, is the teacher of two students. They are the decoder's first
  layers and see the same batches for as many steps. One learns to choose senses (SKD), the other regresses hidden
  states (MSE). The same layers without training are a baseline.
- A fifth of the training texts is held out. The teacher and the learning rates, of MNTP and of each student, are
  chosen there.
- MNTP (`examples/mntp.py`) sees the other four fifths only. Dictionaries and final students are made from all training
  texts. The test texts are scored once, at the end.
- Finished steps stay in the output folder, so that an interrupted run continues after them.

What the table can show: that all parts work together on a decoder, and how each part moves the accuracy of this
decoder, if by more than the few-shot draws deviate.

What it cannot show: how far that holds for other decoders. The way a decoder was trained decides whether it gains or
loses when it runs bidirectionally without training, and what MNTP adds. A decoder of a few hundred thousand parameters
that has read children's stories knows nothing of cards and accounts. Most of its accuracy comes from which tokens a
text has, so the order of its rows says little about a large decoder. If the first layers without training beat their
teacher, students that come near it prove nothing about distillation. All results are one seed, one rank of adapters,
one length of training, and intents in English.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, set_seed

from sensedict_hf import (
    SenseEmbeddingModel,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.models.encoding import BatchEncoder

from .distillation.tasks import DistillationTask, load_task
from .studies import ROOT, Study, results_file, study_parser, write_json

CAVEAT = "\n\n".join((__doc__ or "").split("\n\n")[-2:]).strip()
MNTP = ROOT / "examples" / "mntp.py"
SETS = ("banking77", "hwu64")
OUTPUTS = ("raw", "hard", "soft")
TEACHERS = {"causal": ("mean", "last", "weighted_mean"), "bidirectional": ("mean",), "mntp": ("mean",)}
TITLES = {"causal": "causal", "bidirectional": "bidirectional, untrained", "mntp": "bidirectional, after MNTP"}
STUDENTS = {"cut": "no training", "sense": "SKD", "mse": "MSE"}
CHOSEN_OUTPUT = {"sense": "soft", "mse": "raw"}  # the output by which a student's learning rate is chosen
BATCH_SIZE = 32

# By data set and output: `few_shot`, `few_shot_std` and `full`.
Scores = dict[str, dict[str, dict[str, float]]]
# A teacher, whose tokenizer and pooling are used; a function from token ids and mask to own vectors; a dictionary.
Loaded = tuple[Teacher, Callable[[Tensor, Tensor], Tensor], SenseEmbeddingModel | None]


class Benchmark:
    """The steps of the comparison. Each leaves a file or a folder.

    Methods with the argument `dev` use the training texts only, and a fifth of these is held out for scores.

    Args:
        options: The options of the script.

    Raises:
        ValueError: The output folder belongs to a run with other settings.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.output = options, options.output
        self.output.mkdir(parents=True, exist_ok=True)
        neutral = ("output", "device", "results")
        settings = {name: str(value) for name, value in vars(options).items() if name not in neutral}
        file = self.output / "settings.json"
        before = json.loads(file.read_text()) if file.is_file() else settings
        changed = [
            f"{name} {before.get(name)}, not {value}" for name, value in settings.items() if before.get(name) != value
        ]
        if changed:
            text = f"{self.output} belongs to a run with {'; '.join(changed)}"
            raise ValueError(f"{text}: give the same settings, or another --output")
        write_json(file, settings)
        self.task: Callable[[str, bool], DistillationTask] = cache(
            lambda name, dev: load_task(name, options.data, dev=dev)
        )

    def texts(self, dev: bool) -> list[str]:
        """Return the training texts of both data sets, each text once."""
        return list(dict.fromkeys(text for name in SETS for text in self.task(name, dev).train_texts))

    def adapter(self, learning_rate: float) -> Path:
        """Train an adapter by MNTP on four fifths of the training texts; return its folder."""
        folder = self.output / f"mntp-{learning_rate:g}"
        if not folder.exists():
            texts, partial = self.output / "mntp.jsonl", folder.with_name(folder.name + ".partial")
            texts.write_text("\n".join(json.dumps({"text": text}) for text in self.texts(dev=True)))
            settings = {
                "model": self.options.decoder,
                "texts": texts,
                "output": partial,
                "learning-rate": learning_rate,
                "max-steps": self.options.mntp_steps,
                "mask-token": self.options.mask_token,
            }
            arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
            command = [sys.executable, str(MNTP), *arguments]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            (partial / "log.txt").write_text(done.stdout)
            os.replace(partial, folder)
        return folder

    def teacher(self, kind: str, pooling: str, learning_rate: float) -> Teacher:
        """Load the decoder to run in one way.

        Args:
            kind: A key of `TEACHERS`.
            pooling: How hidden states become the vector of a text.
            learning_rate: The learning rate of MNTP.
        """
        source = self.adapter(learning_rate) if kind == "mntp" else self.options.decoder
        return load_teacher(source, bidirectional=kind != "causal", pooling=pooling, device=self.options.device)

    def senses(self, kind: str, teacher: Teacher, dev: bool) -> SenseEmbeddingModel:
        """Build a teacher's dictionary, which is the same for all poolings."""
        folder = self.output / f"senses-{kind}{'-dev' * dev}"
        return build_sense_dictionary(teacher, self.texts(dev), output_dir=folder).to(teacher.device)

    def student(self, objective: str, kind: str, teacher: Teacher, learning_rate: float, dev: bool) -> SKDStudentModel:
        """Train a student. `cut` as the objective does not train, whatever the learning rate."""
        folder = self.output / "students" / f"{objective}-{learning_rate:g}{'-dev' * dev}"
        if folder.exists():
            return AutoModel.from_pretrained(folder).to(teacher.device)
        partial = folder.with_name(folder.name + ".partial")
        set_seed(0)
        senses = self.senses(kind, teacher, dev)
        student = SKDStudentModel.from_teacher(teacher, senses, list(range(self.options.layers)))
        if objective != "cut":
            args = SKDTrainingArguments(
                str(partial),
                objective=objective,
                learning_rate=learning_rate,
                num_train_epochs=self.options.epochs,
                per_device_train_batch_size=BATCH_SIZE,
                train_sampling_strategy="group_by_length",
                save_strategy="no",
                report_to="none",
                logging_steps=200,
                use_cpu=teacher.device.type == "cpu",
            )
            SKDTrainer(student, args, teacher=teacher, train_dataset=self.texts(dev)).train()
        student.save_pretrained(partial)
        os.replace(partial, folder)
        return student

    def score(self, name: str, dev: bool, load: Callable[[], Loaded]) -> Scores:
        """Score a model on the test texts, or on the held-out ones, unless that is done."""
        file = self.output / "scores" / f"{name}{'-dev' * dev}.json"
        if file.exists():
            return json.loads(file.read_text())
        teacher, own_vectors, senses = load()

        def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
            """Return all outputs, `[batch, positions, outputs * hidden]`. Pooling works on each of them alike."""
            outputs = [own := own_vectors(input_ids, mask)]
            if senses is not None:
                outputs += [senses(input_ids, own, mask, output).hidden_states for output in OUTPUTS[1:]]
            return torch.cat(outputs, dim=-1)

        encoder = BatchEncoder(
            forward,
            teacher.tokenizer,
            pad_token_id=teacher.pad_token_id,
            pooling=teacher.pooling,
            max_length=teacher.max_seq_length,
            batch_size=BATCH_SIZE,
            device=teacher.device,
            prompt=teacher.prompt,
        )
        width = teacher.model.config.hidden_size
        scores: Scores = {}
        for task in SETS:
            evaluation = self.task(task, dev).evaluation
            vectors = [encoder.encode_texts(texts).numpy() for texts in evaluation.inputs]
            scores[task] = {}
            for number, output in enumerate(OUTPUTS[: vectors[0].shape[1] // width]):
                columns = slice(number * width, (number + 1) * width)
                scores[task][output] = dict(evaluation.metric(*(x[:, columns] for x in vectors)))
        write_json(file, scores)
        return scores

    def score_teacher(self, kind: str, pooling: str, learning_rate: float, dev: bool) -> Scores:
        """Score one way to run the decoder; through its senses on the test texts only."""

        def load() -> Loaded:
            teacher = self.teacher(kind, pooling, learning_rate)
            return teacher, teacher.last_hidden_state, None if dev else self.senses(kind, teacher, dev)

        return self.score(f"{kind}{f'-{learning_rate:g}' if kind == 'mntp' else ''}-{pooling}", dev, load)

    def score_student(self, objective: str, kind: str, teacher: Teacher, learning_rate: float, dev: bool) -> Scores:
        """Score a student."""

        def load() -> Loaded:
            student = self.student(objective, kind, teacher, learning_rate, dev).eval()

            def own_vectors(input_ids: Tensor, mask: Tensor) -> Tensor:
                return student(input_ids, mask, assignment="none").last_hidden_state

            return teacher, own_vectors, student.senses

        return self.score(f"student-{objective}-{learning_rate:g}", dev, load)


def few_shot(scores: Scores, output: str = "raw") -> float:
    """Return the mean few-shot accuracy over the data sets, by which everything is chosen."""
    return float(np.mean([scores[name][output]["few_shot"] for name in SETS]))


def print_scores(rows: dict[str, Scores]) -> None:
    """Print the table of test scores."""
    header = ["model", "output", *(f"{name}, {kind}" for name in SETS for kind in ("few-shot", "all labels"))]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for (title, scores), output in product(rows.items(), OUTPUTS):
        parts = [scores[name][output] for name in SETS]
        cells = [f"{part['few_shot']:.3f} ± {part['few_shot_std']:.3f} | {part['full']:.3f}" for part in parts]
        print(f"| {title} | {output} | {' | '.join(cells)} |")


def main() -> None:
    parser = study_parser("decoders", __doc__)
    parser.add_argument("--decoder", required=True, help="name or folder of a decoder")
    parser.add_argument("--data", type=Path, required=True, help="folder of both data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/decoders"), help="folder for all steps")
    parser.add_argument("--mntp-steps", type=int, default=500, help="length of MNTP")
    text = "rates of MNTP to choose from; LLM2Vec has 5e-5"
    parser.add_argument("--mntp-learning-rates", nargs="+", type=float, default=[1e-3, 5e-3], help=text)
    parser.add_argument("--mask-token", default="_", help="mask of MNTP if the tokenizer has none; a byte is <0x5F>")
    parser.add_argument("--layers", type=int, default=2, help="layers of the students")
    parser.add_argument("--epochs", type=float, default=2, help="epochs of the students")
    text = "rates of the students to choose from"
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3, 3e-3], help=text)
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    options = parser.parse_args()
    benchmark = Benchmark(options)

    # Choose on the training texts.
    rate = max(
        options.mntp_learning_rates, key=lambda rate: few_shot(benchmark.score_teacher("mntp", "mean", rate, True))
    )
    ways = [(kind, pooling) for kind, poolings in TEACHERS.items() for pooling in poolings]
    held_out = {way: few_shot(benchmark.score_teacher(*way, rate, True)) for way in ways}
    kind, pooling = best = max(held_out, key=held_out.get)
    teacher = benchmark.teacher(kind, pooling, rate)
    chosen = {"cut": 0.0}  # no training, so no learning rate
    for objective, output in CHOSEN_OUTPUT.items():
        found = {
            each: benchmark.score_student(objective, kind, teacher, each, True) for each in options.learning_rates
        }
        chosen[objective] = max(found, key=lambda each: few_shot(found[each], output))  # noqa: B023

    # Score on the test texts.
    rows = {f"{TITLES[way[0]]}, {way[1]}": benchmark.score_teacher(*way, rate, False) for way in ways}
    for objective, each in chosen.items():
        title = STUDENTS[objective] + ("" if objective == "cut" else f", learning rate {each:g}")
        scores = benchmark.score_student(objective, kind, teacher, each, False)
        rows[f"{options.layers} layers of {TITLES[kind]}, {pooling}: {title}"] = scores
    print_scores(rows)
    study = Study(
        results_file(options.results, "decoders"),
        teacher.device.type,
        "python -m benchmarks.decoders --decoder MODEL --data FOLDER",
    )
    for title, scores in rows.items():
        study.record(f"{Path(options.decoder).name}, {title}", scores)

    print("\nFew-shot accuracy of raw vectors on held-out training texts, by which the teacher was chosen:")
    for way, value in held_out.items():
        print(f"- {TITLES[way[0]]}, {way[1]}: {value:.3f}{' (chosen)' * (way == best)}")
    log = (benchmark.adapter(rate) / "log.txt").read_text()
    print(f"\nMNTP at a learning rate of {rate:g}: {log.splitlines()[-1]}\n\n{CAVEAT}")


if __name__ == "__main__":
    main()
