"""What a build would read, run and write, found without running the teacher over the texts."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data import Texts
from ..models.configuration_sense_embedding import SENSES_DTYPES
from ..models.teachers import Teacher
from ..models.tokenization import check_max_length
from .corpus import open_corpus
from .gathering import open_windows, window_vectors
from .planning import check_key, most_senses, plan_build, room_needed
from .sampling import open_plan
from .settings import BuildSettings, Source
from .workspace import BuildFolder

# Batches of the teacher that are timed, after one that is not.
TIMED_BATCHES = 3


def estimate_build(
    teacher: Teacher,
    texts: Texts,
    output_dir: Path,
    settings: BuildSettings,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    max_length: int | None = None,
    truncation: bool = False,
) -> dict[str, Any]:
    """Plan a build, time a few batches of its teacher, and leave nothing.

    The texts are tokenized and counted as in the build, in a temporary folder next to the output. So all numbers are
    exact but the time.

    Args:
        teacher: The teacher.
        texts: The texts.
        output_dir: Where the dictionary would be written; it is not made.
        settings: The settings of the build.
        tokenizer: The tokenizer whose tokens get senses. None: the teacher's.
        text_column: Column that holds the texts, if they are a dataset.
        max_length: Longest input of the teacher in tokens. None: what the teacher takes, at most 512.
        truncation: Whether longer texts are cut off.

    Returns:
        The facts by their names. The time is in seconds, and does not include the fitting of senses.

    Raises:
        ValueError: The build would be refused for its texts, its budget or for lack of room.
    """
    source = Source.of(
        teacher,
        tokenizer,
        max_length=check_max_length(max_length, teacher.max_window),
        truncation=truncation,
        prompt_senses=settings.prompt_senses,
    )
    check_key(settings.key, source)
    teacher = source.teacher
    parent = next(folder for folder in output_dir.absolute().parents if folder.is_dir())
    with TemporaryDirectory(prefix="sensedict-", dir=parent) as path:
        folder = BuildFolder(Path(path), settings={**settings.record(), **source.origin.record()})
        plan_build(folder, source, settings, texts, text_column, None)
        corpus = open_corpus(folder.stages / "corpus", source.tokenizer, source.teacher_tokenizer, teacher.prompt)
        plan, windows = open_plan(folder.stages / "plan.safetensors"), open_windows(folder.stages)
        batches = -(-len(windows) // settings.batch_size)

        # Time batches from all lengths, as windows are sorted by it.
        seconds: list[float] = []
        for batch in np.linspace(0, batches - 1, TIMED_BATCHES + 1).astype(int)[[0, *range(TIMED_BATCHES + 1)]]:
            rows = windows[batch * settings.batch_size : (batch + 1) * settings.batch_size]
            begin = time.perf_counter()
            vectors = window_vectors(teacher, corpus.keyed_by(settings.key), rows, plan.positions, settings.layer)[1]
            vectors.cpu()  # waits for a GPU
            seconds.append(time.perf_counter() - begin)

        counts, width = np.asarray(plan.counts), vectors.shape[-1]
        seen, samples = int((counts > 0).sum()), len(plan.positions)
        disk, memory = room_needed(counts, settings, width, teacher.device, len(corpus))
        senses = None if settings.method == "mcl" else most_senses(counts, settings)
        table = senses and senses * width * SENSES_DTYPES[settings.senses_dtype].itemsize
        return {
            "texts": len(corpus),
            "tokens": len(corpus.input_ids),
            "different tokens": seen,
            "samples": samples,
            "windows for the teacher": len(windows),
            "senses": senses,
            "dictionary, MB": table and round(table / 1e6, 1),
            "disk while building, MB": round(disk / 1e6, 1),
            "memory, MB": round(memory / 1e6, 1),
            "teacher, seconds": round(float(np.mean(seconds[1:])) * batches, 1),
        }
