"""Run the teacher over texts: rows in batches, and one file for each part of the texts."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from ..building.gathering import chunks
from ..building.windows import TokenizedCorpus
from ..models.encoding import pad_batch
from ..models.teachers import Teacher
from ..processes import process_state

# Tokens in a part: an interruption loses at most this much of the teacher's work.
PART_TOKENS = 1 << 17


def write_parts(
    corpus: TokenizedCorpus,
    folder: Path,
    ending: str,
    write: Callable[[tuple[int, int], Path], None],
    description: str,
) -> list[Path]:
    """Write a file for each part of a corpus, unless it is there. All processes share the work.

    Args:
        corpus: The texts.
        folder: Where the files go.
        ending: Of the names of the files.
        write: Writes the file of the texts `part[0]:part[1]`.
        description: What the progress bar says.

    Returns:
        The files, in the order of the texts.
    """
    state, parts = process_state(), list(chunks(corpus, PART_TOKENS))
    sizes = [int(corpus.offsets[last] - corpus.offsets[first]) for first, last in parts]
    paths = [folder / f"part-{number:05d}{ending}" for number in range(len(parts))]
    mine = range(state.process_index, len(parts), state.num_processes)
    with tqdm(total=sum(sizes[number] for number in mine), desc=description, unit=" tokens", leave=False) as bar:
        for number in mine:
            if not paths[number].exists():
                write(parts[number], paths[number])
            bar.update(sizes[number])
    state.wait_for_everyone()
    return paths


def run_teacher(
    teacher: Teacher, rows: Sequence[np.ndarray], layer: int, batch_size: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Run the teacher over rows of token ids. Rows of similar length form a batch, and the longest come first.

    Args:
        teacher: The teacher.
        rows: The token ids of each row.
        layer: Index of the hidden states.
        batch_size: Rows in a batch.

    Yields:
        For each batch the numbers of its rows, their hidden states `[batch, positions, hidden]` in float32 on the
        device of the teacher, and the mask `[batch, positions]`, 0 for padding, on the CPU.
    """
    order = np.argsort([-len(row) for row in rows], kind="stable")
    for first in range(0, len(rows), batch_size):
        batch = order[first : first + batch_size]
        input_ids, mask = pad_batch([rows[row] for row in batch], teacher.pad_token_id)
        yield batch, teacher.hidden_states(input_ids.to(teacher.device), mask.to(teacher.device), layer).float(), mask


def check_half(states: Tensor, mask: Tensor, name: str, texts: Sequence[Any] | np.ndarray) -> None:
    """Check that vectors can be kept in half precision.

    Args:
        states: `[rows, positions, hidden]`.
        mask: `[rows, positions]`, 0 for padding.
        name: The teacher's name.
        texts: The number or the beginning of the text of each row.

    Raises:
        ValueError: A vector is not finite, or too large for float16.
    """
    largest = states.abs().amax(2).cpu().masked_fill(mask == 0, 0).amax(1)
    bad = torch.where(largest <= torch.finfo(torch.float16).max, 0, 1).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        found = float(largest[row])
        raise ValueError(
            f"{name} yields values up to {found:.3g} for text {texts[row]}, which float16 cannot hold: load the "
            "teacher in another dtype"
        )
