"""Texts -> token ids and the senses that the teacher picks for them, as a data set.

The teacher runs once. Parts of the texts are encoded one by one, each into a file of its own, so that any number of processes can take
part and an interrupted call goes on where it was.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, Sequence, Value, concatenate_datasets, load_from_disk
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.logging import tqdm

from ..building.corpus import open_corpus, read_progress, tokenize_in_memory
from ..building.gathering import chunks, teacher_vectors
from ..building.planning import read_corpus
from ..building.settings import Source
from ..building.windows import TokenizedCorpus
from ..building.workspace import BuildFolder, broadcast, process_state
from ..data import Texts, iterate_texts
from ..models.encoding import pad_batch
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.prompts import Prompt
from ..models.teachers import Teacher, check_teacher, load_teacher
from ..models.tokenizers import check_max_length

logger = logging.get_logger(__name__)
IGNORED = -100  # a position that is not counted; Trainer knows this value
LABEL_SETTINGS = ("senses", "tokenizer", "top_k", "temperature", "only_tokens")
PART_TOKENS = 1 << 17  # of a part, and how much of the teacher's work an interruption may lose


def encode_senses(
    teacher: str | os.PathLike | PreTrainedModel | Teacher,
    senses: SenseEmbeddingModel,
    texts: Texts,
    *,
    output_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    text_column: str = "text",
    max_length: int | None = None,
    batch_size: int = 32,
    top_k: int = 1,
    temperature: float = 0.15,
    only_tokens: bool = False,
) -> Dataset:
    """Runs the teacher once over the texts and keeps which sense it picks at every position.

    Args:
        output_dir: where the data set is stored, to be loaded by `datasets.load_from_disk`. The same call goes on with one that was
            interrupted there, and loads one that is finished; under `accelerate launch` or `torchrun` all processes share the
            work. Default: in memory.
        overwrite: replaces the data set of other texts or settings in `output_dir`.
        max_length: longest row in tokens (default: what the teacher takes, at most 512); longer texts become several overlapping
            rows, in which every position is counted once.
        top_k: 1 keeps the best sense (hard labels); more also the probabilities of so many (soft labels), under the posterior at
            `temperature`, in units of the dictionary's distortion.
        only_tokens: leaves the teacher out; all senses are unknown.

    Returns:
        A data set with a row for each window: `input_ids`, and `labels` of the same length, 16 bits each: the sense among the token's
        own, -1 where it has none or is not known, -100 where the position is counted in another row. With `top_k` also `sense_ids`
        and `probabilities`, `top_k` for each position, one position behind the other.

    Raises:
        ValueError: the dictionary is not the teacher's, or `output_dir` holds something else.
    """
    state = process_state()
    teacher = load_teacher(teacher, device=state.device if state.num_processes > 1 else None)
    check_teacher(senses, teacher)
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: it must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    is_keyed = senses.config.teacher_tokenizer_fingerprint is not None
    tokenizer = senses.tokenizer if is_keyed else teacher.tokenizer
    max_length = check_max_length(max_length, tokenizer.model_max_length if is_keyed else teacher.max_window)
    if output_dir is None and state.num_processes > 1:
        raise ValueError("give output_dir: several processes need a common folder")
    source = Source.of(teacher, tokenizer, max_length=max_length)
    settings = {
        **source.origin.record(),
        "layer": senses.config.layer,
        "senses": senses.fingerprint(),
        "batch_size": batch_size,
        "top_k": top_k,
        "temperature": temperature if top_k > 1 else None,
        "only_tokens": only_tokens,
    }
    with TemporaryDirectory(prefix="sensedict-") if output_dir is None else nullcontext(output_dir) as path:
        folder = BuildFolder(Path(path), "data set", settings, overwrite)

        def begin() -> bool:
            _check_weights(senses, settings["teacher_fingerprint"])
            return read_corpus(folder, source, texts, text_column) is not None

        with folder.locked():
            if broadcast(begin):
                _encode(folder, teacher, senses, tokenizer, settings)
            state.wait_for_everyone()
        return load_from_disk(path, keep_in_memory=output_dir is None)


def _check_weights(senses: SenseEmbeddingModel, fingerprint: str) -> None:
    """Warns if a teacher's weights are not those that a dictionary was built from: their names may be the same, as those of checkpoints."""
    built_from = senses.config.base_model_fingerprint
    if built_from is not None and built_from.rpartition("-")[2] != fingerprint.rpartition("-")[2]:
        logger.warning_once(
            f"the dictionary was built from {senses.config.base_model_name_or_path} with other weights, or in another dtype: if it is not "
            "the same model, its senses mean nothing"
        )


def _encode(
    folder: BuildFolder,
    teacher: Teacher,
    senses: SenseEmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
) -> None:
    """The stages that all processes share, and the last one."""
    state, stages = process_state(), folder.stages
    corpus = open_corpus(
        stages / "corpus", tokenizer, teacher.tokenizer if settings["teacher_tokenizer"] else None, teacher.prompt
    )
    parts = list(chunks(corpus.shown, PART_TOKENS))
    paths = [stages / f"part-{number:05d}.arrow" for number in range(len(parts))]
    mine = range(state.process_index, len(parts), state.num_processes)
    sizes = [int(corpus.shown.offsets[last] - corpus.shown.offsets[first]) for first, last in parts]
    with tqdm(total=sum(sizes[number] for number in mine), desc="Encoding senses", unit=" tokens", leave=False) as bar:
        for number in mine:
            if not paths[number].exists():
                dataset = _encode_part(teacher, senses, corpus, parts[number], settings)
                partial = paths[number].with_suffix(".partial")
                with ArrowWriter(path=str(partial), features=dataset.features) as writer:
                    writer.write_table(dataset.data.table)
                    writer.finalize()
                partial.replace(paths[number])
            bar.update(sizes[number])
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder.ready, ignore_errors=True)
        dataset = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
        dataset.info.description = json.dumps({name: settings[name] for name in LABEL_SETTINGS})
        dataset.save_to_disk(folder.ready)
        folder.publish(read_progress(stages / "corpus").sha256)


def label_settings(dataset: Dataset) -> dict[str, Any]:
    """What the labels of a data set of [`encode_senses`] were made with; nothing for any other."""
    try:
        settings = json.loads(dataset.info.description)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) and settings.keys() == set(LABEL_SETTINGS) else {}


def stream_windows(
    texts: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    text_column: str,
    prompt: Prompt | None = None,
    *,
    is_shared: bool = False,
) -> IterableDataset:
    """The rows of [`encode_senses`] with `only_tokens`, one by one as the texts come.

    Args:
        is_shared: by several processes, which then take turns at its batches; the files of a stream, which accelerate would give them
            instead, are of different lengths, so that they would come to the end of an epoch at different steps.
    """

    def rows(batch: dict[str, list[str]]) -> dict[str, list[np.ndarray]]:
        corpus = tokenize_in_memory(list(iterate_texts(batch[text_column])), tokenizer, prompt)
        return window_rows(corpus, max_length, 0, len(corpus), np.full(len(corpus.input_ids), -1))

    windows = texts.select_columns([text_column]).map(rows, batched=True, batch_size=100, remove_columns=[text_column])
    return IterableDataset.from_generator(_iterate, gen_kwargs={"rows": windows}) if is_shared else windows


def _iterate(rows: IterableDataset) -> Iterator[dict[str, list[int]]]:
    yield from rows


def _encode_part(
    teacher: Teacher,
    senses: SenseEmbeddingModel,
    corpus: TokenizedCorpus,
    part: tuple[int, int],
    settings: dict[str, Any],
) -> Dataset:
    """The rows of some texts."""
    begin, end = corpus.offsets[list(part)]
    top_k = settings["top_k"]
    sense_ids, probabilities = np.full((end - begin, top_k), -1), np.zeros((end - begin, top_k), dtype=np.float16)
    if not settings["only_tokens"]:
        length = settings["max_length"]
        if corpus.alignment is not None:  # that is the student's; the teacher's as in the making of the dictionary
            length = senses.config.window_length or check_max_length(None, teacher.max_window)
        for positions, vectors in teacher_vectors(
            teacher, corpus, *part, layer=senses.config.layer, max_length=length, batch_size=settings["batch_size"]
        ):
            tokens = torch.from_numpy(corpus.input_ids[positions].astype(np.int64)).to(senses.device)
            found = senses.posterior(tokens, vectors.to(senses.device), None, settings["temperature"] or 1.0, top_k)
            sense_ids[positions - begin], probabilities[positions - begin] = (tensor.cpu().numpy() for tensor in found)
    columns = window_rows(
        corpus, settings["max_length"], *part, sense_ids[:, 0], *(() if top_k == 1 else (sense_ids, probabilities))
    )
    number = Value("int16" if int(senses.offsets.diff().max()) < 1 << 15 else "int32")
    kinds = {"input_ids": Value("int32"), "labels": number, "sense_ids": number, "probabilities": Value("float16")}
    return Dataset.from_dict(columns, features=Features({name: Sequence(kinds[name]) for name in columns}))


def window_rows(
    corpus: TokenizedCorpus, max_length: int, first: int, last: int, labels: np.ndarray, *posterior: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """The columns for the texts `first:last`: their windows, with what is known of each position of them."""
    windows = corpus.windows(max_length, first, last)
    names = ("input_ids", "labels", *("sense_ids", "probabilities")[: len(posterior)])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for text, start, stop, own_start, own_stop in zip(*vars(windows).values()):
        begin, end = corpus.offsets[text : text + 2]
        places = corpus.window_positions(text, start, stop)
        if not len(places):
            continue  # an empty text of a tokenizer without special tokens
        owned = (places >= begin + own_start) & (places < begin + own_stop)
        owned &= (places >= begin + corpus.unpooled[0]) & (places < end - corpus.unpooled[1])
        there = places - corpus.offsets[first]
        columns["input_ids"].append(corpus.input_ids[places])
        columns["labels"].append(np.where(owned, labels[there], IGNORED))
        for name, values in zip(names[2:], posterior):
            columns[name].append(values[there].ravel())
    return columns


@dataclass
class Collator:
    """Makes a batch of what [`encode_senses`] returns. Not a method of the trainer, as it is sent to the processes that load data.

    Attributes:
        pad_token_id: what to pad with. has_senses: `[vocabulary]`, bool, of which tokens alone something can be learned (None: of all).
        is_labelled: whether all labels are there; else the teacher tells them beside.
    """

    pad_token_id: int
    has_senses: Tensor | None
    is_labelled: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` and `owned` (the positions that are this row's, not a neighbouring window's),
        `[rows, longest]`; of soft labels also `sense_ids` and `probabilities`, `[rows, longest, top_k]`."""
        input_ids, mask = pad_batch([row["input_ids"] for row in rows], self.pad_token_id)
        labels = pad_sequence([torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows], True, IGNORED)
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "owned": labels != IGNORED}
        if self.has_senses is not None:
            known = self.has_senses[input_ids]
            batch["labels"] = labels.masked_fill(~(known & (labels >= 0) if self.is_labelled else known), IGNORED)
        for name, filling in (("sense_ids", -1), ("probabilities", 0)) if "sense_ids" in rows[0] else ():
            values = [torch.as_tensor(row[name]).view(len(row["labels"]), -1) for row in rows]
            batch[name] = pad_sequence(values, True, filling)
        return batch
