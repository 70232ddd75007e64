"""Rows of token ids and labels, and the batches made from them."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..building.corpus import tokenize_in_memory
from ..building.windows import TokenizedCorpus
from ..data import iterate_texts
from ..models.configuration_sense_embedding import SenseEmbeddingConfig
from ..models.encoding import pad_batch
from ..models.prompts import Prompt
from .losses import IGNORED
from .training_args import SKDTrainingArguments

# Texts of a stream that are tokenized together.
TEXTS_AT_ONCE = 100


def window_rows(
    corpus: TokenizedCorpus, max_length: int, first: int, last: int, labels: np.ndarray, *posterior: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """Cut texts into rows: one for each window, with the labels of its positions.

    Args:
        corpus: The texts.
        max_length: Longest row in tokens.
        first: The first text.
        last: The text after the last one.
        labels: `[positions]`, for all positions of these texts.
        posterior: For soft labels: sense ids and probabilities, both `[positions, top_k]`.

    Returns:
        The columns `input_ids` and `labels`; for soft labels also `sense_ids` and `probabilities`.
    """
    windows = corpus.windows(max_length, first, last)
    names = ("input_ids", "labels", *("sense_ids", "probabilities")[: len(posterior)])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for text, start, stop, own_start, own_stop in zip(*vars(windows).values()):
        begin, end = corpus.offsets[text : text + 2]
        places = corpus.window_positions(text, start, stop)
        if not len(places):
            continue  # an empty text, and a tokenizer without special tokens
        # A row owns its own part of a window, without the tokens of a prompt.
        owned = (places >= begin + own_start) & (places < begin + own_stop)
        owned &= (places >= begin + corpus.unpooled[0]) & (places < end - corpus.unpooled[1])
        if corpus.shift:
            # The row must show the next token too. The last token of a text has none, and counts like an unknown one.
            owned &= np.append(np.diff(places) == 1, places[-1] == end - 1)
        there = places - corpus.offsets[first]
        columns["input_ids"].append(corpus.input_ids[places])
        columns["labels"].append(np.where(owned, labels[there], IGNORED))
        for name, values in zip(names[2:], posterior):
            columns[name].append(values[there].ravel())
    return columns


def stream_windows(
    texts: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    text_column: str,
    prompt: Prompt | None = None,
    *,
    is_endless: bool = False,
) -> IterableDataset:
    """Encode texts as they come, into the rows that :func:`encode_senses` makes with `only_tokens`.

    The rows are one stream, also if the texts are many files. So several processes take turns at its batches.

    Args:
        texts: The stream.
        tokenizer: The teacher's.
        max_length: Longest row in tokens.
        text_column: Name of the text column.
        prompt: The teacher's.
        is_endless: Whether the stream begins again when it ends, in the order of the next epoch. `Trainer` takes all
            steps on a stream for one epoch: it would drop the batches of an accumulation that an end cuts off, and
            resume at another batch.
    """
    # A copy, as the number of the epoch is kept in it.
    source = {"texts": copy.copy(texts), "tokenizer": tokenizer, "max_length": max_length, "text_column": text_column}
    settings = {**source, "prompt": prompt, "is_endless": is_endless}
    return IterableDataset.from_generator(_stream_rows, gen_kwargs=settings)


def _stream_rows(
    texts: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    text_column: str,
    prompt: Prompt | None,
    is_endless: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of :func:`stream_windows`."""
    is_empty = False
    for epoch in count() if is_endless else (0,):
        if is_empty:
            return  # a stream that can be read once
        texts.set_epoch(epoch)
        source, is_empty = iterate_texts(texts, text_column), True
        while some := list(islice(source, TEXTS_AT_ONCE)):
            corpus = tokenize_in_memory(some, tokenizer, prompt)
            columns = window_rows(corpus, max_length, 0, len(corpus), np.full(len(corpus.input_ids), -1))
            for row in zip(*columns.values()):
                is_empty = False
                yield dict(zip(columns, row))


def row_lengths(dataset: Any) -> list[int]:
    """Return the number of tokens in each row of a dataset."""
    if not isinstance(dataset, Dataset):
        return [len(row["input_ids"]) for row in dataset]
    rows = dataset.select_columns("input_ids").with_format("arrow")[:]
    lengths: list[int] = pyarrow.compute.list_value_length(rows["input_ids"]).to_pylist()
    return lengths


class LengthGroups(LengthGroupedSampler):
    """Draws rows in an order that puts rows of about the same length into one batch. So little is padding.

    The order depends on the seed and the epoch alone. So a training that was interrupted goes on in the same order.

    Args:
        lengths: Number of tokens in each row.
        size: Rows of a batch.
        seed: The seed.
        epoch: Returns the number of the epoch.
    """

    def __init__(self, lengths: list[int], size: int, seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(size, lengths=lengths, generator=torch.Generator())
        self._seed, self._epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed + self._epoch())
        return iter(super().__iter__())


def length_groups(
    dataset: Any, size: int, args: SKDTrainingArguments, epoch: Callable[[], int]
) -> LengthGroups | None:
    """Return the sampler of batches with texts of similar length; None if the settings do not ask for it.

    Args:
        dataset: The rows. Those of a stream come in their own order.
        size: Rows of a batch.
        args: The settings.
        epoch: Returns the number of the epoch.
    """
    if args.train_sampling_strategy != "group_by_length":
        return None
    return LengthGroups(row_lengths(dataset), size, args.seed if args.data_seed is None else args.data_seed, epoch)


@dataclass
class Collator:
    """Makes batches from the rows of :func:`encode_senses`.

    It is a class of its own so that it can be sent to the processes of a data loader.

    Attributes:
        pad_token_id: Token id of padding.
        senses: Config of the dictionary.
        has_senses: `[vocab]`, True for tokens with senses; positions with other tokens are not counted. None: all are
            counted.
        is_labelled: Whether the rows hold the teacher's senses. Otherwise they are computed at every step.
    """

    pad_token_id: int
    senses: SenseEmbeddingConfig
    has_senses: Tensor | None
    is_labelled: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad rows to a batch.

        Returns:
            `input_ids`, `attention_mask`, `labels` (-100: not counted) and `owned` (False: padding, or the position
            belongs to another row), all `[rows, longest]`. With soft labels also `sense_ids` and `probabilities`,
            `[rows, longest, top_k]`; with the teacher's vectors also `vectors`, `[rows, longest, hidden]`, float32.
        """
        input_ids, mask = pad_batch([row["input_ids"] for row in rows], self.pad_token_id)
        labels = pad_sequence([torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows], True, IGNORED)
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "owned": labels != IGNORED}
        # Count only positions from which something can be learned.
        if self.has_senses is not None:
            tokens, key_mask = self.senses.key_tokens(input_ids, mask)
            known = self.has_senses[tokens] & (key_mask != 0)
            batch["labels"] = labels.masked_fill(~(known & (labels >= 0) if self.is_labelled else known), IGNORED)
        for name, filling in (("sense_ids", -1), ("probabilities", 0)):
            if name in rows[0]:
                batch[name] = pad_sequence(_by_position(rows, name), True, filling)
        return {**batch, **pad_vectors(rows)}


def pad_vectors(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad the teacher's vectors, if the rows have them: `vectors`, `[rows, longest, hidden]`, float32."""
    if "vectors" not in rows[0]:
        return {}
    return {"vectors": pad_sequence(_by_position(rows, "vectors"), True).float()}


def _by_position(rows: list[dict[str, Any]], name: str) -> list[Tensor]:
    """Return a column of each row, `[positions, numbers of a position]`."""
    return [torch.as_tensor(row[name]).view(len(row["labels"]), -1) for row in rows]
