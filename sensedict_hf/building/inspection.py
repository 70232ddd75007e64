"""What senses a token has, and in which contexts they are found."""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA
from transformers import PreTrainedTokenizerBase

from ..data import Texts
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.teachers import Teacher, check_teacher
from ..models.tokenizers import check_max_length
from .corpus import tokenize_corpus
from .gathering import gather_samples, plan_windows
from .sampling import SamplingPlan
from .tensor_files import TensorFile

CONTEXT_TOKENS = 8


@dataclass
class SenseReport:
    """One sense of a token.

    Attributes:
        sense_id: its index among the token's own. usage: how often it was the nearest one in the corpus of the dictionary; share: the
            same as a share of all occurrences of the token.
        contexts: passages in which it is chosen, the closest vectors first; found: how many there are.
    """

    sense_id: int
    usage: int
    share: float
    contexts: list[str] = field(default_factory=list)
    found: int = 0


@dataclass
class Occurrences:
    """Where a token stands in texts.

    Attributes:
        total: all occurrences, of which n, drawn at random, were looked at.
        vectors: `[n, hidden]`, the teacher's. sense_ids: `[n]`. distances: `[n]`, to the chosen sense. contexts: `n` passages.
    """

    total: int
    vectors: torch.Tensor
    sense_ids: np.ndarray
    distances: np.ndarray
    contexts: list[str]


def find_occurrences(
    senses: SenseEmbeddingModel,
    teacher: Teacher,
    token: int | str,
    texts: Texts,
    *,
    text_column: str = "text",
    max_occurrences: int = 1000,
    batch_size: int = 32,
) -> Occurrences:
    """Finds a token in texts and the sense that the teacher picks for it; only texts that hold it are run through the teacher.

    Raises:
        ValueError: the token has no senses or does not occur, or the dictionary does not fit the teacher.
    """
    check_teacher(senses, teacher)
    token_id, vocab_size = senses.token_id(token), senses.config.vocab_size
    with TemporaryDirectory(prefix="sensedict-") as folder:
        own = senses.config.teacher_tokenizer_fingerprint is None
        tokenizer, teacher_tokenizer = (teacher.tokenizer, None) if own else (senses.tokenizer, teacher.tokenizer)
        settings = {"text_column": text_column, "teacher_tokenizer": teacher_tokenizer, "prompt": teacher.prompt}
        corpus = tokenize_corpus(texts, tokenizer, folder, **settings)
        positions = np.flatnonzero(corpus.input_ids == token_id)
        total = len(positions)
        if total > max_occurrences:
            positions = np.sort(np.random.default_rng(0).choice(positions, max_occurrences, replace=False))
        if not total:
            raise ValueError(f"the token {token!r} does not occur in the texts given")
        counts = np.zeros(vocab_size, dtype=np.int64)
        counts[token_id] = len(positions)
        slots = np.arange(len(positions))
        plan = SamplingPlan(
            counts, np.concatenate([[0], np.cumsum(counts)]), positions, slots, slots.astype(np.uint64)
        )
        windows = plan_windows(corpus, plan, check_max_length(None, teacher.max_window), Path(folder))
        layer = senses.config.layer
        gather_samples(
            teacher, corpus, plan, windows, Path(folder), layer=layer, batch_size=batch_size, dtype=torch.float32
        )
        vectors = TensorFile(Path(folder, "samples.safetensors"))["samples"].clone()
        text = np.searchsorted(corpus.offsets, positions, side="right") - 1
        begin = np.maximum(positions - CONTEXT_TOKENS, corpus.offsets[text] + corpus.prefix)
        end = np.minimum(positions + 1 + CONTEXT_TOKENS, corpus.offsets[text + 1] - corpus.suffix)
        contexts = [
            _mark(tokenizer, corpus.input_ids[a:b], p - a)
            for a, p, b in zip(np.minimum(begin, positions), positions, np.maximum(end, positions + 1))
        ]
    chosen = senses(
        torch.full((1, len(positions)), token_id).to(senses.device), vectors[None].to(senses.device), assignment="hard"
    )
    sense_ids, nearest = chosen.sense_ids[0].cpu(), chosen.hidden_states[0].cpu()
    if sense_ids[0] < 0:
        raise ValueError(f"the token {token!r} has no senses: it did not occur in the corpus of the dictionary")
    return Occurrences(total, vectors, sense_ids.numpy(), (vectors - nearest).norm(dim=-1).numpy(), contexts)


def _mark(tokenizer: PreTrainedTokenizerBase, input_ids: np.ndarray, place: int) -> str:
    """The passage with the token in brackets. Decoded from the start each time, since pieces of words decode differently alone."""
    before, until, whole = (tokenizer.decode(input_ids[:end]) for end in (place, place + 1, len(input_ids)))
    token = until[len(before) :] if until.startswith(before) else tokenizer.decode(input_ids[place : place + 1])
    after = whole[len(until) :] if whole.startswith(until) else " " + tokenizer.decode(input_ids[place + 1 :])
    space = " " if token.startswith(" ") and before else ""
    return f"{before}{space}[{token.strip()}]{after}"


def report_senses(
    senses: SenseEmbeddingModel, token: int | str, occurrences: Occurrences | None = None, *, max_contexts: int = 3
) -> list[SenseReport]:
    """The senses of a token, the most used first, with passages if occurrences are given.

    Raises:
        ValueError: the token has no senses.
    """
    usage = senses.usage[senses.rows_of(token)].tolist()
    if not usage:
        raise ValueError(f"the token {token!r} has no senses: it did not occur in the corpus of the dictionary")
    total = max(sum(usage), 1)
    reports = [SenseReport(number, used, used / total) for number, used in enumerate(usage)]
    if occurrences is not None:
        for report in reports:
            rows = np.flatnonzero(occurrences.sense_ids == report.sense_id)
            nearest = rows[np.argsort(occurrences.distances[rows], kind="stable")][:max_contexts]
            report.contexts, report.found = [occurrences.contexts[row] for row in nearest], len(rows)
    return sorted(reports, key=lambda report: -report.usage)


matplotlib.use("Agg")


def plot_senses(
    senses: SenseEmbeddingModel, occurrences: dict[str, Occurrences], path: str | os.PathLike, *, annotate: int = 2
) -> None:
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


def _annotate(
    axis, points: np.ndarray, found: Occurrences, colors: np.ndarray, used: Sequence[int], count: int
) -> None:
    """Writes the passages nearest to each sense beside the picture, in the colour of the sense."""
    lines = []
    for sense in used:
        rows = np.flatnonzero(found.sense_ids == sense)
        for row in rows[np.argsort(found.distances[rows])][:count]:
            lines.append((colors[sense], textwrap.shorten(found.contexts[row], 88, placeholder=" ...")))
    for number, (color, line) in enumerate(lines):
        axis.text(0.0, -0.05 - 0.055 * number, line, transform=axis.transAxes, fontsize=8.5, color=color, va="top")
