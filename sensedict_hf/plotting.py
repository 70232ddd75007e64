"""Pictures of a token's contexts falling into senses; needs matplotlib (`pip install sensedict_hf[demo]`)."""

import os
import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA

from .inspection import Occurrences
from .modeling_sense_embedding import SenseEmbeddingModel


def plot_senses(senses: SenseEmbeddingModel, occurrences: dict[str, Occurrences], path: str | os.PathLike, *, annotate: int = 2) -> None:
    """Draws, for each token, its contextual vectors on their two principal axes, coloured by sense, with the senses as stars.

    Args:
        occurrences: token -> where it occurs. path: of the image. annotate: how many contexts are written out for a sense.
    """
    figure, axes = plt.subplots(1, len(occurrences), figsize=(7 * len(occurrences), 5), squeeze=False)
    for axis, (token, found) in zip(axes[0], occurrences.items()):
        centres = senses.senses_of(token).float().cpu().numpy()
        projection = PCA(2, random_state=0).fit(found.vectors.numpy())
        points, stars = projection.transform(found.vectors.numpy()), projection.transform(centres)
        used = np.unique(found.sense_ids)
        colors = plt.get_cmap("tab10")(np.arange(len(centres)) % 10)
        axis.scatter(*points.T, c=colors[found.sense_ids], s=26, alpha=0.75, linewidths=0)
        axis.scatter(*stars[used].T, c=colors[used], marker="*", s=330, edgecolors="black", linewidths=1)
        _annotate(axis, points, found, colors, used, annotate)
        axis.set_title(f"“{token}”: {len(points)} contexts, {len(used)} senses", fontsize=13)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.margins(0.1)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _annotate(axis, points: np.ndarray, found: Occurrences, colors: np.ndarray, used: Sequence[int], count: int) -> None:
    """Writes the passages nearest to each sense beside the picture, in the colour of the sense."""
    lines = []
    for sense in used:
        rows = np.flatnonzero(found.sense_ids == sense)
        for row in rows[np.argsort(found.distances[rows])][:count]:
            lines.append((colors[sense], textwrap.shorten(found.contexts[row], 88, placeholder=" ...")))
    for number, (color, line) in enumerate(lines):
        axis.text(0.0, -0.05 - 0.055 * number, line, transform=axis.transAxes, fontsize=8.5, color=color, va="top")
