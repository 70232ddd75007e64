"""Sizes and speeds of the models that are compared."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..studies import shortest_times
from .comparison import Comparison
from .tasks import distill_model2vec, model2vec_encoders

ROUNDS = 3


def print_costs(comparison: Comparison) -> None:
    """Print and record sizes and speeds.

    Speed is measured on the test texts of uci_sentiment. The models take turns, and the best round counts.
    """
    # The models.
    teacher, options = comparison.teacher, comparison.options
    senses = comparison.senses(comparison.names, False, "l2")
    static = distill_model2vec(options.teacher, comparison.output / "model2vec")
    encoders: dict[str, Callable[[list[str]], Any]] = {
        "teacher": teacher.encode,
        "model2vec": model2vec_encoders(static)[0],
    }
    parameters = {"teacher": teacher.model.num_parameters(), "model2vec": static.embedding.size}
    for layers in options.layers:
        student = comparison.new_student(senses, layers).eval()
        student.config.residual = 0.5
        for output, assignment in {"raw": "none", "hard": "hard", "half": "soft"}.items():
            name = f"layers {layers}, {output}"
            encoders[name] = partial(student.encode, assignment=assignment, show_progress_bar=False)
            parameters[name] = student.num_parameters()

    # Their speeds.
    texts = comparison.task("uci_sentiment", False).evaluation.inputs[1]
    seconds = shortest_times({name: partial(encode, texts) for name, encode in encoders.items()}, ROUNDS)
    speeds = {name: len(texts) / needed for name, needed in seconds.items()}

    # The table.
    megabytes = senses.table.nbytes / 1e6
    print("| model | parameters (millions) | dictionary MB | texts/s | teacher = 1 |\n|---|---|---|---|---|")
    for name, speed in speeds.items():
        dictionary = f"{megabytes:.1f}" if name.endswith(("hard", "half")) else "-"
        cells = [name, f"{parameters[name] / 1e6:.1f}", dictionary, f"{speed:.0f}"]
        print(f"| {' | '.join(cells)} | {speed / speeds['teacher']:.2f} |")
    costs = {name: {"parameters": parameters[name], "texts_per_second": speed} for name, speed in speeds.items()}
    comparison.study.record("costs", costs | {"dictionary_mb": megabytes, "threads": torch.get_num_threads()})
