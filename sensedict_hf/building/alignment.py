"""Align the tokens of two tokenizers by the characters that they cover.

A dictionary can be built for another tokenizer than the teacher's. Each of its tokens then takes its vector from the
teacher's tokens: a token aligns with every token of the teacher that shares a character with it, and its vector is the
mean of theirs. White space does not count, because tokenizers disagree whether a space belongs to the word after it. A
token of nothing but white space therefore aligns with nothing, and gets no senses. Special tokens cover no characters.
They align by their order: the first special token before the text with the teacher's first, and so on, as far as both
tokenizers have them.

For example, a tokenizer splits "unreadable" into "un", "readab", "le", the teacher's into "unread", "able". Then "un"
aligns with "unread", "readab" with both, "le" with "able": `sizes` is `[1, 2, 1]` and `places` is `[0, 0, 1, 1]`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..models.tokenization import special_token_counts, tokenize


@dataclass
class AlignedText:
    """A text in the tokens of two tokenizers. A place is the index of a token in the text, special tokens included.

    Attributes:
        input_ids: Token ids of the dictionary's tokenizer, `[tokens]`, int32, special tokens included.
        teacher_ids: Token ids of the teacher's tokenizer, `[teacher_tokens]`, int32, special tokens included.
        sizes: How many of the teacher's tokens each token aligns with, `[tokens]`; 0 if none.
        places: The places of these teacher's tokens in `teacher_ids`, `[sizes.sum()]`, int32, token by token, and
            ascending for each token.
        unaligned: Number of tokens that align with none, special tokens not counted.
        dropped: Number of tokens that truncation has cut off.
    """

    input_ids: np.ndarray
    teacher_ids: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    unaligned: int
    dropped: int


def align_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    truncate_at: int | None = None,
) -> Iterator[AlignedText]:
    """Tokenize texts with both tokenizers and align the tokens.

    Args:
        texts: The texts.
        tokenizer: The tokenizer of the dictionary; a fast one.
        teacher_tokenizer: The tokenizer of the teacher; a fast one.
        truncate_at: Length in the teacher's tokens, special tokens included, at which both are cut. None: no
            truncation.

    Yields:
        The tokens of each text, and how they align.
    """
    prefix, suffix = special_token_counts(tokenizer)
    teacher_prefix, teacher_suffix = special_token_counts(teacher_tokenizer)
    before, after = min(prefix, teacher_prefix), min(suffix, teacher_suffix)
    # verbose=False: no warning of texts longer than the model's limit, since windows are cut from them
    options = {"return_attention_mask": False, "return_offsets_mapping": True, "verbose": False}
    own, theirs = tokenize(tokenizer, texts, **options), tokenize(teacher_tokenizer, texts, **options)
    for number, text in enumerate(texts):
        blank = np.fromiter(map(str.isspace, text), dtype=bool, count=len(text))
        # The index of each character if white space is not counted.
        visible = np.concatenate([[0], np.cumsum(~blank)])
        ids, spans = _content(own, number, visible, prefix, suffix)
        teacher_ids, teacher_spans = _content(theirs, number, visible, teacher_prefix, teacher_suffix)
        # Cut the teacher's tokens, then drop every token that begins after the last of them.
        dropped = 0
        if truncate_at is not None and len(teacher_ids) > truncate_at:
            teacher_spans = teacher_spans[: truncate_at - teacher_prefix - teacher_suffix]
            cut = slice(truncate_at - teacher_suffix, len(teacher_ids) - teacher_suffix)
            teacher_ids = np.delete(teacher_ids, cut)
            kept = int(np.searchsorted(np.maximum.accumulate(spans[:, 0]), teacher_spans.max(initial=0), side="left"))
            dropped = len(spans) - kept
            ids, spans = np.delete(ids, slice(prefix + kept, prefix + kept + dropped)), spans[:kept]
        # Align the content by characters, and the special tokens around it by their order.
        sizes, places = align_spans(spans, teacher_spans)
        yield AlignedText(
            input_ids=ids,
            teacher_ids=teacher_ids,
            sizes=np.concatenate([np.arange(prefix) < before, sizes, np.arange(suffix) < after]),
            places=np.concatenate(
                [np.arange(before), teacher_prefix + places, len(teacher_ids) - teacher_suffix + np.arange(after)],
                dtype=np.int32,
            ),
            unaligned=int((sizes == 0).sum()),
            dropped=dropped,
        )


def align_spans(spans: np.ndarray, teacher_spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Align tokens by the characters that they cover; a token without characters aligns with nothing.

    Args:
        spans: Where each token begins and ends, `[tokens, 2]`, in characters.
        teacher_spans: The same for the teacher's tokens, `[teacher_tokens, 2]`.

    Returns:
        `sizes` and `places` as in :class:`AlignedText`.
    """
    visible = np.flatnonzero(teacher_spans[:, 1] > teacher_spans[:, 0])
    # Spans ascend, except after rare normalizations that swap characters; there the later token loses the characters.
    starts, ends = np.maximum.accumulate(teacher_spans[visible], axis=0).T
    begins = np.maximum.accumulate(spans[:, 0])
    first, last = np.searchsorted(ends, begins, side="right"), np.searchsorted(starts, spans[:, 1], side="left")
    sizes = np.where(spans[:, 1] > begins, np.maximum(last - first, 0), 0)
    return sizes, visible[ranges(first, sizes)]


def ranges(first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Concatenate the ranges `first[i] : first[i] + sizes[i]`.

    Args:
        first: The first number of each range, `[n]`.
        sizes: The length of each range, `[n]`.

    Returns:
        `[sizes.sum()]`, integers.
    """
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def _content(
    encoding: BatchEncoding, number: int, visible: np.ndarray, prefix: int, suffix: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids of one text, `[tokens]`, and the spans of all but the special tokens, `[content, 2]`."""
    ids = np.asarray(encoding["input_ids"][number], dtype=np.int32)
    spans = visible[np.asarray(encoding["offset_mapping"][number], dtype=np.int64).reshape(-1, 2)]
    return ids, spans[prefix : len(ids) - suffix]
