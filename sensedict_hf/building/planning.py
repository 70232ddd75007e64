"""The first stage of a build: tokenize the texts, draw the occurrences to sample, plan what the teacher reads."""

import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data import Texts
from ..models.configuration_sense_embedding import SAMPLE_DTYPES
from ..models.matching import check_predicts
from ..models.tokenization import count_embeddings
from ..models.windows import window_width
from ..processes import count_machines
from .corpus import corpus_digest, special_tokens, tokenize_corpus
from .corpus_files import CorpusChangedError
from .fitting import BLOCK_ELEMENTS
from .gathering import plan_windows
from .sampling import count_tokens, open_plan, plan_samples, sample_sizes
from .settings import BuildSettings, Origin, Source
from .tensor_files import Tensors
from .windows import TokenizedCorpus
from .workspace import BuildFolder

logger = logging.get_logger(__name__)
# The default budget: one sense for each token in the texts, and one more for every SAMPLES_PER_SENSE further samples,
# but at most SENSES_PER_TOKEN senses for each token on average.
SENSES_PER_TOKEN = 6
SAMPLES_PER_SENSE = 4
# What a sample takes on disk apart from its vector: its position, slot and priority, its window, its node in the tree
# and, while the plan is made, the candidates.
BYTES_PER_SAMPLE = 120
# While senses are fitted, each thread holds the samples of a block and about three intermediate results of that size.
WORKING_COPIES = 4


def read_corpus(
    folder: BuildFolder, source: Source, texts: Texts, text_column: str, check: Callable[[], object] | None = None
) -> TokenizedCorpus | None:
    """Tokenize the texts of a build into `building/corpus`, or continue where an interrupted call stopped.

    Args:
        folder: The folder of the build.
        source: The teacher and the tokenizer.
        texts: The texts.
        text_column: Column that holds the texts, if they are a dataset.
        check: Called before the texts are read, if there is something to do.

    Returns:
        The tokenized texts; None if the folder holds the finished result already.

    Raises:
        ValueError: Windows are too short for the special tokens and the prompt around a text.
        ValueError: Without `overwrite`: the folder holds another result, or an unfinished build with other settings or
            texts.
    """
    specials = special_tokens(source.tokenizer, source.teacher.prompt)[:2]
    window_width(source.origin.max_length, sum(specials))  # raises, before the texts are read

    # Stop if there is nothing to do. An iterator that replaces something is not compared: it can be read only once.
    is_one_shot = isinstance(texts, Iterator)
    if not (folder.overwrite and is_one_shot) and folder.is_finished(lambda: corpus_digest(texts, text_column)):
        folder.clear_removed()
        if folder.is_unfinished:
            folder.discard()
        logger.info(f"{folder.path} holds this {folder.kind} already")
        return None

    if check is not None:
        check()

    def tokenize() -> TokenizedCorpus:
        return tokenize_corpus(
            texts,
            source.tokenizer,
            folder.stages / "corpus",
            text_column=text_column,
            teacher_tokenizer=source.teacher_tokenizer,
            truncate_at=source.origin.max_length if source.origin.truncation else None,
            prompt=source.teacher.prompt,
        )

    # Tokenize; with overwrite, start again if the texts have changed or were damaged.
    folder.begin()
    try:
        corpus = tokenize()
    except CorpusChangedError:
        if is_one_shot or not folder.overwrite:
            raise
        folder.begin(afresh=True)
        corpus = tokenize()
    _warn_of_lost_tokens(corpus, source.origin)
    return corpus


def plan_build(
    folder: BuildFolder,
    source: Source,
    settings: BuildSettings,
    texts: Texts,
    text_column: str,
    earlier: Tensors | None,
) -> bool:
    """Tokenize the texts, draw the occurrences to sample, and plan the windows of text that hold them.

    Args:
        folder: The folder of the build.
        source: The teacher and the tokenizer.
        settings: The settings of the build.
        texts: The texts.
        text_column: Column that holds the texts, if they are a dataset.
        earlier: The samples of the dictionary that is updated, if any.

    Returns:
        False if the folder holds the finished dictionary already, so that there is nothing left to do.

    Raises:
        ValueError: The corpus is empty, or all its tokens are padding.
        ValueError: The tokenizer does not fit the model.
        ValueError: The budget is too small, or there is not enough room.
        ValueError: The folder holds something else; see :func:`read_corpus`.
    """
    teacher, tokenizer, stages = source.teacher, source.tokenizer, folder.stages
    some_ids = torch.zeros(1, 8, dtype=torch.int64, device=teacher.device)  # one alone is too few for Funnel
    probe = cache(lambda: teacher.hidden_states(some_ids, layer=settings.layer))  # there may be no such layer
    corpus = read_corpus(folder, source, texts, text_column, probe)
    if corpus is None:
        return False

    # Draw the occurrences that are sampled.
    if not (stages / "plan.safetensors").exists():
        embeddings = count_embeddings(teacher.model)
        read = count_tokens(corpus.shown, max(len(teacher.tokenizer), embeddings), exclude=_padding(teacher.tokenizer))
        if read[embeddings:].any():
            raise ValueError(
                f"the tokenizer gives ids up to {int(read.nonzero()[0].max())}, {teacher.name} has embeddings for "
                f"{embeddings} tokens: give the model's own tokenizer, or resize the model's embeddings"
            )
        counts = read
        if settings.key == "next":
            corpus = corpus.keyed_by("next")
            counts = count_tokens(corpus, len(read), exclude=_padding(tokenizer))
        elif corpus.alignment is not None:
            counts = count_tokens(corpus, max(tokenizer.get_vocab().values()) + 1, exclude=_padding(tokenizer))
        together = counts if earlier is None else counts + earlier["counts"].numpy()
        if not together.any():
            first = " or the first of their text, which no state predicts" if corpus.shift else ""
            raise ValueError(
                f"no token of the corpus can be sampled, all of them are padding{first}: give other texts"
            )
        check_budget(settings.budget, int((together > 0).sum()))
        check_room(folder.path, together, settings, probe().shape[-1], teacher.device, len(corpus))
        plan_samples(
            corpus,
            counts,
            settings.max_samples_per_token,
            stages,
            seed=settings.seed + (source.origin.generation << 32),
            earlier=earlier,
        )

    # Choose the windows of text that the teacher runs over.
    if not (stages / "windows.safetensors").exists():
        corpus = corpus.keyed_by(settings.key)
        windows = plan_windows(corpus, open_plan(stages / "plan.safetensors"), source.origin.max_length, stages)
        used = len(np.unique(windows.text))
        logger.info(
            f"the teacher reads {used:,} of {len(corpus):,} texts; the others ({1 - used / len(corpus):.1%}) hold no "
            "sample"
        )
    return True


def _warn_of_lost_tokens(corpus: TokenizedCorpus, origin: Origin) -> None:
    """Warn of tokens that get no senses because they were cut off or have no vector."""
    if corpus.dropped:
        total = corpus.dropped + len(corpus.input_ids)
        logger.warning(f"truncation to {origin.max_length} tokens dropped {corpus.dropped:,} of {total:,} tokens")
    if corpus.alignment is None:
        return
    specials, unaligned = corpus.prefix + corpus.suffix, corpus.alignment.unaligned
    total = len(corpus.input_ids) - specials * len(corpus)
    if unaligned:
        logger.warning(
            f"{unaligned:,} of {total:,} tokens ({unaligned / total:.1%}) share no character, apart from white space, "
            f"with a token of {origin.teacher}: they get no senses"
        )
    lost = max(0, corpus.prefix - corpus.shown.prefix) + max(0, corpus.suffix - corpus.shown.suffix)
    if lost:
        logger.warning(
            f"{lost} of {specials} special tokens of each text have no counterpart in {origin.teacher}: they get no "
            "senses"
        )


def check_key(key: str, source: Source) -> None:
    """Raise a ValueError if the states of a teacher do not belong to the tokens that a key means.

    Args:
        key: `input` or `next`.
        source: The teacher and the tokenizer.
    """
    if key == "next":
        check_predicts(source.teacher)
        if source.teacher_tokenizer is not None:
            raise ValueError(
                "key='next' with the tokens of another tokenizer: the teacher's states predict its own tokens; leave "
                "out tokenizer, or choose key='input'"
            )


def check_budget(budget: int | None, seen: int) -> None:
    """Check that a budget has at least one sense for each token.

    Args:
        budget: The budget; None if there is none.
        seen: Number of different tokens in the texts.

    Raises:
        ValueError: The budget is too small.
    """
    if budget is not None and budget < seen:
        raise ValueError(
            f"budget={budget} is below one sense for each of the {seen:,} different tokens: give {seen} or more"
        )


def total_senses(settings: BuildSettings, counts: np.ndarray) -> int | None:
    """Return the budget of a build: the given one, or the default.

    Args:
        settings: The settings of the build.
        counts: Occurrences of each token, `[vocab]`.

    Returns:
        The number of senses in all; None if the method does not use a budget.
    """
    if settings.method != "budget" or settings.budget is not None:
        return settings.budget
    seen = int((counts > 0).sum())
    samples = int(sample_sizes(counts, settings.max_samples_per_token).sum())
    return min(SENSES_PER_TOKEN * seen, seen + (samples - seen) // SAMPLES_PER_SENSE)


def most_senses(counts: np.ndarray, settings: BuildSettings) -> int:
    """Return how many senses a build makes; with `mcl` how many it makes at most.

    Args:
        counts: Occurrences of each token, `[vocab]`.
        settings: The settings of the build.
    """
    cap = settings.max_samples_per_token
    senses = total_senses(settings, counts)
    if senses is None:
        return int(sample_sizes(counts, min(cap, settings.senses_per_token or cap)).sum())
    return min(senses, int(sample_sizes(counts, cap).sum()))


def room_needed(
    counts: np.ndarray, settings: BuildSettings, width: int, device: torch.device, texts: int
) -> tuple[int, int]:
    """Return the bytes that a build needs on disk and in memory; see :func:`check_room`."""
    cap = settings.max_samples_per_token
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    samples, senses = int(sample_sizes(counts, cap).sum()), most_senses(counts, settings)
    # Each machine has a whole file of samples until they are joined: with holes, a full disk would kill the process.
    vector_bytes = width * SAMPLE_DTYPES[settings.sample_dtype].itemsize * count_machines()
    sample_bytes = vector_bytes + BYTES_PER_SAMPLE
    block = max(BLOCK_ELEMENTS, min(cap, int(counts.max())) * width) * threads
    return samples * sample_bytes + senses * width * 8 + texts * 8, WORKING_COPIES * 4 * block + 32 * samples


def check_room(
    folder: Path, counts: np.ndarray, settings: BuildSettings, width: int, device: torch.device, texts: int
) -> None:
    """Log what a build needs on disk and in memory, and check that there is enough.

    Args:
        folder: Folder of the build.
        counts: Occurrences of each token, `[vocab]`.
        settings: The settings of the build.
        width: Width of a vector.
        device: Device on which senses are fitted.
        texts: Number of texts, each of which has a key of 8 bytes.

    Raises:
        ValueError: There is too little room. The message names the largest `max_samples_per_token` that fits.
    """
    # Compare with what there is.
    free_disk, free_memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    cap, seen = settings.max_samples_per_token, int((counts > 0).sum())
    disk, memory = room_needed(counts, settings, width, device, texts)
    logger.info(
        f"{int(sample_sizes(counts, cap).sum()):,} samples of {seen:,} tokens need {disk / 1e9:,.1f} GB in "
        f"{folder} ({free_disk / 1e9:,.1f} GB are free) and {memory / 1e9:,.1f} GB of memory "
        f"({free_memory / 1e9:,.1f} GB are free, with the teacher loaded)"
    )
    if disk <= free_disk and memory <= free_memory:
        return

    # Find the largest number of samples per token that fits.
    def is_too_large(samples: int) -> bool:
        fewer = replace(settings, max_samples_per_token=samples)
        less_disk, less_memory = room_needed(counts, fewer, width, device, texts)
        return less_disk > free_disk or less_memory > free_memory

    most = bisect_left(range(1, cap + 1), True, key=is_too_large)
    other = "another disk" if disk > free_disk else "fewer threads (OMP_NUM_THREADS)"
    way = f"max_samples_per_token={most} fits" if most else f"not even max_samples_per_token=1 fits: choose {other}"
    raise ValueError(
        f"max_samples_per_token={cap} needs {disk / 1e9:,.1f} GB in {folder}, where {free_disk / 1e9:,.1f} GB are "
        f"free, and {memory / 1e9:,.1f} GB of memory, where {free_memory / 1e9:,.1f} GB are free: {way}"
    )


def _padding(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the padding token, which gets no senses; none if it is another special token too and occurs in texts."""
    others = {
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
        tokenizer.sep_token_id,
        tokenizer.cls_token_id,
    }
    return () if tokenizer.pad_token_id is None or tokenizer.pad_token_id in others else (tokenizer.pad_token_id,)
