"""Decoders as teachers: causal, bidirectional, and bidirectional after masked next-token prediction (MNTP), in one table.

    python benchmarks/decoders.py --decoder MODEL --data FOLDER --output runs/decoders

FOLDER holds `banking77/` and `hwu64/`, each with `train.jsonl` and `test.jsonl` of `text` and `label`. Each way to run the decoder is
scored with its own vectors (raw) and through its own sense dictionary of the default size (hard, soft). Its best, by few-shot accuracy of
its own vectors, is the teacher of two students of its first layers, which see the same batches for as many steps: one learns to choose
senses (SKD), the other regresses vectors (MSE); beside them the same layers as they are.

All that is chosen (that teacher, and the learning rates of MNTP and of each student) is chosen on a fifth of the training texts that is
held out. MNTP sees only the other four fifths, by `examples/mntp.py`; dictionaries and final students are made of all training texts. The
test texts are scored once, at the end. What is finished stays in the output folder, so that a run that was stopped goes on behind it.

What this table can show: that all parts work together on a decoder, and which way each moves the accuracy of that decoder, where it moves
it by more than the deviation of the few-shot draws. What it cannot: how far that holds for others. Whether a decoder gains or loses by
being run bidirectionally without training depends on how it was trained, and so does what MNTP adds. One of a few hundred thousand
parameters that has read children's stories knows nothing of cards and accounts: most of its accuracy comes from which tokens a text has,
and the order of its rows says little about that of a large one's. Where the first layers as they are score above their teacher, students
that come near it prove nothing about distillation. All is one seed, one rank of adapters, one length of training, and intents in English.
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

CAVEAT = (__doc__ or "").split("\n\n")[-1].strip()
MNTP = Path(__file__).parents[1] / "examples" / "mntp.py"
SETS = ("banking77", "hwu64")
OUTPUTS = ("raw", "hard", "soft")
TEACHERS = {"causal": ("mean", "last", "weighted_mean"), "bidirectional": ("mean",), "mntp": ("mean",)}
TITLES = {"causal": "causal", "bidirectional": "bidirectional, untrained", "mntp": "bidirectional, after MNTP"}
STUDENTS = {"cut": "no training", "sense": "SKD", "mse": "MSE"}
CHOSEN_OUTPUT = {"sense": "soft", "mse": "raw"}  # what a student's learning rate is chosen by
BATCH = 32

Scores = dict[str, dict[str, dict[str, float]]]  # of each set and output: few_shot, few_shot_std, full
# A teacher, by whose tokenizer and pooling texts are encoded; what makes its vectors, or a student's; what puts senses in their place.
Loaded = tuple[Teacher, Callable[[Tensor, Tensor], Tensor], SenseEmbeddingModel | None]


class Benchmark:
    """The steps of the comparison; each leaves a file or a folder. `dev`: on the training texts alone, of which a fifth is held out."""

    def __init__(self, options: argparse.Namespace):
        """
        Raises:
            ValueError: the output folder is of a run with other settings.
        """
        self.options, self.output = options, options.output
        self.output.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(options).items() if name not in ("output", "device")}
        file = self.output / "settings.json"
        before = json.loads(file.read_text()) if file.is_file() else settings
        changed = [
            f"{name} {before.get(name)}, not {value}" for name, value in settings.items() if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.output} is of a run with {'; '.join(changed)}: give the same settings, or another --output"
            )
        file.write_text(json.dumps(settings, indent=1))
        self.task: Callable[[str, bool], DistillationTask] = cache(
            lambda name, dev: load_task(name, options.data, dev=dev)
        )

    def texts(self, dev: bool) -> list[str]:
        """The training texts of all sets, each once."""
        return list(dict.fromkeys(text for name in SETS for text in self.task(name, dev).train_texts))

    def adapter(self, learning_rate: float) -> Path:
        """What MNTP has trained on four fifths of the training texts."""
        folder = self.output / f"mntp-{learning_rate:g}"
        if not folder.exists():
            texts, partial = self.output / "mntp.jsonl", folder.with_name(folder.name + ".partial")
            texts.write_text("\n".join(json.dumps({"text": text}) for text in self.texts(dev=True)))
            settings = {
                "model": self.options.decoder,
                "texts": texts,
                "output": partial,
                "learning-rate": learning_rate,
            }
            settings |= {"max-steps": self.options.mntp_steps, "mask-token": self.options.mask_token}
            command = [
                sys.executable,
                str(MNTP),
                *(str(part) for name, value in settings.items() for part in (f"--{name}", value)),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            (partial / "log.txt").write_text(done.stdout)
            os.replace(partial, folder)
        return folder

    def teacher(self, kind: str, pooling: str, learning_rate: float) -> Teacher:
        """The decoder run in one of the `TEACHERS`' ways; the learning rate is that of MNTP."""
        source = self.adapter(learning_rate) if kind == "mntp" else self.options.decoder
        return load_teacher(source, bidirectional=kind != "causal", pooling=pooling, device=self.options.device)

    def senses(self, kind: str, teacher: Teacher, dev: bool) -> SenseEmbeddingModel:
        """A teacher's dictionary, which is the same for all poolings."""
        folder = self.output / f"senses-{kind}{'-dev' * dev}"
        return build_sense_dictionary(teacher, self.texts(dev), output_dir=folder).to(teacher.device)

    def student(self, objective: str, kind: str, teacher: Teacher, learning_rate: float, dev: bool) -> SKDStudentModel:
        """The student of a teacher; for `cut` the learning rate is of no account."""
        folder = self.output / "students" / f"{objective}-{learning_rate:g}{'-dev' * dev}"
        if folder.exists():
            return AutoModel.from_pretrained(folder).to(teacher.device)
        partial = folder.with_name(folder.name + ".partial")
        set_seed(0)
        student = SKDStudentModel.from_teacher(
            teacher, self.senses(kind, teacher, dev), num_hidden_layers=self.options.layers
        )
        if objective != "cut":
            args = SKDTrainingArguments(
                str(partial),
                objective=objective,
                learning_rate=learning_rate,
                num_train_epochs=self.options.epochs,
                per_device_train_batch_size=BATCH,
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
        """Scores a model on the test texts, or on those held out, unless that is done."""
        file = self.output / "scores" / f"{name}{'-dev' * dev}.json"
        if file.exists():
            return json.loads(file.read_text())
        teacher, own_vectors, senses = load()

        def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
            """All outputs beside each other, `[batch, positions, outputs * hidden]`: a pooling of them is that of each."""
            own = own_vectors(input_ids, mask)
            assigned = (
                []
                if senses is None
                else [senses(input_ids, own, mask, output).hidden_states for output in OUTPUTS[1:]]
            )
            return torch.cat([own, *assigned], dim=-1)

        encoder = BatchEncoder(
            forward,
            teacher.tokenizer,
            pad_token_id=teacher.pad_token_id,
            pooling=teacher.pooling,
            max_length=teacher.max_seq_length,
            batch_size=BATCH,
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
                scores[task][output] = dict(
                    evaluation.metric(*(x[:, number * width : (number + 1) * width] for x in vectors))
                )
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".partial").write_text(json.dumps(scores, indent=1))
        os.replace(file.with_suffix(".partial"), file)
        return scores

    def score_teacher(self, kind: str, pooling: str, learning_rate: float, dev: bool) -> Scores:
        """Of a way to run the decoder; through its senses only on the test texts."""

        def load() -> Loaded:
            teacher = self.teacher(kind, pooling, learning_rate)
            return teacher, teacher.last_hidden_state, None if dev else self.senses(kind, teacher, dev)

        return self.score(f"{kind}{f'-{learning_rate:g}' if kind == 'mntp' else ''}-{pooling}", dev, load)

    def score_student(self, objective: str, kind: str, teacher: Teacher, learning_rate: float, dev: bool) -> Scores:
        def load() -> Loaded:
            student = self.student(objective, kind, teacher, learning_rate, dev).eval()
            return (
                teacher,
                lambda input_ids, mask: student(input_ids, mask, assignment="none").last_hidden_state,
                student.senses,
            )

        return self.score(f"student-{objective}-{learning_rate:g}", dev, load)


def few_shot(scores: Scores, output: str = "raw") -> float:
    """What is chosen by: few-shot accuracy, on the average of the sets."""
    return float(np.mean([scores[name][output]["few_shot"] for name in SETS]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", required=True, help="a name or a folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/decoders"))
    parser.add_argument("--mntp-steps", type=int, default=500)
    parser.add_argument(
        "--mntp-learning-rates", nargs="+", type=float, default=[1e-3, 5e-3], help="to choose from; LLM2Vec's is 5e-5"
    )
    parser.add_argument(
        "--mask-token", default="_", help="of MNTP, where the tokenizer has none; <0x5F> is the byte of _"
    )
    parser.add_argument("--layers", type=int, default=2, help="of the students")
    parser.add_argument("--epochs", type=float, default=2, help="of the students")
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=[1e-3, 3e-3], help="of the students, to choose from"
    )
    parser.add_argument("--device")
    options = parser.parse_args()
    benchmark = Benchmark(options)

    # What is chosen, on the training texts.
    rates = options.mntp_learning_rates
    rate = max(rates, key=lambda rate: few_shot(benchmark.score_teacher("mntp", "mean", rate, True)))
    ways = [(kind, pooling) for kind, poolings in TEACHERS.items() for pooling in poolings]
    held_out = {way: few_shot(benchmark.score_teacher(*way, rate, True)) for way in ways}
    kind, pooling = best = max(held_out, key=held_out.get)
    teacher = benchmark.teacher(kind, pooling, rate)
    chosen = {"cut": 0.0}  # which is not trained
    for objective in ("sense", "mse"):
        found = {
            each: benchmark.score_student(objective, kind, teacher, each, True) for each in options.learning_rates
        }
        chosen[objective] = max(found, key=lambda each: few_shot(found[each], CHOSEN_OUTPUT[objective]))

    # The test texts.
    rows = {f"{TITLES[way[0]]}, {way[1]}": benchmark.score_teacher(*way, rate, False) for way in ways}
    for objective, each in chosen.items():
        title = STUDENTS[objective] + ("" if objective == "cut" else f", learning rate {each:g}")
        scores = benchmark.score_student(objective, kind, teacher, each, False)
        rows[f"{options.layers} layers of {TITLES[kind]}, {pooling}: {title}"] = scores

    print(
        f"\n| model | output | {' | '.join(f'{name}, few-shot | all labels' for name in SETS)} |\n|{'---|' * (2 + 2 * len(SETS))}"
    )
    for (title, scores), output in product(rows.items(), OUTPUTS):
        parts = [scores[name][output] for name in SETS]
        cells = [f"{part['few_shot']:.3f} ± {part['few_shot_std']:.3f} | {part['full']:.3f}" for part in parts]
        print(f"| {title} | {output} | {' | '.join(cells)} |")
    print(
        "\nFew-shot accuracy of raw vectors on held-out training texts, by which the teacher of the students was chosen:"
    )
    print(
        "; ".join(
            f"{TITLES[way[0]]}, {way[1]}: {value:.3f}{' (chosen)' * (way == best)}" for way, value in held_out.items()
        )
    )
    print(f"MNTP at a learning rate of {rate:g}: {(benchmark.adapter(rate) / 'log.txt').read_text().splitlines()[-1]}")
    print(f"\n{CAVEAT}")


if __name__ == "__main__":
    main()
