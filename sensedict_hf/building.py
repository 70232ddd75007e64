"""Text and a teacher -> a sense dictionary: plan which occurrences to sample, gather their vectors, cluster them."""

import os
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .clustering import cluster_samples
from .configuration_sense_embedding import SIMILARITIES, SenseEmbeddingConfig
from .corpus import Texts, TokenizedCorpus, check_max_length, tokenize_corpus, tokenizer_fingerprint
from .encoding import pad_batch
from .modeling_sense_embedding import SenseEmbeddingModel
from .sampling import SamplingPlan, plan_samples
from .teachers import Teacher, load_teacher

logger = logging.get_logger(__name__)

DTYPES = ("float16", "bfloat16", "float32")
# The default budget: at most this many senses for each token in the texts, and one for this many samples.
SENSES_PER_TOKEN = 6
SAMPLES_PER_SENSE = 4


def build_sense_dictionary(
    teacher: str | os.PathLike | PreTrainedModel | Teacher,
    texts: Texts,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_senses: int | None = None,
    budget: int | None = None,
    max_samples_per_token: int = 1000,
    similarity: str = "l2",
    layer: int = -1,
    max_length: int | None = None,
    truncation: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    text_column: str = "text",
    sample_dtype: str = "float16",
    senses_dtype: str = "float16",
) -> SenseEmbeddingModel:
    """Builds a sense dictionary: runs the teacher over text and clusters the vectors of each token.

    Args:
        teacher: a name, a path, a model or a [`Teacher`]. texts: a list or iterable of strings, or a data set with a text column.
        tokenizer: the teacher's, if the teacher does not say where it comes from.
        num_senses: senses for every token (fewer where it has fewer distinct samples).
        budget: senses in all, placed over the tokens where they lower the squared distance most. Without either, a budget of one
            sense for every token in the texts and one more for every four samples beyond that, but not more than six times the number
            of tokens.
        max_samples_per_token: occurrences of a token that are looked at, drawn uniformly from all.
        similarity: `l2`, `cosine` or `dot`; see [`assign_senses`].
        layer: index into the teacher's hidden states; -1: the last.
        max_length: longest input of the teacher in tokens. Longer texts are cut into overlapping windows, or,
            with `truncation`, cut off. Default: what the teacher takes, at most 512.
        batch_size: texts in a forward pass. seed: of the sample. device: default: a GPU if there is one.
        sample_dtype: `float16` or `float32`, how samples are held on disk while building. senses_dtype: `float16`, `bfloat16` or
            `float32`, of the finished table.

    Raises:
        ValueError: see the messages: bad settings, an empty corpus, a budget below one sense for each token in the texts, a
            tokenizer that does not belong to the model, or teacher vectors that are not finite.
    """
    if num_senses is not None and budget is not None:
        raise ValueError(f"num_senses={num_senses} and budget={budget}: give one of them")
    for name, value in {"num_senses": num_senses, "budget": budget, "max_samples_per_token": max_samples_per_token}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")
    if similarity not in SIMILARITIES:
        raise ValueError(f"unknown similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
    if sample_dtype not in ("float16", "float32") or senses_dtype not in DTYPES:
        raise ValueError(
            f"sample_dtype={sample_dtype!r} must be float16 or float32, senses_dtype={senses_dtype!r} one of {', '.join(DTYPES)}"
        )
    if seed < 0:
        raise ValueError(f"seed={seed}: it must be at least 0")
    teacher = load_teacher(teacher, tokenizer=None if isinstance(teacher, Teacher) else tokenizer, device=device)
    fingerprint = tokenizer_fingerprint(teacher.tokenizer)
    if tokenizer is not None and tokenizer_fingerprint(tokenizer) != fingerprint:
        raise ValueError("the tokenizer is not the teacher's: dictionaries keyed by another tokenizer are not supported")
    tokenizer = teacher.tokenizer
    embeddings = teacher.model.get_input_embeddings().num_embeddings
    vocab_size = max(len(tokenizer), embeddings)
    max_length = check_max_length(max_length, teacher.max_window)

    with TemporaryDirectory(prefix="sensedict-") as folder:
        truncate_at = max_length if truncation else None
        corpus = tokenize_corpus(texts, tokenizer, folder, text_column=text_column, truncate_at=truncate_at)
        if corpus.dropped:
            total = corpus.dropped + len(corpus.input_ids)
            logger.warning(f"truncation to {max_length} tokens dropped {corpus.dropped:,} of {total:,} tokens")
        plan = plan_samples(corpus, vocab_size, max_samples_per_token, seed=seed, exclude=_padding(tokenizer))
        if plan.counts[embeddings:].any():
            raise ValueError(
                f"the tokenizer gives ids up to {int(plan.counts.nonzero()[0].max())}, {teacher.name} has embeddings for {embeddings} "
                "tokens: the tokenizer is not the model's, or the model must be resized to it"
            )
        seen = int((plan.counts > 0).sum())
        if budget is not None and budget < seen:
            raise ValueError(
                f"budget={budget} is below one sense for each of the {seen:,} different tokens in the texts: give at least {seen}"
            )
        if num_senses is None and budget is None:
            budget = min(SENSES_PER_TOKEN * seen, seen + (len(plan.positions) - seen) // SAMPLES_PER_SENSE)
        samples = gather_samples(
            teacher, corpus, plan, folder, max_length=max_length, layer=layer, batch_size=batch_size, dtype=sample_dtype
        )
        found = cluster_samples(
            samples,
            plan.offsets,
            plan.counts,
            num_senses=num_senses,
            budget=budget,
            similarity=similarity,
            device=teacher.device,
        )
    dtype = getattr(torch, senses_dtype)
    if found.senses.abs().max() > torch.finfo(dtype).max:
        raise ValueError(f"senses reach {float(found.senses.abs().max()):.3g}, too large for {senses_dtype}: use senses_dtype='bfloat16'")
    senses = SenseEmbeddingModel(
        SenseEmbeddingConfig(
            vocab_size=vocab_size,
            hidden_size=samples.shape[1],
            num_senses=len(found.senses),
            senses_dtype=senses_dtype,
            similarity=similarity,
            distortion=found.distortion,
            base_model_name_or_path=teacher.name,
            base_model_revision=teacher.revision,
            layer=layer,
            tokenizer_fingerprint=fingerprint,
            method="num_senses" if budget is None else "budget",
            method_value=num_senses if budget is None else budget,
            max_samples_per_token=max_samples_per_token,
            window_length=max_length,
            seed=seed,
            num_texts=len(corpus),
            num_tokens=int(plan.counts.sum()),
            sensedict_version=version("sensedict_hf"),
        )
    )
    senses.senses.copy_(found.senses)
    senses.offsets.copy_(found.offsets)
    senses.usage.copy_(found.usage)
    senses.tokenizer = tokenizer
    return senses.eval()


def _padding(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Padding never gets senses, unless another special token serves as padding and is found in texts as itself."""
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id}
    return () if tokenizer.pad_token_id is None or tokenizer.pad_token_id in others else (tokenizer.pad_token_id,)


def gather_samples(
    teacher: Teacher,
    corpus: TokenizedCorpus,
    plan: SamplingPlan,
    directory: str | os.PathLike,
    *,
    max_length: int,
    layer: int,
    batch_size: int,
    dtype: str,
) -> np.ndarray:
    """Runs the teacher over the windows that own a planned position and stores the vectors of those, slot by slot.

    Returns:
        `[samples, hidden]`, a memory-mapped file in `directory`.

    Raises:
        ValueError: a vector is not finite, or too large for the dtype.
    """
    windows = corpus.windows(max_length)
    by_position = np.argsort(plan.positions)
    positions = plan.positions[by_position]
    first = np.searchsorted(positions, corpus.offsets[windows.text] + windows.own_start)
    last = np.searchsorted(positions, corpus.offsets[windows.text] + windows.own_stop)
    planned = np.flatnonzero(last > first)
    planned = planned[np.argsort(-(windows.stop - windows.start)[planned], kind="stable")]
    logger.info(f"{len(planned):,} of {len(windows):,} windows hold a sample; the others never reach the teacher")
    store = np.empty(0)
    for begin in tqdm(range(0, len(planned), batch_size), desc="Gathering", unit=" batches", leave=False):
        batch = planned[begin : begin + batch_size]
        rows = [corpus.window_ids(windows, index) for index in batch]
        input_ids, mask = (x.to(teacher.device) for x in pad_batch(rows, teacher.pad_token_id))
        hidden = teacher.hidden_states(input_ids, mask, layer)
        if not len(store):
            shape = (len(positions), hidden.shape[-1])
            store = np.memmap(Path(directory, "samples.bin"), dtype=dtype, mode="w+", shape=shape)
        sizes = last[batch] - first[batch]
        row = np.repeat(np.arange(len(batch)), sizes)
        sample = np.repeat(first[batch] - np.cumsum(sizes) + sizes, sizes) + np.arange(len(row))
        column = positions[sample] - (corpus.offsets[windows.text] + windows.start)[batch][row]
        vectors = hidden[torch.from_numpy(row).to(hidden.device), torch.from_numpy(column).to(hidden.device)].float().cpu().numpy()
        largest = np.abs(vectors).max()
        if not np.isfinite(largest):
            bad = windows.text[batch[row[np.flatnonzero(~np.isfinite(vectors).all(1))[0]]]]
            raise ValueError(f"{teacher.name} yields NaN or infinite vectors for text {bad}: try another dtype for the teacher")
        if largest > np.finfo(dtype).max:
            raise ValueError(f"{teacher.name} yields values up to {largest:.3g}, too large for {dtype}: use sample_dtype='float32'")
        store[by_position[sample]] = vectors
    return store
