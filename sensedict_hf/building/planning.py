"""The first stage of a build: texts -> token ids -> which occurrences are sampled -> what the teacher is run on."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data import Texts
from ..models.configuration_sense_embedding import SAMPLE_DTYPES
from ..models.teachers import Teacher
from .corpus import CorpusChangedError, corpus_digest, tokenize_corpus
from .fitting import BLOCK_ELEMENTS
from .gathering import plan_windows
from .sampling import count_tokens, open_plan, plan_samples, sample_sizes
from .tensor_files import TensorFile
from .windows import TokenizedCorpus
from .workspace import begin_build, differences, discard, finished_build

logger = logging.get_logger(__name__)
# The default budget: at most this many senses for each token in the texts, and one for this many samples.
SENSES_PER_TOKEN = 6
SAMPLES_PER_SENSE = 4
# On disk, for each sample: its place, slot and priority, its window, its tree and, for a while, the candidates of the plan.
BYTES_PER_SAMPLE = 120
# In memory while senses are fitted: the samples of each thread's block, and what is computed from them at once.
WORKING_COPIES = 4


def read_corpus(
    folder: Path,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    text_column: str,
    settings: dict[str, Any],
    overwrite: bool,
    kind: str = "dictionary",
) -> TokenizedCorpus | None:
    """Tokenizes the texts of a build, or goes on with that; None if the folder holds the finished dictionary or data set.

    Raises:
        ValueError: the folder holds another one, or an unfinished build with other settings or texts, and `overwrite` is not set.
    """
    is_one_shot = iter(texts) is texts
    try:
        finished = None if overwrite and is_one_shot else finished_build(folder, kind)
    except ValueError:
        if not overwrite:
            raise
        finished = None
    changed = None
    if finished is not None:
        changed = differences(finished["settings"], {**settings, "corpus": corpus_digest(texts, text_column)})
        if changed and not overwrite:
            raise ValueError(
                f"{folder} holds a {kind} with other settings: {changed}; give the same, another folder, or overwrite"
            )
    if finished is not None and not changed:
        discard(folder / "building")
        logger.info(f"{folder} holds this {kind} already")
        return None
    stages = begin_build(folder, settings, overwrite, kind)
    reading = {
        "text_column": text_column,
        "teacher_tokenizer": teacher.tokenizer if settings["teacher_tokenizer"] else None,
        "truncate_at": settings["max_length"] if settings["truncation"] else None,
        "prompt": teacher.prompt,
    }
    try:
        corpus = tokenize_corpus(texts, tokenizer, stages / "corpus", **reading)
    except CorpusChangedError:
        if not overwrite or is_one_shot:
            raise
        stages = begin_build(folder, settings, overwrite, kind, afresh=True)
        corpus = tokenize_corpus(texts, tokenizer, stages / "corpus", **reading)
    _warn_of_lost_tokens(corpus, teacher.name, settings["max_length"])
    return corpus


def plan_build(
    folder: Path,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    text_column: str,
    settings: dict[str, Any],
    earlier: TensorFile | None,
    overwrite: bool,
) -> bool:
    """The first stage: tokenizes the texts and plans what the teacher is run on. False if the folder holds the finished dictionary."""
    corpus = read_corpus(folder, teacher, tokenizer, texts, text_column, settings, overwrite)
    if corpus is None:
        return False
    probe = teacher.hidden_states(torch.zeros(1, 1, dtype=torch.int64, device=teacher.device), layer=settings["layer"])
    stages, max_length = folder / "building", settings["max_length"]
    embeddings = teacher.model.get_input_embeddings().num_embeddings
    if not (stages / "plan.safetensors").exists():
        read = count_tokens(corpus.shown, max(len(teacher.tokenizer), embeddings), exclude=_padding(teacher.tokenizer))
        if read[embeddings:].any():
            raise ValueError(
                f"the tokenizer gives ids up to {int(read.nonzero()[0].max())}, {teacher.name} has embeddings for {embeddings} "
                "tokens: the tokenizer is not the model's, or the model must be resized to it"
            )
        counts = read
        if corpus.alignment is not None:
            counts = count_tokens(corpus, max(tokenizer.get_vocab().values()) + 1, exclude=_padding(tokenizer))
        together = counts if earlier is None else counts + earlier["counts"].numpy()
        if not together.any():
            raise ValueError("no token of the corpus can be sampled: all of them are padding")
        check_budget(settings["budget"], int((together > 0).sum()))
        check_room(folder, together, settings, probe.shape[-1])
        plan_samples(
            corpus,
            counts,
            settings["max_samples_per_token"],
            stages,
            seed=settings["seed"] + (settings["generation"] << 32),
            earlier=earlier,
        )
    if not (stages / "windows.safetensors").exists():
        windows = plan_windows(corpus, open_plan(stages / "plan.safetensors"), max_length, stages)
        used = len(np.unique(windows.text))
        logger.info(
            f"{used:,} of {len(corpus):,} texts hold a sample; the others ({1 - used / len(corpus):.1%}) never reach the teacher"
        )
    return True


def _warn_of_lost_tokens(corpus: TokenizedCorpus, teacher: str, max_length: int) -> None:
    """Says which tokens get no senses because they were cut off or have no vector."""
    if corpus.dropped:
        total = corpus.dropped + len(corpus.input_ids)
        logger.warning(f"truncation to {max_length} tokens dropped {corpus.dropped:,} of {total:,} tokens")
    if corpus.alignment is None:
        return
    specials, unaligned = corpus.prefix + corpus.suffix, corpus.alignment.unaligned
    total = len(corpus.input_ids) - specials * len(corpus)
    if unaligned:
        logger.warning(
            f"{unaligned:,} of {total:,} tokens ({unaligned / total:.1%}) cover no character that a token of {teacher} covers, white "
            "space apart: they get no senses"
        )
    lost = max(0, corpus.prefix - corpus.shown.prefix) + max(0, corpus.suffix - corpus.shown.suffix)
    if lost:
        logger.warning(
            f"{lost} of {specials} special tokens of each text have no counterpart among those of {teacher}: they get no senses"
        )


def check_budget(budget: int | None, seen: int) -> None:
    """Raises a ValueError if the budget has less than one sense for each of the tokens seen."""
    if budget is not None and budget < seen:
        raise ValueError(
            f"budget={budget} is below one sense for each of the {seen:,} different tokens: give {seen} or more"
        )


def default_budget(seen: int, samples: int) -> int:
    """The number of senses for so many tokens seen and samples of them."""
    return min(SENSES_PER_TOKEN * seen, seen + (samples - seen) // SAMPLES_PER_SENSE)


def check_room(folder: Path, counts: np.ndarray, settings: dict[str, Any], width: int) -> None:
    """Says what the build needs on disk and in memory; raises a ValueError if that is not there."""
    sample_bytes = width * SAMPLE_DTYPES[settings["sample_dtype"]].itemsize + BYTES_PER_SAMPLE

    seen = int((counts > 0).sum())
    threads = torch.get_num_threads() if settings["device"] == "cpu" else 1

    def needed(cap: int) -> tuple[int, int]:
        samples = int(sample_sizes(counts, cap).sum())
        if settings["method"] == "budget":
            senses = settings["budget"] or default_budget(seen, samples)
        else:
            senses = int(sample_sizes(counts, min(cap, settings["num_senses"] or cap)).sum())
        block = max(BLOCK_ELEMENTS, min(cap, int(counts.max())) * width) * threads
        return samples * sample_bytes + senses * width * 8, WORKING_COPIES * 4 * block + 32 * samples

    there = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    cap = settings["max_samples_per_token"]
    disk, memory = needed(cap)
    logger.info(
        f"{int(sample_sizes(counts, cap).sum()):,} samples of {seen:,} tokens need {disk / 1e9:,.1f} GB of the "
        f"{there[0] / 1e9:,.1f} GB free in {folder}, and {memory / 1e9:,.1f} of {there[1] / 1e9:,.1f} GB of memory beside the teacher"
    )
    if disk > there[0] or memory > there[1]:
        low, high = 0, cap
        while low < high:
            middle = (low + high + 1) // 2
            fits = all(need <= room for need, room in zip(needed(middle), there))
            low, high = (middle, high) if fits else (low, middle - 1)
        other = "another disk" if disk > there[0] else "fewer threads (OMP_NUM_THREADS)"
        way = f"max_samples_per_token={low} fits" if low else f"not even max_samples_per_token=1 fits: choose {other}"
        raise ValueError(
            f"max_samples_per_token={cap} needs {disk / 1e9:,.1f} GB in {folder}, where {there[0] / 1e9:,.1f} GB are free, and "
            f"{memory / 1e9:,.1f} GB of memory, of which {there[1] / 1e9:,.1f} GB are free: {way}"
        )


def _padding(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Padding never gets senses, unless another special token serves as padding and is found in texts as itself."""
    others = {
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
        tokenizer.sep_token_id,
        tokenizer.cls_token_id,
    }
    return () if tokenizer.pad_token_id is None or tokenizer.pad_token_id in others else (tokenizer.pad_token_id,)
