"""Encode texts: pad token ids to batches, run them through a model, pool its hidden states to vectors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .arguments import check_choice, check_integer, check_unicode, is_traced
from .prompts import Prompt, Prompted, PromptedRow, check_texts
from .tokenization import check_offsets, count_embeddings, find_words, private_copy, tokenize

logger = logging.get_logger(__name__)
POOLINGS = ("mean", "weighted_mean", "cls", "last", "max")
# A backbone without layers computes the vector of a text itself, with weights that it has learned.
LEARNED = "learned"
LONG_TEXTS = ("truncate", "windows")
# How many texts are tokenized at a time. They are sorted by length, so a large number saves padding.
CHUNK = 4096

Item = TypeVar("Item")
Result = TypeVar("Result")


def padding_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Return the token id to pad with.

    It is 0 if the tokenizer has no padding token, or the model has no embedding for it: padding is masked anyway.

    Args:
        tokenizer: The tokenizer of the model.
        model: The model that reads the batches.
    """
    pad = tokenizer.pad_token_id
    return 0 if pad is None or pad >= count_embeddings(model) else pad


def pad_batch(rows: Sequence[Sequence[int] | npt.NDArray[Any]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids on the right.

    Args:
        rows: The token ids of each text.
        pad_token_id: The token id to pad with.

    Returns:
        `input_ids` and `attention_mask`, both `[batch, positions]`, int64. `positions` is the length of the longest
        row.
    """
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(mask.shape, pad_token_id)
    input_ids[mask] = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    return input_ids, mask.long()


def pool(hidden_states: Tensor, attention_mask: Tensor, pooling: str = "mean", pooled: Tensor | None = None) -> Tensor:
    """Reduce the hidden states of each text to one vector.

    Args:
        hidden_states: `[batch, positions, hidden]`.
        attention_mask: `[batch, positions]`, 0 where a position is padding.
        pooling: `mean`; `weighted_mean`, with weights 1, 2, 3 ... from the first position to the last; `max`, the
            largest value of each dimension; `cls`, the first position; `last`, the last position. Padding never
            counts.
        pooled: `[batch, positions]`, nonzero at the positions that `mean`, `weighted_mean` and `max` use. It must be 0
            for padding. Default: all that are not padding.

    Returns:
        One vector per text, `[batch, hidden]`, in the dtype of `hidden_states`.

    Raises:
        ValueError: The pooling is unknown, or a row has no positions to pool.
    """
    check_pooling(pooling)
    mask = attention_mask.bool() if pooled is None or pooling in ("cls", "last") else pooled.bool()
    if not is_traced() and not mask.any(1).all():
        raise ValueError(
            f"row {int((~mask.any(1)).nonzero()[0])} of the batch has no tokens: there is nothing to pool"
        )
    if pooling in ("mean", "weighted_mean"):
        # In float32: sums of many weights or states overflow in half precision.
        weights = (mask if pooling == "mean" else mask.cumsum(1) * mask).float()
        mean = (hidden_states.float() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        return mean.to(hidden_states.dtype)
    if pooling == "max":
        return hidden_states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    # `cls` and `last`: the first and the last position that is not masked.
    place = torch.arange(mask.shape[1], device=mask.device).masked_fill(
        ~mask, mask.shape[1] if pooling == "cls" else -1
    )
    place = place.amin(1) if pooling == "cls" else place.amax(1)
    return hidden_states[torch.arange(len(place), device=place.device), place]


def check_pooling(pooling: str) -> None:
    """Raise a ValueError if the pooling is unknown."""
    if not isinstance(pooling, str) or pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r:.60}: choose one of {', '.join(POOLINGS)} with pooling=")


@dataclass(frozen=True)
class BatchEncoder:
    """Run texts through a model in padded batches and reduce the hidden states to vectors.

    Attributes:
        forward: The model: maps `input_ids` and `attention_mask`, both `[batch, positions]`, to hidden states,
            `[batch, positions, hidden]`.
        tokenizer: The tokenizer of the model.
        pad_token_id: The token id to pad with.
        max_length: Longer texts are truncated to this number of tokens.
        device: The device of the inputs of `forward`.
        batch_size: Texts per batch.
        pooling: How the hidden states of a text become one vector, see :func:`pool`.
        prompt: What the model reads around each text. It is not used for words.
        hidden_size: Width of the vectors, for a result without texts.
        long_texts: What is done with texts longer than `max_length`: `truncate`, or `windows`, see
            :meth:`TextEncoder.encode`.
    """

    forward: Callable[[Tensor, Tensor], Tensor]
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    max_length: int
    device: torch.device
    batch_size: int = 32
    pooling: str = "mean"
    prompt: Prompt | None = None
    hidden_size: int = 0
    long_texts: str = "truncate"

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        check_choice("long_texts", self.long_texts, LONG_TEXTS)
        check_integer("batch_size", self.batch_size, 1)

    def encode_texts(self, texts: Iterable[Prompted], show_progress_bar: bool | None = None) -> Tensor:
        """Return one vector per text, `[texts, hidden]`, float32 on the CPU.

        Args:
            texts: Strings, or pairs of an instruction and a text.
            show_progress_bar: Whether to show a progress bar. None: if there is more than one batch.

        Raises:
            ValueError: `texts` is a table or a mapping, or one of the texts is neither a string nor a pair of strings,
                or has no tokens.
        """
        is_table = hasattr(texts, "columns") or hasattr(texts, "column_names")
        if is_table or not isinstance(texts, Iterable) or isinstance(texts, (Mapping, bytes)):
            raise ValueError(f"texts is a {type(texts).__name__}: pass a list of strings, such as one of its columns")
        vectors = list(self._map_chunks(self._encode_texts, check_texts, texts, show_progress_bar))
        return torch.cat(vectors) if vectors else torch.empty(0, self.hidden_size, dtype=torch.float32)

    def encode_words(self, sentences: Iterable[Sequence[str]], show_progress_bar: bool | None = None) -> list[Tensor]:
        """Return the vectors of each sentence's words, `[words, hidden]` per sentence, float32 on the CPU.

        The model reads the words with spaces between them, without a prompt. The vector of a word is the mean over the
        tokens that end in the word. It is zero if the word has no tokens or comes after `max_length` tokens.

        Args:
            sentences: One list of words per sentence.
            show_progress_bar: Whether to show a progress bar. None: if there is more than one batch.

        Raises:
            ValueError: A sentence is not a list of strings or has no tokens, or the tokenizer does not return
                character offsets.
        """
        check_offsets(self.tokenizer)
        if not isinstance(sentences, Iterable):
            raise ValueError(f"sentences is {type(sentences).__name__}: pass one list of words for each")
        chunks = self._map_chunks(self._encode_words, _check_sentences, sentences, show_progress_bar)
        return [vectors for chunk in chunks for vectors in chunk]

    def _map_chunks(
        self,
        encode: Callable[[list[Item], int, Any], Result],
        check: Callable[[Sequence[Item], int], None],
        items: Iterable[Item],
        show_progress_bar: bool | None,
    ) -> Iterator[Result]:
        """Yield `encode(chunk, first, progress)` for each chunk; `first` is the index of its first item.

        `check(items, first)` raises an error for a wrong item. A list is checked before any work.
        """
        if is_checked := isinstance(items, (list, tuple)):
            check(cast(Sequence[Item], items), 0)
        reader, first = iter(items), 0
        chunk = list(islice(reader, CHUNK))
        batches = -(-len(items) // self.batch_size) if isinstance(items, Sized) else None
        hide = len(chunk) <= self.batch_size if show_progress_bar is None else not show_progress_bar
        with tqdm(total=batches, desc="Encoding", unit=" batches", leave=False, disable=hide) as progress:
            while chunk:
                if not is_checked:
                    check(chunk, first)
                yield encode(chunk, first, progress)
                first += len(chunk)
                chunk = list(islice(reader, CHUNK))

    def _encode_texts(self, texts: list[Prompted], first: int, progress: Any) -> Tensor:
        """Return the vectors of one chunk, `[texts, hidden]`."""
        prompt = self.prompt
        if prompt is None:
            # Without a prompt all tokens are pooled, special tokens too; but instructions are never pooled.
            has_instructions = any(not isinstance(text, str) for text in texts)
            prompt = Prompt() if has_instructions else Prompt(pooled="all")
        rows = prompt.tokenize(self.tokenizer, texts, self.max_length)
        _check_rows([row.input_ids for row in rows], texts, first)
        if not any(row.is_cut for row in rows):
            return self._encode_rows(rows, progress)
        if self.long_texts == "truncate":
            longest = min(self.max_length, prompt.max_text_length or self.max_length)
            num_cut = sum(row.is_cut for row in rows)
            _warn_of_cut(num_cut, len(rows), longest, "encode(..., long_texts='windows')")
            return self._encode_rows(rows, progress)

        # The vector of a long text is the mean over its windows, weighted by the tokens that they own.
        windows = [
            prompt.windows(self.tokenizer, text, self.max_length) if row.is_cut else [row]
            for text, row in zip(texts, rows)
        ]
        vectors = self._encode_rows(list(chain.from_iterable(windows)), progress)
        owner = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor([len(row) for row in windows]))
        tokens = torch.tensor([max(1, row.end - row.begin) for part in windows for row in part], dtype=torch.float32)
        weights = tokens / tokens.new_zeros(len(windows)).index_add(0, owner, tokens)[owner]
        return vectors.new_zeros(len(windows), vectors.shape[1]).index_add(0, owner, vectors * weights[:, None])

    def _encode_rows(self, rows: Sequence[PromptedRow], progress: Any) -> Tensor:
        """Return the vectors of rows of token ids, `[rows, hidden]`."""
        ids = [row.input_ids for row in rows]
        order: list[int] = []
        vectors: list[Tensor] = []
        for batch, hidden_states, mask in self._run(ids, progress):
            # Only the positions from `begin` to `end` of each row are pooled.
            begin = torch.tensor([rows[i].begin for i in batch], device=mask.device)[:, None]
            end = torch.tensor([rows[i].end for i in batch], device=mask.device)[:, None]
            place = torch.arange(mask.shape[1], device=mask.device)
            order += batch
            vectors.append(pool(hidden_states, mask, self.pooling, (place >= begin) & (place < end)).cpu())
        return torch.cat(vectors)[torch.tensor(order).argsort()]

    def _encode_words(self, sentences: list[Sequence[str]], first: int, progress: Any) -> list[Tensor]:
        """Return the vectors of the words of one chunk, `[words, hidden]` per sentence."""
        # Tokenizers that know a word by the space before it lose that space with `is_split_into_words`, so the words
        # are joined.
        joined = [" ".join(sentence) for sentence in sentences]
        cut = {"truncation": True, "max_length": self.max_length}
        encoding = tokenize(self.tokenizer, joined, return_offsets_mapping=True, **cut)
        _check_rows(encoding["input_ids"], sentences, first)
        vectors: dict[int, Tensor] = {}
        left_out = 0
        for batch, hidden_states, _ in self._run(encoding["input_ids"], progress):
            for i, states in zip(batch, hidden_states.cpu()):
                # Tokens that end in no word, such as special tokens, go to an extra last row, which is cut off.
                num_words = len(sentences[i])
                word_of = torch.from_numpy(find_words(sentences[i], encoding["offset_mapping"][i]))
                sums = states.new_zeros(num_words + 1, states.shape[-1]).index_add_(0, word_of, states[: len(word_of)])
                counts = word_of.bincount(minlength=num_words + 1).clamp(min=1)
                vectors[i] = (sums / counts[:, None])[:num_words]
                if len(word_of) >= self.max_length:  # the words after the last one that has tokens may be cut off
                    left_out += num_words - 1 - int(word_of.masked_fill(word_of == num_words, -1).max())
        if left_out:
            logger.warning_once(
                f"{left_out:,} words come after the {self.max_length:,} tokens that the model reads, and have vectors "
                "of zeros: cut their sentences into shorter ones"
            )
        return [vectors[i] for i in range(len(sentences))]

    def _run(self, rows: Sequence[Sequence[int]], progress: Any) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield batches, the longest rows first: indices of rows, hidden states (float32), and attention mask."""
        by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        for begin in range(0, len(rows), self.batch_size):
            batch = by_length[begin : begin + self.batch_size]
            input_ids, mask = (x.to(self.device) for x in pad_batch([rows[i] for i in batch], self.pad_token_id))
            with torch.inference_mode():
                hidden_states = self.forward(input_ids, mask).float()
            yield batch, hidden_states, mask
            progress.update()


@dataclass(frozen=True)
class RaggedEncoder(BatchEncoder):
    """Run texts through a backbone without layers, which computes their vectors itself and without padding.

    Attributes:
        encode_ragged: Maps the token ids of all texts, `[tokens]`, and their numbers of tokens, `[texts]`, to the
            vectors of the texts, `[texts, hidden]`.
        special_token_ids: Ids of tokens that are left out.
        has_assignment: Whether senses were asked for, which only the vectors of words can be replaced by.
    """

    encode_ragged: Callable[[Tensor, Tensor], Tensor] | None = None
    special_token_ids: Sequence[int] = ()
    has_assignment: bool = False

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        if self.long_texts != "truncate":
            raise ValueError(
                f"long_texts={self.long_texts!r}: a model without layers reads texts of any length in one piece; set "
                "a larger max_seq_length in its config"
            )

    def _encode_texts(self, texts: list[Prompted], first: int, progress: Any) -> Tensor:
        if self.has_assignment:
            raise ValueError(
                "assignment: a student without layers makes the vectors of texts without its senses; leave it out, or "
                "call encode_words"
            )
        rows = self._tokenize(texts)
        vectors = []
        for begin in range(0, len(rows), self.batch_size):
            batch = rows[begin : begin + self.batch_size]
            lengths = torch.tensor([len(row) for row in batch])
            input_ids = torch.tensor(list(chain.from_iterable(batch)), dtype=torch.long)
            # Special tokens that are written out in a text do not count, as in `forward`.
            special = torch.isin(input_ids, torch.tensor(self.special_token_ids, dtype=torch.long))
            if special.any():
                text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
                lengths -= torch.bincount(text[special], minlength=len(lengths))
                input_ids = input_ids[~special]
            if not lengths.all():
                empty = begin + int((lengths == 0).nonzero()[0])
                raise ValueError(f"text {first + empty} ({texts[empty]!r}) has no tokens: there is nothing to encode")
            with torch.inference_mode():
                encode = cast(Callable[[Tensor, Tensor], Tensor], self.encode_ragged)
                vectors.append(encode(input_ids.to(self.device), lengths.to(self.device)).float().cpu())
            progress.update()
        return torch.cat(vectors)

    def _tokenize(self, texts: list[Prompted]) -> list[list[int]]:
        """Return the token ids of each text that count, without the special tokens around them."""
        if self.prompt is None and all(isinstance(text, str) for text in texts):
            # The longest row of other models includes special tokens, so that texts are cut at the same place.
            longest = max(1, self.max_length - self.tokenizer.num_special_tokens_to_add())
            if not self.tokenizer.is_fast:
                cut = {"truncation": True, "max_length": longest}
                return list(tokenize(self.tokenizer, texts, add_special_tokens=False, **cut)["input_ids"])
            # A fifth faster than through `tokenizer`, as nobody asks for the characters of each token.
            with private_copy(self.tokenizer) as tokenizer:
                backend: Any = tokenizer.backend_tokenizer
                backend.no_padding()
                backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
                backend.enable_truncation(longest, direction=tokenizer.truncation_side)
                rows = backend.encode_batch_fast(texts, add_special_tokens=False)
            num_cut, ids = sum(bool(row.overflowing) for row in rows), [row.ids for row in rows]
        else:
            prompted = (self.prompt or Prompt()).tokenize(self.tokenizer, texts, self.max_length)
            num_cut = sum(row.is_cut for row in prompted)
            ids = [row.input_ids[row.begin : row.end] for row in prompted]
        if num_cut:
            _warn_of_cut(num_cut, len(ids), self.max_length, "a larger max_seq_length in its config")
        return ids


def _warn_of_cut(cut: int, texts: int, max_length: int, way_out: str) -> None:
    """Warn once that texts were truncated, and say what reads all of them."""
    logger.warning_once(
        f"{cut:,} of {texts:,} texts are longer than {max_length:,} tokens, and what comes after these is left out; "
        f"{way_out} reads all of it"
    )


def _check_rows(rows: Sequence[Sequence[int]], texts: Sequence[Any], first: int) -> None:
    """Raise a ValueError if a text has no tokens; `first` is the number of the first text."""
    for number, row in enumerate(rows):
        if not row:
            raise ValueError(f"text {first + number} ({texts[number]!r}) has no tokens: there is nothing to encode")


def _check_sentences(sentences: Sequence[Any], first: int = 0) -> None:
    """Raise a ValueError if a sentence is not a list of strings; `first` is the number of the first sentence."""
    for number, sentence in enumerate(sentences, first):
        if isinstance(sentence, str) or not isinstance(sentence, Iterable):
            kind = "one string" if isinstance(sentence, str) else type(sentence).__name__
            raise ValueError(f"sentence {number} is {kind}: pass each sentence as a list of words")
        for word in sentence:
            if not isinstance(word, str):
                raise ValueError(f"sentence {number} has a word of type {type(word).__name__}: pass strings")
            check_unicode(word, f"a word of sentence {number}")
