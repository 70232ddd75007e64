"""The teacher's vectors of the planned occurrences, written to disk by any number of processes."""

import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.utils.logging import tqdm

from ..models.encoding import pad_batch
from ..models.teachers import Teacher
from .alignment import ranges
from .sampling import SamplingPlan
from .tensor_files import TensorFile, create_tensor_file, write_tensor_file
from .windows import TokenizedCorpus

CHUNK = 1 << 20  # tokens of the corpus whose windows are looked at together, and rows that are copied together
# After so many seconds the disk is waited for and the finished batches are marked: what a killed run may have to do again.
MARK_SECONDS = 10
WINDOW_COLUMNS = ("text", "start", "stop", "first", "last")


def plan_windows(
    corpus: TokenizedCorpus, plan: SamplingPlan, max_length: int, directory: Path
) -> dict[str, np.ndarray]:
    """Chooses the windows that own a planned position, the longest first, and writes them to `windows.safetensors`.

    Returns:
        Arrays `[windows]`: `text`, `start` and `stop` as in [`Windows`], and `first`, `last`: the window owns `positions[first:last]`
        of the plan.
    """
    rows = directory / "windows.bin"
    earlier = int(np.searchsorted(plan.positions, 0))
    with open(rows, "wb") as file:
        for first_text, last_text in chunks(corpus.shown):
            span = earlier + np.searchsorted(plan.positions[earlier:], corpus.offsets[[first_text, last_text]])
            table = _owning_windows(corpus, plan.positions[slice(*span)], max_length, first_text, last_text)
            table[:, 3:] += span[0]
            table.tofile(file)
    if rows.stat().st_size:
        table = np.memmap(rows, dtype=np.int64, mode="r").reshape(-1, 5)
        order = np.argsort(table[:, 1] - table[:, 2], kind="stable")
    else:
        table, order = np.empty((0, 5), dtype=np.int64), np.empty(0, dtype=np.int64)
    partial = directory / "windows.safetensors.partial"
    sorted_file = create_tensor_file(partial, {name: (torch.int64, (len(order),)) for name in WINDOW_COLUMNS})
    for column, name in enumerate(WINDOW_COLUMNS):
        values = sorted_file[name].numpy()
        for begin in range(0, len(order), CHUNK):
            values[begin : begin + CHUNK] = table[order[begin : begin + CHUNK], column]
    sorted_file.flush()
    partial.replace(directory / "windows.safetensors")
    rows.unlink()
    return open_windows(directory)


def chunks(corpus: TokenizedCorpus, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Parts of the corpus, each of one text or of not more than `size` tokens and texts: its first text and the one behind its last."""
    first = 0
    while first < len(corpus):
        last = int(np.searchsorted(corpus.offsets, corpus.offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), first + size)
        yield first, last
        first = last


def _owning_windows(
    corpus: TokenizedCorpus, positions: np.ndarray, max_length: int, first_text: int, last_text: int
) -> np.ndarray:
    """The windows of the texts `first_text:last_text` that own some of these positions (of the same texts, ascending), as rows of
    `text, start, stop, first, last`: the window owns `positions[first:last]`. A token of another tokenizer belongs to the window that
    owns the first of the teacher's tokens it aligns with."""
    windows = corpus.shown.windows(max_length, first_text, last_text)
    begin, places = corpus.shown.offsets[windows.text], corpus.first_shown(positions)
    first, last = (np.searchsorted(places, begin + own) for own in (windows.own_start, windows.own_stop))
    return np.stack([windows.text, windows.start, windows.stop, first, last], axis=1)[last > first].astype(np.int64)


def _window_vectors(
    teacher: Teacher, corpus: TokenizedCorpus, windows: Sequence[np.ndarray], positions: np.ndarray, layer: int
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Runs the teacher over a batch of windows, given by their columns.

    Returns:
        For all positions that the windows own: their indices in `positions`, the teacher's vectors, `[n, hidden]`, float32, and the
        text of each. A token of another tokenizer has the mean of the vectors of the teacher's tokens that it aligns with, as
        far as the window shows them.
    """
    text, start, stop, first, last = windows
    shown = corpus.shown
    ids = [shown.window_ids(*window) for window in zip(text, start, stop)]
    input_ids, mask = (x.to(teacher.device) for x in pad_batch(ids, teacher.pad_token_id))
    hidden = teacher.hidden_states(input_ids, mask, layer)
    owned = ranges(first, last - first)
    row = np.repeat(np.arange(len(text)), last - first)
    begin = (
        shown.offsets[text] + start
    )  # the place of the first column, as if its special tokens stood right before the content
    counts, places = corpus.all_shown(positions[owned])
    of_place = np.repeat(row, counts)
    if corpus.alignment is not None:
        is_last = stop == shown.offsets[text + 1] - shown.offsets[text] - shown.prefix - shown.suffix
        columns = shown.prefix + stop - start + np.where(is_last, shown.suffix, 0)
        is_shown = places < (begin + columns)[of_place]
        counts = np.bincount(np.repeat(np.arange(len(row)), counts)[is_shown], minlength=len(row))
        places, of_place = places[is_shown], of_place[is_shown]
    column = torch.from_numpy(places - begin[of_place]).to(hidden.device)
    vectors = hidden[torch.from_numpy(of_place).to(hidden.device), column].float()
    if corpus.alignment is not None:
        vectors = torch.segment_reduce(vectors, "mean", lengths=torch.from_numpy(counts).to(hidden.device))
    return owned, vectors, text[row]


def teacher_vectors(
    teacher: Teacher,
    corpus: TokenizedCorpus,
    first_text: int,
    last_text: int,
    *,
    layer: int,
    max_length: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Runs the teacher over the texts `first_text:last_text`; long texts in overlapping windows.

    Args:
        max_length: of the windows, in the teacher's tokens.

    Yields:
        Batch by batch, each token that has a vector exactly once, in no order: positions in `corpus.input_ids`, `[n]`, and their
        vectors, `[n, hidden]`, float32. Tokens of another tokenizer that align with none of the teacher's are left out.
    """
    begin, end = corpus.offsets[[first_text, last_text]]
    positions = np.arange(begin, end)[corpus.has_vectors(begin, end)]
    table = _owning_windows(corpus, positions, max_length, first_text, last_text)
    table = table[np.argsort(table[:, 1] - table[:, 2], kind="stable")]
    for first in range(0, len(table), batch_size):
        owned, vectors, _ = _window_vectors(teacher, corpus, table[first : first + batch_size].T, positions, layer)
        yield positions[owned], vectors


def open_windows(directory: Path) -> dict[str, np.ndarray]:
    """The windows that [`plan_windows`] has written."""
    return {name: tensor.numpy() for name, tensor in TensorFile(directory / "windows.safetensors").items()}


def gather_samples(
    teacher: Teacher,
    corpus: TokenizedCorpus,
    plan: SamplingPlan,
    windows: dict[str, np.ndarray],
    directory: Path,
    *,
    layer: int,
    batch_size: int,
    dtype: torch.dtype,
    largest: float | None = None,
    earlier: TensorFile | None = None,
) -> None:
    """Runs the teacher over the planned windows and writes the vectors of the planned positions into their slots of
    `samples.safetensors`: `samples [samples, width]`, beside the plan's `counts`, `offsets` and `priorities`.

    Batches are formed from the whole plan, so that their vectors depend neither on the number of processes nor on interruptions. Each
    process takes every n-th batch. Those of one machine write to one file; the first process joins the files of all machines.

    Args:
        largest: absolute value that a vector's numbers may have; default: what the dtype can hold.
        earlier: `samples` of the earlier plan that this one was made with.

    Raises:
        ValueError: a vector is not finite, or a value too large.
    """
    state = PartialState()
    if (directory / "samples.safetensors").exists():
        return
    machine = f"{platform.node()} {uuid.getnode()}"
    names = gather_object([machine])
    hosts = sorted(set(names))
    host = hosts.index(machine)
    is_first = names.index(machine) == state.process_index
    store_path, marks_path = directory / f"samples-{host}.safetensors", directory / f"gathered-{host}.safetensors"
    batches = -(-len(windows["text"]) // batch_size)
    if is_first and not store_path.exists():
        marks_path.unlink(missing_ok=True)  # what they tell of is not there
        width = teacher.hidden_states(torch.zeros(1, 1, dtype=torch.int64, device=teacher.device), layer=layer).shape[
            -1
        ]
        _create_store(store_path, plan, width, dtype, earlier, sparse=len(hosts) > 1)
    if is_first and not marks_path.exists():
        write_tensor_file(marks_path, {"done": torch.zeros(batches, dtype=torch.bool)})
    state.wait_for_everyone()
    store, marks = TensorFile(store_path, writable=True), TensorFile(marks_path, writable=True)
    done = _marked(directory)
    mine = [batch for batch in range(state.process_index, batches, state.num_processes) if not done[batch]]
    samples, unmarked, marked = store["samples"], [], time.monotonic()

    def mark() -> None:
        store.flush()
        marks["done"][unmarked] = True
        unmarked.clear()

    progress = tqdm(mine, desc="Gathering", unit=" batches", leave=False, disable=not state.is_main_process)
    for batch in progress:
        rows = slice(batch * batch_size, (batch + 1) * batch_size)
        columns = [windows[name][rows] for name in WINDOW_COLUMNS]
        sample, vectors, text = _window_vectors(teacher, corpus, columns, plan.positions, layer)
        vectors = vectors.cpu()
        _check(vectors, largest or torch.finfo(dtype).max, teacher.name, text)
        samples[torch.from_numpy(plan.slots[sample])] = vectors.to(samples.dtype)
        unmarked.append(batch)
        if time.monotonic() - marked > MARK_SECONDS:
            mark()
            marked = time.monotonic()
    mark()
    state.wait_for_everyone()
    if not _marked(directory).all():
        raise RuntimeError(
            f"{int((~_marked(directory)).sum())} batches in {directory} were not gathered: run the same command again"
        )
    if state.is_main_process:
        _join(directory)
    state.wait_for_everyone()


def _check(vectors: torch.Tensor, largest: float, name: str, texts: np.ndarray) -> None:
    found = float(vectors.abs().max())
    if not np.isfinite(found):
        bad = texts[int((~vectors.isfinite().all(1)).nonzero()[0])]
        raise ValueError(f"{name} yields NaN or infinite vectors for text {bad}: try another dtype for the teacher")
    if found > largest:
        raise ValueError(
            f"{name} yields values up to {found:.3g}, too large for float16: use sample_dtype='float32' and senses_dtype='bfloat16'"
        )


def _create_store(
    path: Path, plan: SamplingPlan, width: int, dtype: torch.dtype, earlier: TensorFile | None, sparse: bool
) -> None:
    partial = Path(f"{path}.partial")
    shapes = {
        "samples": (dtype, (len(plan.slots), width)),
        "counts": (torch.int64, plan.counts.shape),
        "offsets": (torch.int64, plan.offsets.shape),
        "priorities": (torch.uint64, plan.priorities.shape),
    }
    store = create_tensor_file(partial, shapes, sparse=sparse)
    for begin in range(0, len(plan.priorities), CHUNK):
        store["priorities"][begin : begin + CHUNK] = torch.from_numpy(plan.priorities[begin : begin + CHUNK])
    store["counts"].copy_(torch.from_numpy(plan.counts))
    store["offsets"].copy_(torch.from_numpy(plan.offsets))
    kept = int(np.searchsorted(plan.positions, 0))
    step = max(1, CHUNK // width)
    for begin in range(0, kept, step):
        part = slice(begin, min(begin + step, kept))
        before = earlier["samples"][torch.from_numpy(-1 - plan.positions[part])]
        store["samples"][torch.from_numpy(plan.slots[part])] = before
    store.flush()
    partial.replace(path)


def _marked(directory: Path) -> torch.Tensor:
    """Which batches are finished, on whatever machine, `[batches]`."""
    return torch.stack([TensorFile(path)["done"] for path in directory.glob("gathered-*.safetensors")]).any(0)


def _join(directory: Path) -> None:
    """Puts the rows that other machines have written into the first machine's file, and that in its place."""
    first, *others = sorted(directory.glob("samples-*.safetensors"))
    target = TensorFile(first, writable=True)
    samples = target["samples"]
    step = max(1, CHUNK // samples.shape[1])
    for path in others:
        theirs = TensorFile(path)["samples"]
        for begin in range(0, len(samples), step):
            part = theirs[begin : begin + step]
            written = part.any(1)
            samples[begin : begin + step][written] = part[written]
    target.flush()
    first.replace(directory / "samples.safetensors")
    for path in others:
        path.unlink()
