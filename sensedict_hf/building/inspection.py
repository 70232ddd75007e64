"""Show which senses a token has, and in which contexts the teacher picks each of them."""

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..data import Texts
from ..models.arguments import check_integer, check_kind, check_path
from ..models.loading import check_dictionary
from ..models.matching import check_teacher, window_length
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.teachers import Teacher, load_teacher
from .corpus import tokenize_corpus
from .gathering import teacher_vectors
from .windows import TokenizedCorpus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTEXT_TOKENS = 8  # shown on each side of an occurrence


@dataclass
class SenseReport:
    """One sense of a token.

    Attributes:
        sense_id: Index among the senses of the token.
        usage: How often the sense was the nearest one in the corpus of the dictionary.
        share: Its usage as a share of the usage of all senses of the token, from 0 to 1.
        contexts: Passages in which the teacher picks the sense, the one with the nearest vector first. The token
            stands in square brackets. Empty without occurrences.
        found: Number of the given occurrences at which the teacher picks the sense.
    """

    sense_id: int
    usage: int
    share: float
    contexts: list[str] = field(default_factory=list)
    found: int = 0


@dataclass
class Occurrences:
    """The occurrences of a token in texts.

    Attributes:
        token_id: The token.
        total: Number of all occurrences in the texts. The other fields are about `n` of them: all, or a random sample.
        vectors: Hidden states of the teacher, `[n, hidden]`, float32.
        sense_ids: The sense that the teacher picks, `[n]`, int64.
        distances: Euclidean distance between the hidden state and that sense, `[n]`, float32.
        contexts: The passage around each occurrence; the token stands in square brackets.
    """

    token_id: int
    total: int
    vectors: torch.Tensor
    sense_ids: np.ndarray
    distances: np.ndarray
    contexts: list[str]


def find_occurrences(
    senses: SenseEmbeddingModel,
    teacher: str | os.PathLike[str] | torch.nn.Module | Teacher,
    token: int | str,
    texts: Texts,
    *,
    text_column: str = "text",
    max_occurrences: int = 1000,
    batch_size: int = 32,
) -> Occurrences:
    """Find a token in texts, and the sense that the teacher picks at each occurrence.

    The teacher reads only the windows of text that contain the token.

    Args:
        senses: The dictionary.
        teacher: The teacher that the dictionary was built from: a name, a folder, a model or a :class:`Teacher`.
        token: The token: its id, its spelling in the vocabulary, or a word that is a single token.
        texts: A list or iterable of strings, or a dataset with a column of texts.
        text_column: Column that holds the texts, if `texts` is a dataset.
        max_occurrences: The most occurrences to look at. If there are more, a random sample is drawn, always the same.
        batch_size: Windows of text in a forward pass of the teacher.

    Returns:
        The occurrences, in the order of the texts.

    Raises:
        ValueError: The dictionary was not built from the teacher.
        ValueError: The token has no senses, or does not occur in the texts.

    Example:
        >>> from sensedict_hf import find_occurrences
        >>> occurrences = find_occurrences(senses, teacher, "bank", texts)
        >>> len(occurrences.contexts) == occurrences.total
        True
        >>> "[bank]" in occurrences.contexts[0]
        True
    """
    teacher = load_teacher(teacher)
    check_teacher(senses, teacher)
    max_occurrences = check_integer("max_occurrences", max_occurrences, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    token_id = senses.token_id(token)
    check_has_senses(senses, token)
    is_own = senses.config.teacher_tokenizer_fingerprint is None
    tokenizer = teacher.tokenizer if is_own else senses.tokenizer
    with TemporaryDirectory(prefix="sensedict-") as path:
        folder = Path(path)

        # Find the token in the texts.
        corpus = tokenize_corpus(
            texts,
            tokenizer,
            folder,
            text_column=text_column,
            teacher_tokenizer=None if is_own else teacher.tokenizer,
            prompt=teacher.prompt,
        ).keyed_by(senses.config.key)
        positions = np.flatnonzero((corpus.input_ids == token_id) & corpus.has_vectors(0, len(corpus.input_ids)))
        total = len(positions)
        if total == 0:
            raise ValueError(f"the token {token!r} does not occur in the texts: give other texts")
        if total > max_occurrences:
            positions = np.sort(np.random.default_rng(0).choice(positions, max_occurrences, replace=False))

        # Run the teacher over the texts that hold it.
        found, parts = [], []
        batches = teacher_vectors(
            teacher,
            corpus,
            positions,
            0,
            len(corpus),
            layer=senses.config.layer,
            max_length=window_length(senses, teacher.max_window),
            batch_size=batch_size,
        )
        with tqdm(total=len(positions), desc="Encoding occurrences", unit=" occurrences", leave=False) as progress:
            for places, vectors in batches:
                found.append(places)
                parts.append(vectors.cpu())
                progress.update(len(places))
        vectors = torch.cat(parts)[np.concatenate(found).argsort()]
        contexts = _contexts(tokenizer, corpus, positions)

    # Let the dictionary pick the senses.
    token_ids = torch.full((len(positions),), token_id, device=senses.device)
    sense_ids = senses.posterior(token_ids, vectors.to(senses.device))[0][:, 0]
    nearest, sense_ids = senses.look_up(token_ids, sense_ids).cpu(), sense_ids.cpu()
    distances = (vectors - nearest).norm(dim=-1).numpy()
    return Occurrences(token_id, total, vectors, sense_ids.numpy(), distances, contexts)


def _contexts(tokenizer: PreTrainedTokenizerBase, corpus: TokenizedCorpus, positions: np.ndarray) -> list[str]:
    """Return the passages around the given positions, without the special tokens around a text."""
    text = np.searchsorted(corpus.offsets, positions, side="right") - 1
    begin = np.maximum(positions - CONTEXT_TOKENS, corpus.offsets[text] + corpus.prefix)
    end = np.minimum(positions + 1 + CONTEXT_TOKENS, corpus.offsets[text + 1] - corpus.suffix)
    # A special token itself is shown too.
    begin, end = np.minimum(begin, positions), np.maximum(end, positions + 1)
    return [_mark(tokenizer, corpus.input_ids[a:b], p - a) for a, p, b in zip(begin, positions, end)]


def _mark(tokenizer: PreTrainedTokenizerBase, input_ids: np.ndarray, place: int) -> str:
    """Return the decoded passage, with the token at index `place` in square brackets."""

    def decode(ids: np.ndarray) -> str:
        return str(tokenizer.decode(ids))

    # Decode from the start each time, since a piece of a word is decoded differently alone.
    before, until, whole = (decode(input_ids[:end]) for end in (place, place + 1, len(input_ids)))
    token = until[len(before) :] if until.startswith(before) else decode(input_ids[place : place + 1])
    after = whole[len(until) :] if whole.startswith(until) else " " + decode(input_ids[place + 1 :])
    space = " " if token.startswith(" ") and before else ""
    return f"{before}{space}[{token.strip()}]{after}"


def report_senses(
    senses: SenseEmbeddingModel, token: int | str, occurrences: Occurrences | None = None, *, max_contexts: int = 3
) -> list[SenseReport]:
    """List the senses of a token, the most used one first.

    Args:
        senses: The dictionary.
        token: The token: its id, its spelling in the vocabulary, or a word that is a single token.
        occurrences: Occurrences of the token from :func:`find_occurrences`. With them each sense gets contexts.
        max_contexts: The most contexts for a sense.

    Returns:
        One report for each sense.

    Raises:
        ValueError: The token has no senses.

    Example:
        >>> from sensedict_hf import find_occurrences, report_senses
        >>> occurrences = find_occurrences(senses, teacher, "bank", texts)
        >>> reports = report_senses(senses, "bank", occurrences, max_contexts=1)
        >>> len(reports) == len(senses.senses_of("bank"))
        True
        >>> sum(report.found for report in reports) == occurrences.total
        True
    """
    check_dictionary(senses)
    max_contexts = check_integer("max_contexts", max_contexts, 0)
    if occurrences is not None:
        _check_occurrences(senses, token, occurrences)
    check_has_senses(senses, token)
    usage = senses.usage[senses.rows_of(token)].tolist()
    total = max(sum(usage), 1)
    reports = [SenseReport(sense_id, used, used / total) for sense_id, used in enumerate(usage)]
    if occurrences is not None:
        for report in reports:
            rows = _nearest(occurrences, report.sense_id)
            report.contexts, report.found = [occurrences.contexts[row] for row in rows[:max_contexts]], len(rows)
    return sorted(reports, key=lambda report: -report.usage)


def _nearest(occurrences: Occurrences, sense_id: int) -> np.ndarray:
    """Return the indices of the occurrences of a sense, the one with the nearest vector first."""
    rows = np.flatnonzero(occurrences.sense_ids == sense_id)
    return rows[np.argsort(occurrences.distances[rows], kind="stable")]


def _check_occurrences(senses: SenseEmbeddingModel, token: int | str, occurrences: Occurrences) -> None:
    """Raise a ValueError if these are not the occurrences of a token."""
    check_kind("occurrences", occurrences, Occurrences, "what find_occurrences returns")
    if occurrences.token_id != senses.token_id(token):
        raise ValueError(
            f"the occurrences are of the token with id {occurrences.token_id}, not of {token!r}: pass what "
            f"find_occurrences returns for {token!r}"
        )


def check_has_senses(senses: SenseEmbeddingModel, token: int | str) -> None:
    """Raise a ValueError if a token has no senses."""
    rows = senses.rows_of(token)
    if rows.start == rows.stop:
        raise ValueError(
            f"the token {token!r} has no senses, as it did not occur in the corpus of the dictionary: choose another "
            "one"
        )


def check_image(path: str | os.PathLike[str]) -> None:
    """Check that an image can be written.

    Args:
        path: File of the image.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: It cannot write images with this ending.
    """
    check_path("path", path)
    try:
        from matplotlib import backend_bases
    except ImportError as error:
        raise ImportError("plot_senses needs matplotlib: pip install matplotlib") from error
    kinds = backend_bases.FigureCanvasBase.get_supported_filetypes()
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending and ending not in kinds:  # without an ending matplotlib adds its own
        raise ValueError(f"{path}: images cannot end in .{ending}; choose one of {', '.join(sorted(kinds))}")


def plot_senses(
    senses: SenseEmbeddingModel,
    occurrences: Mapping[str, Occurrences],
    path: str | os.PathLike[str],
    *,
    annotate: int = 2,
) -> None:
    """Draw the hidden states of tokens and their senses into an image.

    Each token has a panel. It shows the hidden states on their two principal axes, coloured by sense, and the senses
    as stars. Needs matplotlib.

    Args:
        senses: The dictionary.
        occurrences: For each token its occurrences from :func:`find_occurrences`.
        path: File of the image. Its ending decides the format, as in matplotlib.
        annotate: How many contexts of each sense are written below the panel.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no token to draw, or one has fewer than two occurrences.
        ValueError: matplotlib cannot write images with this ending.

    Example:
        >>> from sensedict_hf import find_occurrences, plot_senses
        >>> occurrences = {word: find_occurrences(senses, teacher, word, texts) for word in ("bank", "bark")}
        >>> plot_senses(senses, occurrences, "senses.png")
    """
    check_image(path)
    # Imported here: only drawing needs them. A Figure of its own leaves the caller's backend and figures alone.
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA

    check_dictionary(senses)
    annotate = check_integer("annotate", annotate, 0)
    check_kind("occurrences", occurrences, Mapping, "what find_occurrences returns, by token")
    for token, found in occurrences.items():
        _check_occurrences(senses, token, found)
    if not occurrences:
        raise ValueError("no occurrences: give at least one token with what find_occurrences returns for it")
    few = [token for token, found in occurrences.items() if len(found.vectors) < 2]
    if few:
        raise ValueError(
            f"{', '.join(map(str, few))} occurs only once: give texts with two or more occurrences to draw"
        )

    figure = Figure(figsize=(7 * len(occurrences), 5))
    axes = figure.subplots(1, len(occurrences), squeeze=False)
    for axis, (token, found) in zip(axes[0], occurrences.items()):
        # Project hidden states and senses on the same two axes.
        own = senses.senses_of(token).float().cpu().numpy()
        projection = PCA(2, random_state=0).fit(found.vectors.numpy())
        points, stars = projection.transform(found.vectors.numpy()), projection.transform(own)

        # Draw both, in the colours of the senses.
        used = np.unique(found.sense_ids)
        colors = colormaps["tab10"](np.arange(len(own)) % 10)
        axis.scatter(*points.T, c=colors[found.sense_ids], s=26, alpha=0.75, linewidths=0)
        axis.scatter(*stars[used].T, c=colors[used], marker="*", s=330, edgecolors="black", linewidths=1)
        _annotate(axis, found, colors, used, annotate)
        axis.set_title(f"“{token}”: {len(points)} contexts, {len(used)} senses", fontsize=13)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.margins(0.1)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _annotate(axis: "Axes", found: Occurrences, colors: np.ndarray, used: np.ndarray, count: int) -> None:
    """Write the contexts of each sense below a panel, in the colour of the sense."""
    lines = [
        (colors[sense_id], textwrap.shorten(found.contexts[row], 88, placeholder=" ..."))
        for sense_id in used
        for row in _nearest(found, sense_id)[:count]
    ]
    for number, (color, line) in enumerate(lines):
        axis.text(0.0, -0.05 - 0.055 * number, line, transform=axis.transAxes, fontsize=8.5, color=color, va="top")
