"""What senses a token has, and in which contexts they are found."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .corpus import Texts, check_max_length, tokenize_corpus
from .gathering import gather_samples, plan_windows
from .modeling_sense_embedding import SenseEmbeddingModel
from .modeling_skd_student import check_teacher
from .sampling import SamplingPlan
from .teachers import Teacher
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
        plan = SamplingPlan(counts, np.concatenate([[0], np.cumsum(counts)]), positions, slots, slots.astype(np.uint64))
        windows = plan_windows(corpus, plan, check_max_length(None, teacher.max_window), Path(folder))
        layer = senses.config.layer
        gather_samples(teacher, corpus, plan, windows, Path(folder), layer=layer, batch_size=batch_size, dtype=torch.float32)
        vectors = TensorFile(Path(folder, "samples.safetensors"))["samples"].clone()
        text = np.searchsorted(corpus.offsets, positions, side="right") - 1
        begin = np.maximum(positions - CONTEXT_TOKENS, corpus.offsets[text] + corpus.prefix)
        end = np.minimum(positions + 1 + CONTEXT_TOKENS, corpus.offsets[text + 1] - corpus.suffix)
        contexts = [
            _mark(tokenizer, corpus.input_ids[a:b], p - a)
            for a, p, b in zip(np.minimum(begin, positions), positions, np.maximum(end, positions + 1))
        ]
    chosen = senses(torch.full((1, len(positions)), token_id).to(senses.device), vectors[None].to(senses.device), assignment="hard")
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
