"""The teacher's vectors of texts, computed once and kept on disk in half precision.

The texts are encoded in parts, each into a file of its own. So several processes can share the work, and an
interrupted call continues where it stopped.
"""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from ..building.corpus import open_corpus, read_progress
from ..building.manifest import file_entry, read_manifest
from ..building.planning import read_corpus
from ..building.settings import Source
from ..building.tensor_files import write_tensor_file
from ..building.windows import TokenizedCorpus
from ..building.workspace import BuildFolder
from ..data import Texts
from ..models.arguments import check_flag, check_folder, check_integer, check_kind, check_path, check_string
from ..models.encoding import pool
from ..models.files import read_object, write_object
from ..models.layer_free_transfer import MAX_ROWS, TokenStatistics
from ..models.teachers import Teacher, load_teacher
from ..models.tokenization import check_max_length
from ..processes import broadcast, process_state
from .teacher_runs import check_half, run_teacher, write_parts

# Rows from which variances are computed.
SAMPLED_ROWS = 4096
# Vectors that become float32 or float64 at a time.
BLOCK_ROWS = 4096


class Variances(NamedTuple):
    """Mean squared distances of the teacher's vectors from their mean; the units of the errors of a student.

    Attributes:
        token: Of the vectors of tokens.
        text: Of the vectors of texts.
    """

    token: float
    text: float


class TeacherVectors(Dataset):
    """The teacher's vectors of texts, memory-mapped. A row is a text, or a window of a longer text.

    A row has `input_ids`, `[tokens]`, int32, without special tokens; `vectors`, `[tokens, hidden]`, float16, of these
    tokens; and `text_vector`, `[hidden]`, float32, which is pooled over all that the teacher has read.

    Args:
        paths: Folders that :func:`encode_vectors` has finished, with the same settings. Their rows follow each other.

    Attributes:
        paths: The folders.
        settings: The settings that the vectors were computed with.

    Raises:
        ValueError: A folder holds no finished vectors, or a file of it is missing or was changed, or the folders have
            other settings than the first one.

    Example:
        >>> from sensedict_hf import TeacherVectors, encode_vectors
        >>> parts = [encode_vectors(teacher, texts[:4], "vectors"), encode_vectors(teacher, texts[4:9], "more")]
        >>> len(TeacherVectors("vectors", "more"))
        9
    """

    def __init__(self, *paths: str | os.PathLike[str]):
        if not paths:
            raise ValueError("no folders are given: name one or more that encode_vectors has finished")
        self.paths = [check_path("paths", path) for path in paths]
        parts = [part for path in self.paths for part in _finished_parts(path)]
        every: list[dict[str, Any]] = [read_object(path / "state.json") for path in self.paths]
        self.settings = every[0]
        for path, settings in zip(self.paths, every):
            if differing := [name for name in settings if settings[name] != self.settings.get(name)]:
                raise ValueError(
                    f"{path} holds vectors with other settings than {self.paths[0]}: {', '.join(differing)}; compute "
                    "them with the same settings"
                )
        self._parts = [load_file(part) for part in parts]
        self._first_rows = np.cumsum([0, *(len(part["text_vectors"]) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        part, row = self._parts[number], row - int(self._first_rows[number])
        begin, end = part["offsets"][row : row + 2].tolist()
        return {
            "input_ids": part["input_ids"][begin:end],
            "vectors": part["vectors"][begin:end],
            "text_vector": part["text_vectors"][row],
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherVectors, tuple(self.paths)  # processes of a data loader map the files themselves

    def variances(self) -> Variances:
        """Compute the variances from rows that are spread evenly over the texts."""
        rows = self._spread_rows()
        return Variances(*(_variance([row[name] for row in rows]) for name in ("vectors", "text_vector")))

    def token_statistics(self, vocab_size: int) -> TokenStatistics:
        """Return what the vectors say of each token; :meth:`SKDStudentModel.from_vectors` starts with it.

        Args:
            vocab_size: Number of tokens.

        Returns:
            The statistics of all vectors. Those in context are spread evenly over the texts.

        Raises:
            ValueError: The vectors have a token that is not in the vocabulary.

        Example:
            >>> from sensedict_hf import encode_vectors
            >>> statistics = encode_vectors(teacher, texts[:4], "vectors").token_statistics(30522)
            >>> statistics.sums.shape
            torch.Size([30522, 384])
        """
        hidden = self[0]["vectors"].shape[1]
        counts, sums = torch.zeros(vocab_size), torch.zeros(vocab_size, hidden)
        for part in self._parts:
            if len(part["input_ids"]) and not 0 <= part["input_ids"].min() <= part["input_ids"].max() < vocab_size:
                raise ValueError(
                    f"the vectors have tokens from {part['input_ids'].min()} to {part['input_ids'].max()}, the "
                    f"tokenizer from 0 to {vocab_size - 1}: compute the vectors again"
                )
            counts += torch.bincount(part["input_ids"], minlength=vocab_size)
            for ids, vectors in zip(*(part[name].split(BLOCK_ROWS) for name in ("input_ids", "vectors"))):
                sums.index_add_(0, ids, vectors.float())
        # Of each row, the vectors that are kept: every step-th of all, so that the others are not read.
        rows = self._spread_rows()
        begins = np.cumsum([0, *(len(row["input_ids"]) for row in rows)])
        step = -(-int(begins[-1]) // MAX_ROWS)
        kept = [slice(-int(begin) % step, None, step) for begin in begins]
        tokens = torch.cat([row["input_ids"][part] for row, part in zip(rows, kept)]).long()
        vectors = torch.cat([row["vectors"][part] for row, part in zip(rows, kept)]).float()
        return TokenStatistics(counts, sums, tokens, vectors, torch.ones(len(tokens)))

    def _spread_rows(self) -> list[dict[str, Tensor]]:
        """Return up to `SAMPLED_ROWS` rows, spread evenly over the texts."""
        return [self[row] for row in range(0, len(self), -(-len(self) // SAMPLED_ROWS))]


def _finished_parts(folder: Path) -> list[Path]:
    """Return the files of rows in a folder, in the order of the texts.

    Raises:
        ValueError: The folder holds no finished vectors, or a file is missing or has another size.
    """
    manifest = read_manifest(folder, allow_links=True) if (folder / "state.json").is_file() else None
    parts = fnmatch.filter(sorted(manifest.files), "part-*.safetensors") if manifest else []
    if manifest is None or not parts:
        raise ValueError(f"{folder} holds no finished vectors: compute them with encode_vectors")
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        # The vectors can be many gigabytes, so they are not read for a digest.
        if size != entry["size"] or (name not in parts and file_entry(path) != entry):
            raise ValueError(
                f"{path} is {'missing' if size is None else 'not the file that encode_vectors has written'}: compute "
                "the vectors again, with overwrite=True"
            )
    return [folder / name for name in parts]


def _variance(blocks: Sequence[Tensor]) -> float:
    """Return the mean squared distance of vectors from their mean; 1 if they are all the same.

    Args:
        blocks: The vectors, `[n, hidden]` or `[hidden]`, one block after the other.
    """
    width, count = blocks[0].shape[-1], 0
    origin = blocks[0].view(-1, width)[0].double()  # distances from a vector nearby lose no digits
    total = square = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        distances = block.view(-1, width).double() - origin
        total, square, count = total + distances.sum(0), square + distances.square().sum(), count + len(distances)
    mean = total / count
    variance = float(square / count - mean.square().sum())
    return variance if variance > 1e-12 * float((origin + mean).square().sum()) else 1.0


def encode_vectors(
    teacher: str | os.PathLike[str] | torch.nn.Module | Teacher,
    texts: Texts,
    output_dir: str | os.PathLike[str],
    *,
    layer: int = -1,
    special_token_ids: Sequence[int] = (),
    overwrite: bool = False,
    text_column: str = "text",
    max_length: int | None = None,
    batch_size: int = 32,
) -> TeacherVectors:
    """Run the teacher once over texts and keep its vectors, for students without layers.

    A token takes `2 * hidden` bytes on disk.

    Args:
        teacher: A name, a folder, a model or a :class:`Teacher`.
        texts: A list or iterable of strings, or a dataset with a text column.
        output_dir: Folder for the vectors. The same call continues after an interruption, and opens the vectors if
            they are finished. Processes started by `accelerate launch` or `torchrun` share the work.
        layer: Which hidden states are kept; -1 for the last layer.
        special_token_ids: Ids of tokens that the student ignores, wherever they occur. What the tokenizer and the
            teacher's prompt put around a text is left out in any case.
        overwrite: Whether to replace vectors of other texts or settings in `output_dir`.
        text_column: Name of the text column.
        max_length: Longest row in tokens that the teacher reads. A longer text becomes several overlapping rows.
            Default: what the teacher takes, at most 512.
        batch_size: Texts in a forward pass.

    Returns:
        The vectors. Texts without tokens have no row.

    Raises:
        ValueError: A vector is not finite or too large for float16, no text has tokens, a setting is out of range, or
            `output_dir` holds something else.

    Example:
        >>> from sensedict_hf import encode_vectors
        >>> vectors = encode_vectors(teacher, texts[:4], "vectors")
        >>> len(vectors), vectors[0]["text_vector"].shape
        (4, torch.Size([384]))
    """
    # Load the teacher and describe the work.
    batch_size, layer = check_integer("batch_size", batch_size, 1), check_integer("layer", layer)
    check_folder("output_dir", output_dir)
    check_flag("overwrite", overwrite)
    check_string("text_column", text_column)
    check_kind("special_token_ids", special_token_ids, Iterable, "a list of token ids")
    special = sorted(check_integer("special_token_ids", number, 0) for number in special_token_ids)
    state = process_state()
    teacher = load_teacher(teacher, device=state.device if state.num_processes > 1 else None)
    source = Source.of(teacher, max_length=check_max_length(max_length, teacher.max_window))
    settings = {
        **source.origin.record(),
        "vectors": "float16",
        "layer": layer,
        "pooling": teacher.pooling,
        "special_token_ids": special,
        "batch_size": batch_size,
    }
    folder = BuildFolder(Path(output_dir), "dataset", settings, overwrite)

    # Encode what is not there yet.
    with folder.locked():
        if broadcast(lambda: read_corpus(folder, source, texts, text_column) is not None):
            _encode(folder, teacher, settings)
        state.wait_for_everyone()
    return TeacherVectors(output_dir)


def _encode(folder: BuildFolder, teacher: Teacher, settings: dict[str, Any]) -> None:
    """Encode the corpus in `folder/building`, part by part in all processes, and publish the vectors."""
    corpus = open_corpus(folder.stages / "corpus", teacher.tokenizer, None, teacher.prompt)
    folder.ready.mkdir(exist_ok=True)

    def write(part: tuple[int, int], path: Path) -> None:
        write_tensor_file(path, _encode_part(teacher, corpus, part, settings))

    paths = write_parts(corpus, folder.ready, ".safetensors", write, "Encoding texts")
    if process_state().is_main_process:
        if not any(len(load_file(path)["text_vectors"]) for path in paths):
            raise ValueError("none of the texts has tokens other than special ones: there is nothing to learn from")
        for partial in folder.ready.glob("*.partial"):
            partial.unlink()  # an interruption has left it
        write_object(folder.ready / "state.json", settings)
        folder.publish(read_progress(folder.stages / "corpus").sha256)


def _encode_part(
    teacher: Teacher, corpus: TokenizedCorpus, part: tuple[int, int], settings: dict[str, Any]
) -> dict[str, Tensor]:
    """Encode the texts `part[0]:part[1]`: the columns of their rows, see :class:`TeacherVectors`."""
    # Cut the texts into windows, and choose the positions of each that have a part in the student.
    windows = corpus.windows(settings["max_length"], *part)
    shown = [corpus.window_ids(*window) for window in zip(windows.text, windows.start, windows.stop)]
    kept = []
    for ids in shown:
        is_kept = ~np.isin(ids, settings["special_token_ids"])
        is_kept[: corpus.prefix] = is_kept[len(ids) - corpus.suffix :] = False
        kept.append(is_kept)
    rows = np.array([row for row, is_kept in enumerate(kept) if is_kept.any()], dtype=np.int64)
    lengths = np.array([kept[row].sum() for row in rows], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    # Run the teacher.
    hidden = teacher.model.config.get_text_config().hidden_size
    vectors, text_vectors = torch.empty(offsets[-1], hidden, dtype=torch.float16), torch.empty(len(rows), hidden)
    read = [shown[row] for row in rows]
    for places, states, mask in run_teacher(teacher, read, settings["layer"], settings["batch_size"]):
        batch = rows[places]
        check_half(states, mask, teacher.name, windows.text[batch])
        texts = pool(states, mask.to(states.device), teacher.pooling, _pooled(corpus, mask).to(states.device))
        text_vectors[torch.from_numpy(places)] = texts.cpu()
        for place, row, state in zip(places, batch, states.cpu()):
            vectors[offsets[place] : offsets[place + 1]] = state[: len(kept[row])][torch.from_numpy(kept[row])].half()
    token_ids = [shown[row][kept[row]] for row in rows]
    return {
        "input_ids": torch.from_numpy(np.concatenate([*token_ids, np.empty(0)]).astype(np.int32)),
        "offsets": torch.from_numpy(offsets),
        "vectors": vectors,
        "text_vectors": text_vectors,
    }


def _pooled(corpus: TokenizedCorpus, mask: Tensor) -> Tensor:
    """Return the positions of a batch that are pooled: all but those of a prompt that is not pooled."""
    place, (before, after) = torch.arange(mask.shape[1]), corpus.unpooled
    return (place >= before) & (place < mask.sum(1, keepdim=True) - after)
