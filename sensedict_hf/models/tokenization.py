"""Tokenizing, and facts about a tokenizer: its longest input, its special tokens, its character offsets."""

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .arguments import check_integer, check_kind
from .files import is_panic

# Longest window if no length is given: batches of the longest inputs of a long-context model do not fit into memory.
DEFAULT_MAX_LENGTH = 512
# The positions of these models start after the padding index, so two rows of their position table are not for tokens.
POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


class _Copy(NamedTuple):
    """A copy of a tokenizer, the settings of the tokenizer at that time, and a lock for who uses the copy."""

    tokenizer: PreTrainedTokenizerBase
    settings: tuple[Any, ...]
    lock: threading.RLock


_copies: WeakKeyDictionary[PreTrainedTokenizerBase, _Copy] = WeakKeyDictionary()
_copying = threading.Lock()


def _forget_copies() -> None:
    """Drop all copies in a process that was forked: another thread may have held their locks."""
    global _copying
    _copies.clear()
    _copying = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_copies)


@contextmanager
def private_copy(tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    """Lend a copy of a tokenizer that nobody else uses meanwhile.

    A fast tokenizer keeps the truncation and padding that it was last called with. Two threads that call it with
    different ones would get each other's.

    Args:
        tokenizer: The tokenizer. It is neither called nor changed.

    Yields:
        The copy, or a slow tokenizer itself, which keeps no such settings.

    Raises:
        ValueError: The code in Rust has panicked, as it does if the tokenizer was put together wrongly.
    """
    if not tokenizer.is_fast:
        yield tokenizer
        return
    backend: Any = tokenizer.backend_tokenizer
    parts = [repr(part) for part in (backend.normalizer, backend.pre_tokenizer, backend.post_processor)]
    split = getattr(tokenizer, "split_special_tokens", False)
    settings = (*parts, len(tokenizer), tokenizer.truncation_side, split)
    with _copying:
        found = _copies.get(tokenizer)
        if found is None or found.settings != settings:  # the tokenizer was changed
            found = _copies[tokenizer] = _Copy(copy.deepcopy(tokenizer), settings, threading.RLock())
    with found.lock:
        try:
            yield found.tokenizer
        except BaseException as error:
            if not is_panic(error):
                raise
            name = tokenizer.name_or_path or "that was given"
            raise ValueError(f"the tokenizer {name} is damaged, and fails with: {error}") from error


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[Any], **options: Any) -> BatchEncoding:
    """Call a tokenizer in a way that is safe while other threads call it too.

    Args:
        tokenizer: The tokenizer.
        texts: One string or many.
        options: Options of the call, such as `truncation`.

    Returns:
        What the tokenizer returns.

    Example:
        >>> tokenize(teacher.tokenizer, "river bank", add_special_tokens=False)["input_ids"]
        [2314, 2924]
    """
    with private_copy(tokenizer) as own:
        encoding: BatchEncoding = own(texts, **options)
    return encoding


def model_max_length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> int:
    """Return the longest input in tokens: the smaller limit of the tokenizer and of the model's position table.

    Args:
        tokenizer: The tokenizer of the model.
        config: Config of the model. None: only the tokenizer counts.
    """
    limits = [int(tokenizer.model_max_length), getattr(config, "max_position_embeddings", None) or 0]
    limits = [limit if limit > 0 else int(1e9) for limit in limits]  # XLNet says -1 where there is no limit
    if getattr(config, "model_type", None) in POSITIONS_AFTER_PADDING:
        limits[1] -= 2
    return min(limits)


def check_tokenizer(tokenizer: object) -> None:
    """Raise a ValueError if an object is not a tokenizer."""
    check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase, "a tokenizer, such as teacher.tokenizer")


def count_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings for.

    Args:
        model: The model.

    Raises:
        ValueError: It reads no token ids, or has no table with one vector for each.
    """
    weight = None
    if model.main_input_name == "input_ids":
        try:
            weight = getattr(model.get_input_embeddings(), "weight", None)
        except NotImplementedError:  # CANINE adds up the vectors of several hashes
            pass
    if weight is None:
        raise ValueError(
            f"{type(model).__name__} has no vector for each token id: give a model of texts with a vocabulary, or the "
            "part that reads the texts, such as the text model of CLIP"
        )
    return len(weight)


def has_decoder(model: PreTrainedModel) -> bool:
    """Return whether a model is an encoder-decoder, not its encoder alone.

    Args:
        model: A model without a head.
    """
    return bool(model.config.is_encoder_decoder) and getattr(model, "decoder", None) is not None


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer lower-case all texts, as `do_lower_case` in sentence-transformers does.

    Args:
        tokenizer: The tokenizer, which is changed.

    Raises:
        ValueError: It is not a fast tokenizer.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"do_lower_case of sentence-transformers needs a fast tokenizer, not {type(tokenizer).__name__}"
        )
    backend: Any = tokenizer.backend_tokenizer
    before = backend.normalizer
    steps: list[Any] = [before] if before else []
    if isinstance(before, normalizers.Sequence):
        steps = [before[number] for number in range(len(before))]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer with which other libraries make the same batches as `encode`.

    Batches are padded on the right. A tokenizer without a padding token gets one of its other special tokens, which
    the model has an embedding for; padding is masked. The longest input is that of the model.

    Args:
        tokenizer: The tokenizer.
        model: The model that reads its tokens.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    # transformers saves what a tokenizer was made with, so a side that was set later would be lost.
    tokenizer.init_kwargs["truncation_side"] = tokenizer.truncation_side
    tokenizer.model_max_length = min(tokenizer.model_max_length, model_max_length(tokenizer, model.config))
    count = count_embeddings(model)
    for name in ("pad", "eos", "sep", "cls", "bos", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < count:
            tokenizer.pad_token = getattr(tokenizer, f"{name}_token")
            break
    return tokenizer


def check_max_length(max_length: int | None, longest: int) -> int:
    """Return the length of windows in tokens: the given one if it is possible, or the default.

    Args:
        max_length: The given length. None: the longest input of the model, but at most 512.
        longest: The longest input of the model in tokens.

    Raises:
        ValueError: `max_length` is below 8 or above `longest`.
    """
    if max_length is None:
        return min(longest, DEFAULT_MAX_LENGTH)
    if check_integer("max_length", max_length) < 8 or max_length > longest:
        raise ValueError(f"max_length={max_length}: the model takes 8 to {longest:,} tokens")
    return int(max_length)


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens that a tokenizer puts before and after a text.

    Args:
        tokenizer: The tokenizer.

    Raises:
        ValueError: The tokenizer changes the other tokens of a text when it adds special tokens.
    """
    plain, full = (tokenize(tokenizer, "a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for prefix in range(len(full) - len(plain) + 1):
        if full[prefix : prefix + len(plain)] == plain:
            return full[:prefix], full[prefix + len(plain) :]
    raise ValueError(
        f"{type(tokenizer).__name__} changes the tokens of a text when it adds special tokens, which is not "
        "supported: use another tokenizer"
    )


def special_token_counts(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return how many special tokens a tokenizer puts before and after a text, see :func:`special_tokens_around`."""
    before, after = special_tokens_around(tokenizer)
    return len(before), len(after)


def check_offsets(*tokenizers: PreTrainedTokenizerBase) -> None:
    """Check that tokenizers tell which characters their tokens cover.

    Args:
        tokenizers: The tokenizers.

    Raises:
        ValueError: One of them does not.
    """
    for tokenizer in tokenizers:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} ({tokenizer.name_or_path or 'without a name'}) does not tell which "
                "characters its tokens cover, so its tokens cannot be matched with words or with another tokenizer: "
                "use its fast version, or a single tokenizer without a prompt"
            )


def find_token(token: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find the ids of a token, or of a word that is a single token at the beginning of a text or after a space.

    Args:
        token: The token as the vocabulary spells it, or the word.
        tokenizer: The tokenizer.

    Returns:
        All ids that match, the token as it is spelled first.

    Raises:
        ValueError: There is none.
    """
    tokenized = [tokenize(tokenizer, text, add_special_tokens=False)["input_ids"] for text in (token, f" {token}")]
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token]] if token in vocabulary else []
    ids += [pieces[0] for pieces in tokenized if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id]
    if not ids:
        pieces = " ".join(tokenizer.convert_ids_to_tokens(tokenized[0]))
        raise ValueError(f"{token!r} is not one token of this dictionary but {pieces or 'none'}: name one of those")
    return ids


def find_words(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Find the word in which each token ends.

    Args:
        words: The words of a sentence, which the tokenizer read with spaces between them.
        offsets: The first character of each token, and the one after its last.

    Returns:
        Indices of words, `[tokens]`; `len(words)` for a token that ends in no word.
    """
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    ends = lengths.cumsum() + np.arange(len(words))
    first, last = np.array(offsets).reshape(-1, 2).T - [[0], [1]]
    begun = np.searchsorted(ends - lengths, last, side="right")  # how many words begin up to the end of the token
    is_inside = (last >= first) & (last < np.append(0, ends)[begun])
    return np.where(is_inside, begun - 1, len(words))
