"""Which tokens of the teacher each token of another tokenizer stands for: those that cover a character of it.

White space is no character here: tokenizers differ in whether they count it to the word behind it, and a token that is nothing else says
nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..models.tokenizers import special_token_counts


@dataclass
class AlignedText:
    """A text in the tokens of two tokenizers.

    Attributes:
        input_ids: `[tokens]`, int32. teacher_ids: `[teacher's tokens]`, int32; of both, special tokens included.
        sizes: `[tokens]`: with how many of the teacher's tokens each token aligns; 0: with none.
        places: `[sum of sizes]`, int32: which ones, as indices into `teacher_ids`, ascending for each token.
        unaligned: number of tokens, special ones apart, that align with none.
        dropped: number of tokens cut off by truncation.
    """

    input_ids: np.ndarray
    teacher_ids: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    unaligned: int
    dropped: int


def ranges(first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers `first[i] : first[i] + sizes[i]` of all i, one range behind the other, `[sum of sizes]`."""
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def align_spans(spans: np.ndarray, teacher_spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Aligns tokens by the characters that they cover.

    Args:
        spans: `[tokens, 2]`, begin and end of each. teacher_spans: `[teacher's tokens, 2]`. Empty ones align with nothing.

    Returns:
        `sizes` and `places` as in [`AlignedText`].
    """
    there = np.flatnonzero(teacher_spans[:, 1] > teacher_spans[:, 0])
    # Spans ascend, but for rare normalizations that swap characters; there the later token yields.
    starts, ends = np.maximum.accumulate(teacher_spans[there], axis=0).T
    begins = np.maximum.accumulate(spans[:, 0])
    first, last = np.searchsorted(ends, begins, side="right"), np.searchsorted(starts, spans[:, 1], side="left")
    sizes = np.where(spans[:, 1] > begins, np.maximum(last - first, 0), 0)
    return sizes, there[ranges(first, sizes)]


def align_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    truncate_at: int | None = None,
) -> Iterator[AlignedText]:
    """Tokenizes texts twice and aligns the tokens. Special tokens before a text are aligned in their order, those behind it likewise,
    as far as both tokenizers have them.

    Args:
        truncate_at: longest text in the teacher's tokens, special ones included; what lies behind it is dropped from both.
    """
    (prefix, suffix), (teacher_prefix, teacher_suffix) = (
        special_token_counts(tokenizer),
        special_token_counts(teacher_tokenizer),
    )
    before, behind = min(prefix, teacher_prefix), min(suffix, teacher_suffix)
    # verbose=False: longer texts than the model takes are expected, windows are cut from them
    options = {"return_attention_mask": False, "return_offsets_mapping": True, "verbose": False}
    own, theirs = tokenizer(texts, **options), teacher_tokenizer(texts, **options)
    for number, text in enumerate(texts):
        blank = np.fromiter(map(str.isspace, text), dtype=bool, count=len(text))
        visible = np.concatenate([[0], np.cumsum(~blank)])  # the place of each character if white space is not counted
        ids, teacher_ids = (np.asarray(encoded["input_ids"][number], dtype=np.int32) for encoded in (own, theirs))
        spans, teacher_spans = (
            visible[np.asarray(encoded["offset_mapping"][number], dtype=np.int64).reshape(-1, 2)]
            for encoded in (own, theirs)
        )
        content, teacher_content = (
            slice(prefix, len(ids) - suffix),
            slice(teacher_prefix, len(teacher_ids) - teacher_suffix),
        )
        spans, teacher_spans = spans[content], teacher_spans[teacher_content]
        dropped = 0
        if truncate_at is not None and len(teacher_ids) > truncate_at:
            teacher_spans = teacher_spans[: truncate_at - teacher_prefix - teacher_suffix]
            teacher_ids = np.delete(
                teacher_ids, slice(truncate_at - teacher_suffix, len(teacher_ids) - teacher_suffix)
            )
            kept = int(np.searchsorted(np.maximum.accumulate(spans[:, 0]), teacher_spans.max(initial=0), side="left"))
            dropped = len(spans) - kept
            ids, spans = np.delete(ids, slice(prefix + kept, prefix + kept + dropped)), spans[:kept]
        sizes, places = align_spans(spans, teacher_spans)
        yield AlignedText(
            input_ids=ids,
            teacher_ids=teacher_ids,
            sizes=np.concatenate([np.arange(prefix) < before, sizes, np.arange(suffix) < behind]),
            places=np.concatenate(
                [np.arange(before), teacher_prefix + places, len(teacher_ids) - teacher_suffix + np.arange(behind)],
                dtype=np.int32,
            ),
            unaligned=int((sizes == 0).sum()),
            dropped=dropped,
        )
