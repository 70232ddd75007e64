"""Encodes texts as datasets of token ids and of the senses that the teacher picks.

The texts are encoded in parts, each into a file of its own. So several processes can share the work, and an
interrupted call continues where it stopped.
"""

import json
import os
import shutil
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import (
    Dataset,
    Features,
    LargeList,
    List,
    Sequence,
    Value,
    concatenate_datasets,
    load_from_disk,
)
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..building.corpus import open_corpus, read_progress
from ..building.gathering import teacher_vectors
from ..building.planning import read_corpus
from ..building.settings import Source
from ..building.windows import TokenizedCorpus
from ..building.workspace import BuildFolder
from ..data import Texts
from ..models.arguments import check_flags, check_folder, check_integer, check_number, check_string
from ..models.loading import check_dictionary
from ..models.matching import check_teacher, window_length
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.teachers import Teacher, load_teacher
from ..models.tokenization import check_max_length
from ..processes import broadcast, common_folder, process_state
from .batches import window_rows
from .teacher_runs import check_half, run_teacher, write_parts
from .training_args import MOST_SENSES

logger = logging.get_logger(__name__)
# The settings of labels that a dataset keeps, in its description.
LABEL_SETTINGS = ("senses", "tokenizer", "top_k", "temperature", "only_tokens")


def encode_senses(
    teacher: str | os.PathLike[str] | torch.nn.Module | Teacher,
    senses: SenseEmbeddingModel,
    texts: Texts,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    text_column: str = "text",
    max_length: int | None = None,
    batch_size: int = 32,
    top_k: int = 1,
    temperature: float = 0.15,
    only_tokens: bool = False,
    keep_vectors: bool = False,
) -> Dataset:
    """Run the teacher once over texts and keep the sense that it picks at every position.

    Args:
        teacher: A name, a folder, a model or a :class:`Teacher`: the model that the dictionary was built from.
        senses: The dictionary.
        texts: A list or iterable of strings, or a dataset with a text column.
        output_dir: Folder for the dataset; load it with `datasets.load_from_disk`. The same call continues after an
            interruption, and loads the dataset if it is finished. Processes started by `accelerate launch` or
            `torchrun` share the work. Default: the dataset is held in memory.
        overwrite: Whether to replace a dataset with other texts or settings in `output_dir`.
        text_column: Name of the text column.
        max_length: Longest row in tokens. A longer text becomes several overlapping rows, and each position is counted
            in one of them. Default: what the teacher takes, at most 512.
        batch_size: Texts in a forward pass.
        top_k: Number of senses kept at a position. 1 keeps the best sense (hard labels). More keeps the most probable
            senses and their probabilities (soft labels).
        temperature: Temperature of these probabilities, in units of the dictionary's distortion.
        only_tokens: Whether to keep token ids only, without running the teacher. All labels are then -1.
        keep_vectors: Whether to keep the teacher's vectors instead of labels, in half precision: `2 * hidden` bytes a
            token, and twice as much while they are put together. Any objective can be trained with them.

    Returns:
        A dataset with the columns `input_ids` and `labels`, lists of equal length. A label is the index of the sense
        among the token's own; -1 if the token has no senses or the sense is not known; -100 if the position is counted
        in another row. With `top_k` above 1 also `sense_ids` and `probabilities`, lists of `top_k` entries for each
        position, position after position. With `keep_vectors` also `vectors`, `hidden` numbers for each position.

    Raises:
        ValueError: The dictionary was not built from the teacher, a setting is out of range, `output_dir` holds
            something else, or a vector to be kept is not finite or too large for float16.

    Example:
        >>> from sensedict_hf import encode_senses
        >>> encoded = encode_senses(teacher, senses, texts[:4])
        >>> len(encoded), encoded.column_names
        (4, ['input_ids', 'labels'])
    """
    # Check what can be checked, and load the teacher.
    batch_size, top_k = check_integer("batch_size", batch_size, 1), check_integer("top_k", top_k, 1, MOST_SENSES + 1)
    temperature = check_number("temperature", temperature, above=0)
    check_flags(overwrite=overwrite, only_tokens=only_tokens, keep_vectors=keep_vectors)
    check_string("text_column", text_column)
    check_dictionary(senses)
    if output_dir is not None:
        check_folder("output_dir", output_dir)
    state = process_state()
    teacher = load_teacher(teacher, device=state.device if state.num_processes > 1 else None)
    check_teacher(senses, teacher)
    is_keyed = senses.config.teacher_tokenizer_fingerprint is not None
    if keep_vectors and is_keyed:
        raise ValueError("keep_vectors: the dictionary is for another tokenizer than its teacher's; keep labels")
    tokenizer = senses.tokenizer if is_keyed else teacher.tokenizer
    max_length = check_max_length(max_length, tokenizer.model_max_length if is_keyed else teacher.max_window)
    common_folder(output_dir)
    source = Source.of(teacher, tokenizer, max_length=max_length)
    settings = {
        **source.origin.record(),
        "layer": senses.config.layer,
        "senses": senses.fingerprint(),
        "batch_size": batch_size,
        "top_k": top_k,
        "temperature": temperature if top_k > 1 else None,
        "only_tokens": bool(only_tokens or keep_vectors),
        **({"vectors": "float16"} if keep_vectors else {}),
    }

    # Encode in the folder, or in a temporary one.
    with TemporaryDirectory(prefix="sensedict-") if output_dir is None else nullcontext(output_dir) as path:
        folder = BuildFolder(Path(path), "dataset", settings, overwrite)

        with folder.locked():
            if broadcast(lambda: read_corpus(folder, source, texts, text_column) is not None):
                _encode(folder, teacher, senses, tokenizer, settings)
            state.wait_for_everyone()
        dataset = load_from_disk(path, keep_in_memory=output_dir is None)
    if keep_vectors:
        dataset = dataset.with_format("numpy", columns=["vectors"], output_all_columns=True)  # lists would be slow
    return dataset


def _encode(
    folder: BuildFolder,
    teacher: Teacher,
    senses: SenseEmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
) -> None:
    """Encode the corpus in `folder/building`, part by part in all processes, and publish the dataset."""
    stages = folder.stages
    corpus = open_corpus(
        stages / "corpus", tokenizer, teacher.tokenizer if settings["teacher_tokenizer"] else None, teacher.prompt
    ).keyed_by(senses.config.key)

    def write(part: tuple[int, int], path: Path) -> None:
        _write_part(_encode_part(teacher, senses, corpus, part, settings), path)

    paths = write_parts(corpus.shown, stages, ".arrow", write, "Encoding senses")
    # Put all parts together.
    if process_state().is_main_process:
        shutil.rmtree(folder.ready, ignore_errors=True)
        dataset = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
        names = [*LABEL_SETTINGS, *(["prompt"] if settings.get("prompt") else [])]
        dataset.info.description = json.dumps({name: settings[name] for name in names})
        # By default the fingerprint is a random number. It names what `map` keeps in the cache.
        texts = read_progress(stages / "corpus").sha256
        content = json.dumps([settings, texts], sort_keys=True)
        dataset._fingerprint = sha256(content.encode()).hexdigest()[:16]
        dataset.save_to_disk(folder.ready)
        folder.publish(texts)


def _write_part(dataset: Dataset, path: Path) -> None:
    """Write a dataset to a file, whole or not at all."""
    partial = path.with_suffix(".partial")
    with ArrowWriter(path=str(partial), features=dataset.features) as writer:
        writer.write_table(dataset.data.table)
        writer.finalize()
    partial.replace(path)


def has_labels(dataset: Dataset) -> bool:
    """Return whether a dataset has token ids and a list of labels, as one from :func:`encode_senses` has."""
    return "input_ids" in dataset.features and isinstance(dataset.features.get("labels"), (List, LargeList))


def label_settings(dataset: Dataset) -> dict[str, Any]:
    """Return the settings of the labels in a dataset from :func:`encode_senses`; for any other dataset nothing."""
    try:
        settings = json.loads(dataset.info.description)
    except ValueError:
        return {}
    is_known = isinstance(settings, dict) and settings.keys() - {"prompt"} == set(LABEL_SETTINGS)
    return settings if is_known else {}


def _encode_part(
    teacher: Teacher,
    senses: SenseEmbeddingModel,
    corpus: TokenizedCorpus,
    part: tuple[int, int],
    settings: dict[str, Any],
) -> Dataset:
    """Encode the texts `part[0]:part[1]`."""
    begin, end = corpus.offsets[list(part)]
    top_k = settings["top_k"]
    sense_ids, probabilities = np.full((end - begin, top_k), -1), np.zeros((end - begin, top_k), dtype=np.float16)

    # Let the teacher pick the senses of all positions.
    if not settings["only_tokens"]:
        length = settings["max_length"]
        if corpus.alignment is not None:
            # max_length counts the student's tokens; the teacher reads windows as when the dictionary was built.
            length = window_length(senses, teacher.max_window)
        for positions, vectors in teacher_vectors(
            teacher,
            corpus,
            np.arange(begin, end)[corpus.has_vectors(begin, end)],
            *part,
            layer=senses.config.layer,
            max_length=length,
            batch_size=settings["batch_size"],
        ):
            tokens = torch.from_numpy(corpus.input_ids[positions].astype(np.int64)).to(senses.device)
            found = senses.posterior(tokens, vectors.to(senses.device), None, settings["temperature"] or 1.0, top_k)
            states = positions - corpus.shift - begin
            sense_ids[states], probabilities[states] = (tensor.cpu().numpy() for tensor in found)

    # Cut them into rows.
    columns = window_rows(
        corpus, settings["max_length"], *part, sense_ids[:, 0], *(() if top_k == 1 else (sense_ids, probabilities))
    )
    number = Value("int16" if int(senses.offsets.diff().max()) < 1 << 15 else "int32")
    half = Value("float16")
    kinds = {
        "input_ids": Value("int32"),
        "labels": number,
        "sense_ids": number,
        "probabilities": half,
        "vectors": half,
    }
    if "vectors" in settings:
        columns["vectors"] = _row_vectors(teacher, columns["input_ids"], settings)
    return Dataset.from_dict(columns, features=Features({name: Sequence(kinds[name]) for name in columns}))


def _row_vectors(teacher: Teacher, rows: list[np.ndarray], settings: dict[str, Any]) -> list[np.ndarray]:
    """Run the teacher over rows of token ids, and return its vectors of each, `[positions * hidden]`, float16."""
    vectors: list[np.ndarray] = [np.empty(0, dtype=np.float16)] * len(rows)
    for batch, states, mask in run_teacher(teacher, rows, settings["layer"], settings["batch_size"]):
        check_half(states, mask, teacher.name, [repr(teacher.tokenizer.decode(rows[row][:20])) for row in batch])
        for row, state in zip(batch, states.half().cpu().numpy()):
            vectors[row] = state[: len(rows[row])].ravel()
    return vectors
