"""Instructions and templates around a text: the model attends to them, the text's vector is made without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .tokenizers import check_offsets

logger = logging.get_logger(__name__)
POOLED = ("text", "text_and_tail", "all")
# A text, or an instruction and a text.
Prompted: TypeAlias = str | Sequence[str]


class PromptedRow(NamedTuple):
    """The token ids of a text with what is around it, and which of them are pooled: `input_ids[begin:end]`."""

    input_ids: list[int]
    begin: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """What a model reads around a text.

    Attributes:
        template: holds `{text}` once, where an instruction, a space and the text go.
        instruction: of texts that come without one of their own.
        pooled: what a text's vector is made of. `text`: of the tokens behind instruction and head of the template, up to its tail (to
            the end where it has none); `text_and_tail`: of as many tokens at the end as text and tail have alone, without special
            tokens, which is LLM2Vec's rule; `all`: of all tokens.
            Poolings `cls` and `last` take the first and the last position of all, whatever this says.
        max_text_length: longer texts lose words at their end until they have so many tokens (LLM2Vec's `doc_max_length`).

    Raises:
        ValueError: a template without `{text}`, or another word for what is pooled.
    """

    template: str = "{text}"
    instruction: str = ""
    pooled: str = "text"
    max_text_length: int | None = None

    def __post_init__(self) -> None:
        if self.template.count("{text}") != 1:
            raise ValueError(f"template {self.template!r}: it must hold {{text}} once, where the text goes")
        if self.pooled not in POOLED:
            raise ValueError(f"pooled={self.pooled!r}: choose one of {', '.join(POOLED)}")

    @property
    def tail(self) -> str:
        return self.template.split("{text}")[1]

    @property
    def skips_head(self) -> bool:
        """Whether what stands before the text is left out."""
        return self.pooled != "all"

    @property
    def skips_tail(self) -> bool:
        """Whether what stands behind the text is left out."""
        return self.pooled == "text" and bool(self.tail)

    def parts(self, text: Prompted) -> tuple[str, str, str]:
        """What stands before a text, the text and what stands behind it.

        Raises:
            ValueError: neither a string nor a pair of strings.
        """
        instruction, text = (self.instruction, text) if isinstance(text, str) else _pair(text)
        head = self.template.split("{text}")[0] + (f"{instruction.strip()} " if instruction else "")
        return head, text.rstrip() if self.tail else text, self.tail

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Prompted], max_length: int | None
    ) -> list[PromptedRow]:
        """The rows of texts; what is too long loses tokens at the end of the text, by LLM2Vec's rule at the end of all.

        Args:
            max_length: in tokens, with all that is around the text; None: no limit.

        Raises:
            ValueError: a tokenizer that does not tell which characters its tokens cover, or a prompt that leaves no room for a text.
        """
        parts = [self.parts(text) for text in texts]
        if self.max_text_length is not None:
            parts = [(head, self._shorten(tokenizer, text, max_length), tail) for head, text, tail in parts]
        if not parts:
            return []
        joined = ["".join(part) for part in parts]
        if self.pooled != "text":
            cut = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
            rows = tokenizer(joined, **cut)["input_ids"]
            if self.pooled == "all":
                return [PromptedRow(ids, 0, len(ids)) for ids in rows]
            ends = tokenizer([text + tail for _, text, tail in parts], add_special_tokens=False, **cut)["input_ids"]
            # A text without tokens is given the vector of all that is around it.
            return [
                PromptedRow(ids, max(0, len(ids) - len(end)) if end else 0, len(ids)) for ids, end in zip(rows, ends)
            ]
        return [self._cut(*located, max_length) for located in self._locate(tokenizer, parts)]

    def around(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """The token ids before and behind any text, special tokens included, as far as they do not depend on the text: before some
        texts a token of white space comes behind them, or the last of them is one with the text's first."""
        ((ids, begin, end),) = self._locate(tokenizer, [self.parts("a")])
        return ids[:begin], ids[end:]

    def content(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of the texts as they are inside the prompt: all that is between those of `around`."""
        before, behind = self.around(tokenizer)
        rows = []
        for ids, begin, end in self._locate(tokenizer, [self.parts(text) for text in texts]):
            first, last = len(before), len(ids) - len(behind)
            if first <= begin and ids[:first] == before:  # else they share a token, which is the text's
                begin = first
            if end <= last and ids[last:] == behind:
                end = last
            rows.append(ids[begin:end])
        return rows

    def _locate(
        self, tokenizer: PreTrainedTokenizerBase, parts: Sequence[tuple[str, str, str]]
    ) -> Iterator[PromptedRow]:
        """All that is read, and where in it the tokens of the text are."""
        check_offsets(tokenizer)
        joined = ["".join(part) for part in parts]
        encoding = tokenizer(joined, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        columns = (encoding[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        for ids, offsets, special, (head, text, _) in zip(*columns, parts):
            yield PromptedRow(ids, *_covered(offsets, special, len(head), len(head) + len(text)))

    def _cut(self, ids: list[int], begin: int, end: int, max_length: int | None) -> PromptedRow:
        excess = 0 if max_length is None else max(0, len(ids) - max_length)
        if excess and excess >= end - begin:
            raise ValueError(
                f"max_length={max_length}: instruction and template alone have {len(ids) - (end - begin)} tokens"
            )
        ids, end = ids[: end - excess] + ids[end:], end - excess
        if begin == end:  # a text without tokens is given the vector of all that is around it
            return PromptedRow(ids, 0, len(ids))
        return PromptedRow(ids, begin, end if self.tail else len(ids))

    def _shorten(self, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None) -> str:
        cut = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
        while (length := len(tokenizer(text, add_special_tokens=False, **cut)["input_ids"])) > self.max_text_length:
            words = text.split()
            if length and len(words) * self.max_text_length < length:
                logger.warning_once(
                    f"no word of {text[:40]!r}... is left: {length} tokens, max_text_length={self.max_text_length}"
                )
            text = " ".join(words[: int(len(words) * self.max_text_length / length)])
        return text


def _pair(text: Sequence[str]) -> Sequence[str]:
    if not isinstance(text, Sequence) or len(text) != 2 or not all(isinstance(part, str) for part in text):
        raise ValueError(f"{text!r:.60} is neither a string nor an instruction and a text")
    return text


def _covered(offsets: Sequence[tuple[int, int]], special: Sequence[int], begin: int, end: int) -> tuple[int, int]:
    """The first token that covers a character of `begin:end`, and the one behind the last; where there is none, the place of one."""
    (starts, stops), own = np.array(offsets).reshape(-1, 2).T, np.array(special) == 0
    covering = np.flatnonzero(own & (starts < end) & (stops > begin) & (stops > starts))
    if len(covering):
        return int(covering[0]), int(covering[-1]) + 1
    before = np.flatnonzero(own & (stops <= begin))
    place = int(before[-1]) + 1 if len(before) else int(np.argmax(own)) if own.any() else len(own)
    return place, place
