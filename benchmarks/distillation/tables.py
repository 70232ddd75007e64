"""Rows of the comparison of ways to distil."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .tasks import CLASSIFICATION, NAMES

OUTPUTS = ("raw", "hard", "soft", "half")  # half: soft senses and the model's own vectors, half of each
MAIN_SCORES = {name: "few_shot" for name in CLASSIFICATION} | {
    "stsb": "spearman",
    "xquad_retrieval": "ndcg_at_10",
    "wnut17": "f1",
}


def header(*titles: str, tasks: Sequence[str] = ()) -> str:
    columns = [*titles, "average", "few-shot", "all labels", *tasks]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def main_and_full(output: str, scores: dict[str, dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """The main score of each task, and of those of classification what all labels give."""
    names = [name for name in NAMES if name in scores]
    return (
        {name: scores[name][output][MAIN_SCORES[name]] for name in names},
        {name: scores[name][output]["full"] for name in names if name in CLASSIFICATION},
    )


def averages(output: str, scores: dict[str, dict[str, Any]]) -> list[float]:
    """Of all tasks, of few labels and of all labels."""
    main, full = main_and_full(output, scores)
    return [
        float(np.mean(values)) for values in (list(main.values()), [main[name] for name in full], list(full.values()))
    ]


def print_row(title: str, output: str, scores: dict[str, dict[str, Any]]) -> None:
    main, full = main_and_full(output, scores)
    cells = [f"{main[name]:.3f}" + (f" / {full[name]:.3f}" if name in full else "") for name in main]
    print(
        f"| {title} | {output} | {' | '.join([*(f'{value:.4f}' for value in averages(output, scores)), *cells])} |",
        flush=True,
    )


def print_seeds(title: str, layers: int, runs: list[dict[str, dict[str, Any]]]) -> None:
    """Means over seeds, and the standard deviation of the average of all tasks."""
    for output in OUTPUTS:
        each = np.array([averages(output, scores) for scores in runs])
        mean, few_shot, full = each.mean(0)
        print(
            f"| {title} | {layers} | {output} | {len(runs)} | {mean:.4f} ± {each[:, 0].std(ddof=1):.4f} | {few_shot:.4f} | {full:.4f} |"
        )
