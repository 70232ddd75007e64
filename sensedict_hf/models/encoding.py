"""Token ids -> padded batches -> vectors of sentences and of words."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from .prompts import Prompt, Prompted
from .tokenizers import check_offsets

POOLINGS = ("mean", "weighted_mean", "cls", "last", "max")


def padding_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """What to pad with: the tokenizer's padding, unless it has none or the model has no embedding for it; it is masked anyway."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None or pad >= model.get_input_embeddings().num_embeddings else pad


def pad_batch(rows: Sequence[Sequence[int] | np.ndarray], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Pads on the right: `input_ids` and `attention_mask`, both `[rows, longest]`, int64."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(mask.shape, pad_token_id)
    input_ids[mask] = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    return input_ids, mask.long()


def pool(hidden_states: Tensor, attention_mask: Tensor, pooling: str = "mean", pooled: Tensor | None = None) -> Tensor:
    """`[batch, positions, hidden] x [batch, positions] -> [batch, hidden]`, over the positions whose mask is not 0.

    `mean` is the mean of all positions, `weighted_mean` that with weights 1, 2, 3 ... from the first to the last, `max` the largest
    value per dimension, `cls` the first position and `last` the last.

    Args:
        pooled: `[batch, positions]`, a part of the mask, the only positions that means and `max` are of.

    Raises:
        ValueError: unknown pooling, or a row without positions.
    """
    check_pooling(pooling)
    mask = attention_mask.bool() if pooled is None or pooling in ("cls", "last") else pooled.bool()
    if not mask.any(1).all():
        raise ValueError(
            f"row {int((~mask.any(1)).nonzero()[0])} of the batch has no tokens: there is nothing to pool"
        )
    if pooling in ("mean", "weighted_mean"):  # in float32: sums of many weights or states overflow in half precision
        weights = (mask if pooling == "mean" else mask.cumsum(1) * mask).float()
        mean = (hidden_states.float() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        return mean.to(hidden_states.dtype)
    if pooling == "max":
        return hidden_states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    place = torch.arange(mask.shape[1], device=mask.device).masked_fill(
        ~mask, mask.shape[1] if pooling == "cls" else -1
    )
    place = place.amin(1) if pooling == "cls" else place.amax(1)
    return hidden_states[torch.arange(len(place), device=place.device), place]


def check_pooling(pooling: str) -> None:
    """Raises a ValueError if there is no such pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)} with pooling=")


def encode_texts(
    forward: Callable[[Tensor, Tensor], Tensor],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Prompted],
    *,
    pad_token_id: int,
    pooling: str,
    max_length: int,
    batch_size: int,
    device: torch.device,
    prompt: Prompt | None = None,
    show_progress: bool = True,
) -> Tensor:
    """Sentence vectors `[texts, hidden]`, float32 on the CPU; `forward` maps ids and mask to hidden states. Longer texts are truncated.

    Raises:
        ValueError: one string instead of a list.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts is one string ({texts[:40]!r}...): pass a list of strings")
    if hasattr(texts, "columns"):
        raise ValueError(f"texts is a {type(texts).__name__}: pass a list of strings")
    texts = list(texts)
    if prompt is None:
        has_instructions = any(not isinstance(text, str) for text in texts)
        prompt = Prompt() if has_instructions else Prompt(pooled="all")
    prompted = prompt.tokenize(tokenizer, texts, max_length)
    rows = [row.input_ids for row in prompted]
    vectors: dict[int, Tensor] = {}
    for batch, hidden_states, mask in _batches(forward, rows, texts, pad_token_id, batch_size, device, show_progress):
        begin, end = (torch.tensor([prompted[i][side] for i in batch], device=mask.device)[:, None] for side in (1, 2))
        place = torch.arange(mask.shape[1], device=mask.device)
        vectors.update(zip(batch, pool(hidden_states, mask, pooling, (place >= begin) & (place < end)).cpu()))
    return torch.stack([vectors[i] for i in range(len(rows))]) if rows else torch.empty(0, 0)


def encode_words(
    forward: Callable[[Tensor, Tensor], Tensor],
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    pad_token_id: int,
    max_length: int,
    batch_size: int,
    device: torch.device,
    show_progress: bool = True,
) -> list[Tensor]:
    """Vectors of the words of sentences that come as lists of words: `[words, hidden]` each, float32 on the CPU.

    A sentence is read as its words with spaces between them. A word's vector is the mean over the tokens that end in it; a word without
    tokens, or behind `max_length` tokens, has zeros.

    Raises:
        ValueError: a string instead of a list of words, a sentence without tokens, or a tokenizer that does not tell which characters its
            tokens cover.
    """
    sentences = list(sentences)
    if any(isinstance(sentence, str) for sentence in sentences):
        raise ValueError("a sentence is one string: pass each sentence as a list of words")
    check_offsets(tokenizer)
    if not sentences:
        return []
    # Not by `is_split_into_words`, for which tokenizers that know a word by the space before it lose that space.
    joined = [" ".join(sentence) for sentence in sentences]
    encoding = tokenizer(joined, truncation=True, max_length=max_length, return_offsets_mapping=True)
    vectors: dict[int, Tensor] = {}
    for batch, hidden_states, _ in _batches(
        forward, encoding["input_ids"], sentences, pad_token_id, batch_size, device, show_progress
    ):
        for i, states in zip(batch, hidden_states.cpu()):
            # Special tokens are of no word: they go to a row of their own behind the last, which is cut off.
            num_words = len(sentences[i])
            word_of = torch.from_numpy(_words_of(sentences[i], encoding["offset_mapping"][i]))
            sums = torch.zeros(num_words + 1, states.shape[-1]).index_add_(0, word_of, states[: len(word_of)])
            vectors[i] = (sums / word_of.bincount(minlength=num_words + 1).clamp(min=1)[:, None])[:num_words]
    return [vectors[i] for i in range(len(sentences))]


def _words_of(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The number of the word in which each token ends, by the characters that it covers of the words with spaces between them; of one
    that ends in none the number of words."""
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    ends = lengths.cumsum() + np.arange(len(words))
    first, last = np.array(offsets).reshape(-1, 2).T - [[0], [1]]
    begun = np.searchsorted(ends - lengths, last, side="right")  # how many words have begun where the token ends
    is_inside = (last >= first) & (last < np.append(0, ends)[begun])
    return np.where(is_inside, begun - 1, len(words))


def _batches(
    forward: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[Sequence[int]],
    texts: Sequence[Prompted],
    pad_token_id: int,
    batch_size: int,
    device: torch.device,
    show_progress: bool,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Runs `forward` over token ids, the longest first: which rows, their hidden states in float32, and their mask."""
    empty = [number for number, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(f"text {empty[0]} ({texts[empty[0]]!r}) has no tokens: there is nothing to encode")
    by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    quiet = not show_progress or len(rows) <= batch_size
    for begin in tqdm(range(0, len(rows), batch_size), desc="Encoding", unit=" batches", leave=False, disable=quiet):
        batch = by_length[begin : begin + batch_size]
        input_ids, mask = (x.to(device) for x in pad_batch([rows[i] for i in batch], pad_token_id))
        with torch.inference_mode():
            hidden_states = forward(input_ids, mask).float()
        yield batch, hidden_states, mask
