"""Run the teacher over the planned occurrences and store their vectors on disk, with any number of processes.

The sampling plan says which positions are sampled and in which slot of the store each vector goes. Three steps follow:

1. :func:`plan_windows` cuts the texts into windows, keeps those that own a planned position, and sorts them by length.
2. :func:`gather_samples` splits this list into batches. Process p of n takes the batches p, p + n, p + 2n and so on,
   and writes the vectors into their slots. All processes of one machine map the same file, and no two processes write
   the same slot.
3. The first process copies the slots that other machines have filled into one file, `samples.safetensors`.

The batches depend only on the plan, so the vectors are the same for any number of processes. A batch is marked as done
once its vectors have reached the disk. After an interruption only batches without a mark are run again.
"""

import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file
from transformers.utils.logging import tqdm

from ..models.encoding import pad_batch
from ..models.teachers import Teacher
from .alignment import ranges
from .sampling import SamplingPlan
from .tensor_files import TensorFile, Tensors, create_tensor_file, write_tensor_file
from .windows import TokenizedCorpus

# How many tokens of the corpus are cut into windows at once, and how many numbers are copied at once.
CHUNK = 1 << 20
# After so many seconds, wait for the disk and mark the finished batches. A killed run loses no more than this.
MARK_SECONDS = 10


@dataclass
class PlannedWindows:
    """Windows that own planned positions; all arrays are `[windows]`, int64.

    Attributes:
        text: Index of the text.
        start: First content token that the window shows, as in :class:`Windows`.
        stop: End of the content tokens that the window shows.
        first: Index of the first planned position that the window owns, in the list of planned positions.
        last: Index after the last one.
    """

    text: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: slice | np.ndarray) -> "PlannedWindows":
        return PlannedWindows(*(column[rows] for column in vars(self).values()))


COLUMNS = tuple(PlannedWindows.__dataclass_fields__)


def plan_windows(corpus: TokenizedCorpus, plan: SamplingPlan, max_length: int, directory: Path) -> PlannedWindows:
    """Find the windows that own a planned position, and write them to `windows.safetensors`.

    Args:
        corpus: The texts.
        plan: Which positions are sampled.
        max_length: Length of a window in the teacher's tokens, special tokens included.
        directory: Where the file goes.

    Returns:
        The windows, the longest first; `first:last` are indices into `plan.positions`.
    """
    # Write the windows of all texts, some texts at a time. Negative positions are samples of an earlier plan, and come
    # first.
    rows = directory / "windows.bin"
    earlier = int(np.searchsorted(plan.positions, 0))
    with open(rows, "wb") as file:
        for first_text, last_text in chunks(corpus.shown):
            span = earlier + np.searchsorted(plan.positions[earlier:], corpus.offsets[[first_text, last_text]])
            table = _owning_windows(corpus, plan.positions[slice(*span)], max_length, first_text, last_text)
            table[:, 3:] += span[0]
            table.tofile(file)
    # Sort them by length.
    if rows.stat().st_size:
        table = np.memmap(rows, dtype=np.int64, mode="r").reshape(-1, len(COLUMNS))
        order = np.argsort(table[:, 1] - table[:, 2], kind="stable")
    else:
        table, order = np.empty((0, len(COLUMNS)), dtype=np.int64), np.empty(0, dtype=np.int64)
    partial = directory / "windows.safetensors.partial"
    sorted_file = create_tensor_file(partial, {name: (torch.int64, (len(order),)) for name in COLUMNS})
    for column, name in enumerate(COLUMNS):
        values = sorted_file[name].numpy()
        for begin in range(0, len(order), CHUNK):
            values[begin : begin + CHUNK] = table[order[begin : begin + CHUNK], column]
    sorted_file.flush()
    partial.replace(directory / "windows.safetensors")
    rows.unlink()
    return open_windows(directory)


def open_windows(directory: Path) -> PlannedWindows:
    """Open the windows that :func:`plan_windows` has written.

    Args:
        directory: The folder of the file.

    Returns:
        The windows, memory-mapped.
    """
    file = load_file(directory / "windows.safetensors")
    return PlannedWindows(*(file[name].numpy() for name in COLUMNS))


def gather_samples(
    teacher: Teacher,
    corpus: TokenizedCorpus,
    plan: SamplingPlan,
    windows: PlannedWindows,
    directory: Path,
    *,
    layer: int,
    batch_size: int,
    dtype: torch.dtype,
    largest: float | None = None,
    earlier: Tensors | None = None,
) -> None:
    """Run the teacher over the planned windows and write its vectors to `samples.safetensors`.

    The file holds `samples`, `[samples, hidden]`, in the order of the plan's slots, and the plan's `counts`, `offsets`
    and `priorities`. All processes must call this with the same arguments; it does nothing if the file exists.

    Args:
        teacher: The teacher.
        corpus: The texts.
        plan: Which positions are sampled.
        windows: The windows of :func:`plan_windows`.
        directory: Where the files go.
        layer: Which hidden states are stored; -1 for the last layer.
        batch_size: Number of windows in a batch.
        dtype: The dtype of the stored samples.
        largest: The largest absolute value that a vector may hold. None: the largest of `dtype`.
        earlier: The file of samples that the plan was made with, if any.

    Raises:
        ValueError: A vector is not finite, or one of its values is too large.
        RuntimeError: Another process has failed to do its batches.
    """
    state = PartialState()
    if (directory / "samples.safetensors").exists():
        return
    # One process of each machine creates the files of that machine.
    machine = f"{platform.node()} {uuid.getnode()}"
    names = gather_object([machine])
    hosts = sorted(set(names))
    host = hosts.index(machine)
    store_path, marks_path = directory / f"samples-{host}.safetensors", directory / f"gathered-{host}.safetensors"
    batches = -(-len(windows) // batch_size)
    if names.index(machine) == state.process_index:
        if not store_path.exists():
            marks_path.unlink(missing_ok=True)  # marks of a store that is gone
            probe = torch.zeros(1, 8, dtype=torch.int64, device=teacher.device)
            width = teacher.hidden_states(probe, layer=layer).shape[-1]
            _create_store(store_path, plan, width, dtype, earlier)
        if not marks_path.exists():
            write_tensor_file(marks_path, {"done": torch.zeros(batches, dtype=torch.bool)})
    state.wait_for_everyone()

    # Run the batches of this process that no earlier run has done.
    store, marks = TensorFile(store_path), TensorFile(marks_path)
    done = _marked(directory)
    mine = [batch for batch in range(state.process_index, batches, state.num_processes) if not done[batch]]
    samples, marked_at = store["samples"], time.monotonic()
    unmarked: list[int] = []

    def mark() -> None:
        store.flush()
        marks["done"][unmarked] = True
        unmarked.clear()

    for batch in tqdm(mine, desc="Gathering", unit=" batches", leave=False, disable=not state.is_main_process):
        rows = windows[batch * batch_size : (batch + 1) * batch_size]
        sample, vectors, text = window_vectors(teacher, corpus, rows, plan.positions, layer)
        vectors = vectors.cpu()
        _check(vectors, largest or torch.finfo(dtype).max, teacher.name, text)
        samples[torch.from_numpy(plan.slots[sample])] = vectors.to(samples.dtype)
        unmarked.append(batch)
        if time.monotonic() - marked_at > MARK_SECONDS:
            mark()
            marked_at = time.monotonic()
    mark()

    # When all processes are done, make one file.
    state.wait_for_everyone()
    missing = int((~_marked(directory)).sum())
    if missing:
        raise RuntimeError(f"{missing} batches in {directory} were not gathered: run the same command again")
    if state.is_main_process:
        _join(directory, plan, windows, batch_size)
    state.wait_for_everyone()


def teacher_vectors(
    teacher: Teacher,
    corpus: TokenizedCorpus,
    positions: np.ndarray,
    first_text: int,
    last_text: int,
    *,
    layer: int,
    max_length: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Run the teacher over texts, long ones in windows, and yield its vectors of some tokens.

    Args:
        teacher: The teacher.
        corpus: The texts.
        positions: The positions of the tokens, ascending, all of them in these texts. Each of them has a vector, see
            :meth:`TokenizedCorpus.has_vectors`.
        first_text: Index of the first text.
        last_text: Index after the last text.
        layer: Which hidden states are returned; -1 for the last layer.
        max_length: Length of a window in the teacher's tokens, special tokens included.
        batch_size: Number of windows in a batch.

    Yields:
        For each batch, positions, `[n]`, and their vectors, `[n, hidden]`, float32. Each position comes exactly once,
        in no particular order.

    Raises:
        ValueError: A vector is not finite.
    """
    table = _owning_windows(corpus, positions, max_length, first_text, last_text)
    windows = PlannedWindows(*table[np.argsort(table[:, 1] - table[:, 2], kind="stable")].T)
    for first in range(0, len(windows), batch_size):
        owned, vectors, text = window_vectors(teacher, corpus, windows[first : first + batch_size], positions, layer)
        _check(vectors, torch.finfo(vectors.dtype).max, teacher.name, text)
        yield positions[owned], vectors


def chunks(corpus: TokenizedCorpus, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Split a corpus into ranges of texts: of at most `size` tokens and `size` texts, or of a single longer text.

    Args:
        corpus: The texts.
        size: The limit.

    Yields:
        The index of the first text and the index after the last one.
    """
    first = 0
    while first < len(corpus):
        last = int(np.searchsorted(corpus.offsets, corpus.offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), first + size)
        yield first, last
        first = last


def _owning_windows(
    corpus: TokenizedCorpus, positions: np.ndarray, max_length: int, first_text: int, last_text: int
) -> np.ndarray:
    """Find the windows of some texts that own given positions.

    Args:
        corpus: The texts.
        positions: The positions, ascending, all of them in these texts.
        max_length: Length of a window in the teacher's tokens.
        first_text: Index of the first text.
        last_text: Index after the last text.

    Returns:
        `[windows, 5]`, int64; the columns are the fields of :class:`PlannedWindows`.
    """
    windows = corpus.shown.windows(max_length, first_text, last_text)
    begin, shown = corpus.shown.offsets[windows.text], corpus.first_shown(positions)
    first, last = (np.searchsorted(shown, begin + own) for own in (windows.own_start, windows.own_stop))
    return np.stack([windows.text, windows.start, windows.stop, first, last], axis=1)[last > first].astype(np.int64)


def window_vectors(
    teacher: Teacher, corpus: TokenizedCorpus, windows: PlannedWindows, positions: np.ndarray, layer: int
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Run the teacher over a batch of windows.

    If the teacher has another tokenizer, the vector of a token is the mean over the teacher's tokens that it aligns
    with, as far as its window shows them.

    Args:
        teacher: The teacher.
        corpus: The texts.
        windows: The windows.
        positions: The positions that `first` and `last` of the windows refer to.
        layer: Which hidden states are returned.

    Returns:
        For all positions that the windows own: their indices in `positions`, `[n]`, their vectors, `[n, hidden]`,
        float32, and the index of their text, `[n]`.
    """
    shown = corpus.shown
    text, start, stop = windows.text, windows.start, windows.stop
    ids = [shown.window_ids(*window) for window in zip(text, start, stop)]
    input_ids, mask = (x.to(teacher.device) for x in pad_batch(ids, teacher.pad_token_id))
    hidden = teacher.hidden_states(input_ids, mask, layer)
    # Find the row of each owned position, and the positions in `shown` that its vector comes from.
    owned = ranges(windows.first, windows.last - windows.first)
    row = np.repeat(np.arange(len(windows)), windows.last - windows.first)
    sizes, sources = corpus.all_shown(positions[owned])
    source_row = np.repeat(row, sizes)
    begin = shown.offsets[text] + start  # position p is in column p - begin
    if corpus.alignment is not None:
        # A token may align with tokens after the end of its window. They have no column.
        is_last = stop == shown.offsets[text + 1] - shown.offsets[text] - shown.prefix - shown.suffix
        columns = shown.prefix + stop - start + np.where(is_last, shown.suffix, 0)
        is_shown = sources < (begin + columns)[source_row]
        sizes = np.bincount(np.repeat(np.arange(len(row)), sizes)[is_shown], minlength=len(row))
        sources, source_row = sources[is_shown], source_row[is_shown]
    column = torch.from_numpy(sources - begin[source_row]).to(hidden.device)
    vectors = hidden[torch.from_numpy(source_row).to(hidden.device), column].float()
    if corpus.alignment is not None:
        vectors = torch.segment_reduce(vectors, "mean", lengths=torch.from_numpy(sizes).to(hidden.device))
    return owned, vectors, text[row]


def _check(vectors: torch.Tensor, largest: float, name: str, texts: np.ndarray) -> None:
    """Raise a ValueError if a vector is not finite or too large; `texts`, `[n]`, says which text it is from."""
    found = float(vectors.abs().max()) if len(vectors) else 0.0
    if not np.isfinite(found):
        bad = texts[int((~vectors.isfinite().all(1)).nonzero()[0])]
        raise ValueError(f"{name} yields NaN or infinite vectors for text {bad}: load the teacher in another dtype")
    if found > largest:
        raise ValueError(
            f"{name} yields values up to {found:.3g}, too large for float16: use sample_dtype='float32' and "
            "senses_dtype='bfloat16'"
        )


def _create_store(path: Path, plan: SamplingPlan, width: int, dtype: torch.dtype, earlier: Tensors | None) -> None:
    """Create the file of samples of one machine, with the samples that are taken over from an earlier plan."""
    partial = Path(f"{path}.partial")
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "samples": (dtype, (len(plan.slots), width)),
        "counts": (torch.int64, plan.counts.shape),
        "offsets": (torch.int64, plan.offsets.shape),
        "priorities": (torch.uint64, plan.priorities.shape),
    }
    store = create_tensor_file(partial, shapes)
    for begin in range(0, len(plan.priorities), CHUNK):
        store["priorities"][begin : begin + CHUNK] = torch.from_numpy(plan.priorities[begin : begin + CHUNK])
    store["counts"].copy_(torch.from_numpy(plan.counts))
    store["offsets"].copy_(torch.from_numpy(plan.offsets))
    if earlier is not None:
        kept = int(np.searchsorted(plan.positions, 0))
        step = max(1, CHUNK // width)
        for begin in range(0, kept, step):
            part = slice(begin, min(begin + step, kept))
            before = earlier["samples"][torch.from_numpy(-1 - plan.positions[part])]
            store["samples"][torch.from_numpy(plan.slots[part])] = before
    store.flush()
    partial.replace(path)


def _marked(directory: Path) -> torch.Tensor:
    """Return which batches are done, on any machine, `[batches]`, bool."""
    return torch.stack([load_file(path)["done"] for path in directory.glob("gathered-*.safetensors")]).any(0)


def _join(directory: Path, plan: SamplingPlan, windows: PlannedWindows, batch_size: int) -> None:
    """Copy what the other machines have written into the first file, and rename it to `samples.safetensors`.

    Only batches with a mark are copied: of others a machine that lost its power may have written a part.

    Args:
        directory: The folder of the files.
        plan: The slot of each planned position.
        windows: The windows of :func:`plan_windows`.
        batch_size: Number of windows in a batch.
    """
    first, *others = sorted(directory.glob("samples-*.safetensors"))
    target = TensorFile(first)
    samples = target["samples"]
    for path in others:
        theirs = load_file(path)["samples"]
        done = load_file(directory / path.name.replace("samples", "gathered"))["done"]
        for batch in done.nonzero()[:, 0].tolist():
            rows = windows[batch * batch_size : (batch + 1) * batch_size]
            slots = torch.from_numpy(plan.slots[ranges(rows.first, rows.last - rows.first)])
            samples[slots] = theirs[slots]
    target.flush()
    first.replace(directory / "samples.safetensors")
    for path in others:
        path.unlink()
