"""The tables of the comparison."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .tasks import CLASSIFICATION, NAMES

OUTPUTS = ("raw", "hard", "soft", "half")  # half: the mean of soft senses and the model's own vectors
# The score of each task that counts for averages and choices.
MAIN_SCORES = {name: "few_shot" for name in CLASSIFICATION} | {
    "stsb": "spearman",
    "xquad_retrieval": "ndcg_at_10",
    "wnut17": "f1",
}


def header(*titles: str, tasks: Sequence[str] = ()) -> str:
    """Return the first two lines of a table: columns with these titles, averages, and tasks."""
    columns = [*titles, "average", "few-shot", "all labels", *tasks]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def main_and_full(output: str, scores: dict[str, dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the main score of each task, and the accuracy with all labels of each classification task."""
    names = [name for name in NAMES if name in scores]
    return (
        {name: scores[name][output][MAIN_SCORES[name]] for name in names},
        {name: scores[name][output]["full"] for name in names if name in CLASSIFICATION},
    )


def averages(output: str, scores: dict[str, dict[str, Any]]) -> list[float]:
    """Return the averages over all tasks, of few-shot accuracies, and of accuracies with all labels."""
    main, full = main_and_full(output, scores)
    groups = (list(main.values()), [main[name] for name in full], list(full.values()))
    return [float(np.mean(values)) for values in groups]


def print_row(title: str, output: str, scores: dict[str, dict[str, Any]]) -> None:
    """Print the row of a model with one output."""
    main, full = main_and_full(output, scores)
    cells = [f"{value:.4f}" for value in averages(output, scores)]
    cells += [f"{main[name]:.3f}" + (f" / {full[name]:.3f}" if name in full else "") for name in main]
    print(f"| {title} | {output} | {' | '.join(cells)} |", flush=True)


def print_seeds(title: str, layers: str, runs: list[dict[str, dict[str, Any]]]) -> None:
    """Print means over seeds, and the standard deviation of the average over all tasks."""
    for output in OUTPUTS:
        each = np.array([averages(output, scores) for scores in runs])
        mean, few_shot, full = each.mean(0)
        spread = f"{mean:.4f} ± {each[:, 0].std(ddof=1):.4f}"
        print(f"| {title} | {layers} | {output} | {len(runs)} | {spread} | {few_shot:.4f} | {full:.4f} |")
