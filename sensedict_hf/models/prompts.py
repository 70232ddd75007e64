"""Prompts: the instruction and template that a model reads around a text, and which tokens are pooled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import check_choice, check_integer, check_unicode
from .tokenization import check_offsets, tokenize
from .windows import cut_windows, window_width

logger = logging.get_logger(__name__)
POOLED = ("text", "text_and_tail", "all")
# A text, or a pair of an instruction and a text.
Prompted: TypeAlias = str | Sequence[str]


class PromptedRow(NamedTuple):
    """The token ids of a text with its prompt, and which of them are pooled.

    Attributes:
        input_ids: All token ids that the model reads.
        begin: The first position that is pooled.
        end: The position after the last one that is pooled.
        is_cut: Whether tokens of the text are left out, because it is too long.
    """

    input_ids: list[int]
    begin: int
    end: int
    is_cut: bool = False


@dataclass(frozen=True)
class Prompt:
    """What a model reads around a text.

    The model reads the template, with `{text}` replaced by the instruction, a space and the text. The vector of the
    text is pooled from the tokens that `pooled` names; the poolings `cls` and `last` always use the first and the last
    position of the whole row.

    Attributes:
        template: Contains `{text}` once.
        instruction: Read before texts that come without an instruction of their own.
        pooled: Which tokens are pooled. `text`: the tokens of the text, and, if the template ends with the text, the
            special tokens after it. `text_and_tail`: as many tokens at the end of the row as the text and the rest of
            the template have alone, without special tokens, which is LLM2Vec's rule. `all`: all tokens.
        max_text_length: Longer texts lose words at their end until they have this number of tokens (LLM2Vec's
            `doc_max_length`).

    Raises:
        ValueError: The template does not contain `{text}` once, or `pooled` is unknown.

    Example:
        >>> from sensedict_hf import Prompt
        >>> Prompt("Query: {text}", instruction="Find a page.").parts("river bank")
        ('Query: Find a page. ', 'river bank', '')
    """

    template: str = "{text}"
    instruction: str = ""
    pooled: str = "text"
    max_text_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("template", "instruction"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r:.60}: give a string")
        if self.template.count("{text}") != 1:
            raise ValueError(f"template {self.template!r}: it must contain {{text}} once, where the text goes")
        check_choice("pooled", self.pooled, POOLED)
        if self.max_text_length is not None:
            check_integer("max_text_length", self.max_text_length, 1)

    @property
    def tail(self) -> str:
        """The part of the template after the text."""
        return self.template.split("{text}")[1]

    @property
    def skips_head(self) -> bool:
        """Whether the tokens before the text are left out of the pooling."""
        return self.pooled != "all"

    @property
    def skips_tail(self) -> bool:
        """Whether the tokens after the text are left out of the pooling."""
        return self.pooled == "text" and bool(self.tail)

    def parts(self, text: Prompted) -> tuple[str, str, str]:
        """Return what the model reads before the text, the text, and what it reads after the text.

        Args:
            text: A string, or a pair of an instruction and a text. Its instruction replaces the one of the prompt.

        Raises:
            ValueError: `text` is neither a string nor a pair of strings.

        Example:
            >>> from sensedict_hf import Prompt
            >>> Prompt("[INST] {text} [/INST]").parts(["Find a page.", "river bank"])
            ('[INST] Find a page. ', 'river bank', ' [/INST]')
        """
        if not _is_text(text):
            raise ValueError(f"{text!r:.60} is neither a string nor a pair of an instruction and a text")
        instruction, text = (self.instruction, text) if isinstance(text, str) else text
        head = self.template.split("{text}")[0] + (f"{instruction.strip()} " if instruction else "")
        return head, text.rstrip() if self.tail else text, self.tail

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Prompted], max_length: int | None
    ) -> list[PromptedRow]:
        """Return the token ids of each text with its prompt, and which of them are pooled.

        A row that is too long loses tokens at the end of the text, or, with LLM2Vec's rule, at the end of the row.

        Args:
            tokenizer: The tokenizer of the model.
            texts: Strings, or pairs of an instruction and a text.
            max_length: The longest row in tokens, prompt and special tokens included. None: no limit.

        Raises:
            ValueError: The tokenizer does not return character offsets, or the prompt alone is longer than
                `max_length`.

        Example:
            >>> from sensedict_hf import Prompt
            >>> row = Prompt("query: {text}").tokenize(teacher.tokenizer, ["river bank"], max_length=None)[0]
            >>> teacher.tokenizer.decode(row.input_ids[row.begin : row.end])
            'river bank [SEP]'
        """
        parts = [self.parts(text) for text in texts]
        if not parts:
            return []
        if (limit := self.max_text_length) is None:
            return self._tokenize_parts(tokenizer, parts, max_length)
        short = [(head, _shorten(tokenizer, text, limit, max_length), tail) for head, text, tail in parts]
        rows = self._tokenize_parts(tokenizer, short, max_length)
        are_cut = [row.is_cut or len(new[1]) < len(old[1]) for row, new, old in zip(rows, short, parts)]
        return [row._replace(is_cut=is_cut) for row, is_cut in zip(rows, are_cut)]

    def _tokenize_parts(
        self, tokenizer: PreTrainedTokenizerBase, parts: Sequence[tuple[str, str, str]], max_length: int | None
    ) -> list[PromptedRow]:
        """Tokenize texts that are not longer than `max_text_length`, see :meth:`tokenize`."""
        if self.pooled == "text":
            return [self._cut(row.input_ids, row.begin, row.end, max_length) for row in self._locate(tokenizer, parts)]
        cut = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
        encoding = tokenize(tokenizer, ["".join(part) for part in parts], **cut)
        rows = encoding["input_ids"]
        if encoding.encodings:
            are_cut = [bool(row.overflowing) for row in encoding.encodings]
        elif max_length is None:
            are_cut = [False] * len(rows)
        else:  # a slow tokenizer does not tell
            whole = tokenize(tokenizer, ["".join(part) for part in parts], verbose=False)["input_ids"]
            are_cut = [len(all_ids) > max_length for all_ids in whole]
        if self.pooled == "all":
            return [PromptedRow(ids, 0, len(ids), is_cut) for ids, is_cut in zip(rows, are_cut)]
        ends = tokenize(tokenizer, [text + tail for _, text, tail in parts], add_special_tokens=False, **cut)[
            "input_ids"
        ]
        # If text and tail have no tokens, the whole row is pooled.
        begins = [max(0, len(ids) - len(end)) if end else 0 for ids, end in zip(rows, ends)]
        return [PromptedRow(ids, begin, len(ids), is_cut) for ids, begin, is_cut in zip(rows, begins, are_cut)]

    def around(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Return the token ids before and after any text, special tokens included.

        With some texts they differ: the last token before the text may be followed by a token for white space, or may
        merge with the first token of the text. Use :meth:`content` for the tokens of a text.

        Args:
            tokenizer: The tokenizer of the model; a fast one.

        Raises:
            ValueError: The tokenizer does not return character offsets.

        Example:
            >>> from sensedict_hf import Prompt
            >>> before, after = Prompt("query: {text}").around(teacher.tokenizer)
            >>> teacher.tokenizer.convert_ids_to_tokens(before + after)
            ['[CLS]', 'query', ':', '[SEP]']
        """
        ((ids, begin, end, _),) = self._locate(tokenizer, [self.parts("a")])
        return ids[:begin], ids[end:]

    def content(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text inside the prompt, between the two parts of :meth:`around`.

        Args:
            tokenizer: The tokenizer of the model; a fast one.
            texts: The texts.

        Raises:
            ValueError: The tokenizer does not return character offsets.

        Example:
            >>> from sensedict_hf import Prompt
            >>> ids = Prompt("query: {text}").content(teacher.tokenizer, ["river bank"])[0]
            >>> teacher.tokenizer.convert_ids_to_tokens(ids)
            ['river', 'bank']
        """
        before, after = self.around(tokenizer)
        rows = []
        for ids, begin, end, _ in self._locate(tokenizer, [self.parts(text) for text in texts]):
            # Where prompt and text share a token, it belongs to the text.
            first, last = len(before), len(ids) - len(after)
            if first <= begin and ids[:first] == before:
                begin = first
            if end <= last and ids[last:] == after:
                end = last
            rows.append(ids[begin:end])
        return rows

    def windows(self, tokenizer: PreTrainedTokenizerBase, text: Prompted, max_length: int) -> list[PromptedRow]:
        """Cut a text into overlapping windows, each with the prompt around it.

        Args:
            tokenizer: The tokenizer of the model; a fast one.
            text: A string, or a pair of an instruction and a text.
            max_length: The longest row in tokens, prompt and special tokens included.

        Returns:
            For each window its token ids, and the tokens that are pooled. Each token of the text is pooled in one
            window, with context on both sides.

        Raises:
            ValueError: The tokenizer does not return character offsets, or the prompt leaves no room for a text.

        Example:
            >>> from sensedict_hf import Prompt
            >>> rows = Prompt().windows(teacher.tokenizer, "a b c d e f g h i j", max_length=10)
            >>> [(len(row.input_ids), row.begin, row.end) for row in rows]
            [(10, 1, 6), (10, 4, 9)]
        """
        prompt = self
        if not isinstance(text, str):
            prompt, text = replace(self, instruction=text[0]), text[1]
        before, after = prompt.around(tokenizer)
        (ids,) = prompt.content(tokenizer, [text])
        found = cut_windows(np.array([len(ids)]), window_width(max_length, len(before) + len(after)))
        columns = (column.tolist() for column in (found.start, found.stop, found.own_start, found.own_stop))
        return [
            PromptedRow([*before, *ids[start:stop], *after], len(before) + own - start, len(before) + own_stop - start)
            for start, stop, own, own_stop in zip(*columns)
        ]

    def _locate(
        self, tokenizer: PreTrainedTokenizerBase, parts: Sequence[tuple[str, str, str]]
    ) -> Iterator[PromptedRow]:
        """Yield the token ids of each text with its prompt; `begin:end` are the tokens of the text alone."""
        check_offsets(tokenizer)
        joined = ["".join(part) for part in parts]
        wanted = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
        encoding = tokenize(tokenizer, joined, **wanted)
        columns = (encoding[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        for ids, offsets, special, (head, text, _) in zip(*columns, parts):
            yield PromptedRow(ids, *_find_covered(offsets, special, len(head), len(head) + len(text)))

    def _cut(self, ids: list[int], begin: int, end: int, max_length: int | None) -> PromptedRow:
        """Shorten a row to `max_length` at the end of its text, which is at `begin:end`."""
        excess = 0 if max_length is None else max(0, len(ids) - max_length)
        if excess and excess >= end - begin:
            raise ValueError(
                f"max_length={max_length}: instruction and template alone have {len(ids) - (end - begin)} tokens, "
                "which leaves no room for a text: raise max_length, or shorten the prompt"
            )
        ids, end = ids[: end - excess] + ids[end:], end - excess
        if begin == end:  # if the text has no tokens, the whole row is pooled
            return PromptedRow(ids, 0, len(ids))
        return PromptedRow(ids, begin, end if self.tail else len(ids), excess > 0)


def choose_prompt(
    prompt_name: str | None, default: Prompt | None, prompts: Mapping[str, str], include_prompt: bool
) -> Prompt | None:
    """Return the prompt with a given name, or the default prompt without a name.

    Args:
        prompt_name: A key of `prompts`, or None.
        default: The prompt to use without a name.
        prompts: Named prompts: strings to put before a text.
        include_prompt: Whether the tokens of a named prompt are pooled with the text.

    Returns:
        The prompt; None if it is empty.

    Raises:
        ValueError: There is no prompt of that name.
    """
    if prompt_name is None:
        return default
    if not isinstance(prompt_name, str) or prompt_name not in prompts:
        known = f"choose one of {', '.join(prompts)}" if prompts else "this model has no named prompts"
        raise ValueError(f"unknown prompt_name={prompt_name!r:.60}: {known}")
    if not prompts[prompt_name]:
        return None
    return Prompt(prompts[prompt_name] + "{text}", pooled="all" if include_prompt else "text")


def change_prompt(prompt: Prompt | None, instruction: str | None, template: str | None) -> Prompt | None:
    """Return a prompt with another instruction or template.

    Args:
        prompt: The prompt. None: a new one.
        instruction: The new instruction. None: it stays.
        template: The new template. None: it stays.

    Returns:
        The changed prompt, or `prompt` itself if nothing is given.
    """
    if instruction is None and template is None:
        return prompt
    prompt = prompt or Prompt()
    # LLM2Vec's rule of pooling is for its own template only, and what a user puts before a text is never pooled.
    keeps_rule = template is None and prompt.pooled != "all"
    return replace(
        prompt,
        template=prompt.template if template is None else template,
        instruction=prompt.instruction if instruction is None else instruction,
        pooled=prompt.pooled if keeps_rule else "text",
    )


def check_texts(texts: Sequence[Any], first: int = 0) -> None:
    """Raise a ValueError if one of the texts is neither a string nor a pair of strings.

    Args:
        texts: The texts to encode.
        first: The number of the first text, for the message.
    """
    for number, text in enumerate(texts, first):
        if not _is_text(text):
            raise ValueError(
                f"text {number} is of type {type(text).__name__}: {text!r:.60} is neither a string nor a pair of an "
                "instruction and a text"
            )
        for part in [text] if isinstance(text, str) else text:
            check_unicode(part, f"text {number}")


def _is_text(text: Any) -> bool:
    """Return whether a text is a string or a pair of strings."""
    if isinstance(text, str):
        return True
    return isinstance(text, Sequence) and len(text) == 2 and all(isinstance(part, str) for part in text)


def _shorten(tokenizer: PreTrainedTokenizerBase, text: str, limit: int, max_length: int | None) -> str:
    """Cut words off the end of a text until it has at most `limit` tokens, in the same steps as LLM2Vec."""
    cut = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    while (length := len(tokenize(tokenizer, text, add_special_tokens=False, **cut)["input_ids"])) > limit:
        words = text.split()
        if length and len(words) * limit < length:
            logger.warning_once(
                f"no word of {text[:40]!r}... is left: it has {length} tokens, max_text_length={limit}"
            )
        text = " ".join(words[: int(len(words) * limit / length)])
    return text


def _find_covered(offsets: Sequence[tuple[int, int]], special: Sequence[int], begin: int, end: int) -> tuple[int, int]:
    """Find the tokens that cover any of the characters `begin:end`.

    Args:
        offsets: The first character of each token, and the one after its last.
        special: 1 for special tokens, which cover no character.
        begin: The first character.
        end: The character after the last one.

    Returns:
        The first of these tokens and the one after the last. If there are none, the range is empty, at the place where
        they would be.
    """
    (starts, stops), own = np.array(offsets).reshape(-1, 2).T, np.array(special) == 0
    covering = np.flatnonzero(own & (starts < end) & (stops > begin) & (stops > starts))
    if len(covering):
        return int(covering[0]), int(covering[-1]) + 1
    before = np.flatnonzero(own & (stops <= begin))
    place = int(before[-1]) + 1 if len(before) else int(np.argmax(own)) if own.any() else len(own)
    return place, place
