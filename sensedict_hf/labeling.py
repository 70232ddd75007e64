"""Texts -> token ids and the senses that the teacher picks for them, as a data set."""

from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import Dataset
from transformers.utils.logging import tqdm

from .corpus import Texts, check_max_length, tokenize_corpus
from .encoding import pad_batch
from .modeling_sense_embedding import SenseEmbeddingModel
from .modeling_skd_student import check_teacher
from .teachers import Teacher

IGNORED = -100  # a position that is not counted; Trainer knows this value


def encode_senses(
    teacher: Teacher,
    senses: SenseEmbeddingModel,
    texts: Texts,
    *,
    text_column: str = "text",
    max_length: int | None = None,
    batch_size: int = 32,
    only_tokens: bool = False,
) -> Dataset:
    """Runs the teacher once over the texts and keeps which sense it picks at every position.

    Args:
        max_length: longest row in tokens (default: what the teacher takes, at most 512); longer texts become several overlapping
            rows, in which every position is counted once.
        only_tokens: leaves the teacher out; all senses are unknown.

    Returns:
        A data set with a row for each window: `input_ids`, and `labels` of the same length: the sense among the token's own, -1 where
        it has none or is not known, -100 where the position is counted in another row.
    """
    check_teacher(senses, teacher)
    max_length = check_max_length(max_length, teacher.max_window)
    with TemporaryDirectory(prefix="sensedict-") as folder:
        corpus = tokenize_corpus(texts, teacher.tokenizer, folder, text_column=text_column)
        windows = corpus.windows(max_length)
        input_ids = [corpus.window_ids(*window) for window in zip(windows.text, windows.start, windows.stop)]
    labels = [np.full(len(ids), -1, dtype=np.int32) for ids in input_ids]
    longest_first = np.argsort([-len(ids) for ids in input_ids], kind="stable")
    longest_first = longest_first[: sum(len(ids) > 0 for ids in input_ids)]
    steps = range(0, 0 if only_tokens else len(longest_first), batch_size)
    for begin in tqdm(steps, desc="Encoding senses", unit=" batches", leave=False):
        batch = longest_first[begin : begin + batch_size]
        ids, mask = (x.to(teacher.device) for x in pad_batch([input_ids[index] for index in batch], teacher.pad_token_id))
        hidden = teacher.hidden_states(ids, mask, senses.config.layer)
        with torch.inference_mode():
            sense_ids = senses(ids, hidden, mask, "hard").sense_ids.cpu().numpy()
        for row, index in enumerate(batch):
            labels[index] = sense_ids[row, : len(input_ids[index])].astype(np.int32)
    for index in np.flatnonzero((windows.own_stop - windows.own_start) < [len(ids) for ids in input_ids]):
        labels[index][: windows.own_start[index] - windows.start[index]] = IGNORED
        labels[index][windows.own_stop[index] - windows.start[index] :] = IGNORED
    rows = [index for index, ids in enumerate(input_ids) if len(ids)]  # an empty text of a tokenizer without special tokens
    return Dataset.from_dict({"input_ids": [input_ids[row] for row in rows], "labels": [labels[row] for row in rows]})
