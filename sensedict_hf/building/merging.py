"""Sense dictionaries of one teacher, built on different texts -> one; or one -> a smaller one."""

from collections.abc import Sequence
from importlib.metadata import version
from tempfile import TemporaryDirectory

import torch

from ..models.configuration_sense_embedding import SAME_VECTORS, SENSES_DTYPES, SenseEmbeddingConfig
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.sense_lookup import store_senses
from .fitting import fit_senses, read_senses
from .planning import check_budget


def merge_sense_dictionaries(dictionaries: Sequence[SenseEmbeddingModel], budget: int) -> SenseEmbeddingModel:
    """Merges dictionaries of the same teacher, or makes a single one smaller. Each sense counts as often as it was used; a sense that was
    never used is dropped.

    The senses of each token are clustered as samples are in a build, so that the distortion of the result is that of the dictionaries
    and what the merging adds to it.

    Args:
        budget: senses in all, placed over the tokens where they lower the squared distance most.

    Raises:
        ValueError: no dictionaries, some of different teachers or tokenizers, or a budget below one sense for each token.
    """
    if not dictionaries:
        raise ValueError("no dictionaries: give some that were built with the same teacher, or one to make it smaller")
    first, *others = (senses.config for senses in dictionaries)
    for config in others:
        first.check_same_vectors(config)
    tokens, rows, weights = [], [], []
    for senses in dictionaries:
        usage = senses.usage.cpu()
        used = usage > 0
        tokens.append(torch.arange(first.vocab_size).repeat_interleave(senses.offsets.cpu().diff())[used])
        rows.append(senses.dequantized().cpu().float()[used])
        weights.append(usage[used])
    order = torch.cat(tokens).argsort(stable=True)
    token, weight = torch.cat(tokens)[order], torch.cat(weights)[order]
    sizes = torch.bincount(token, minlength=first.vocab_size)
    check_budget(budget, int((sizes > 0).sum()))
    store = {
        "samples": torch.cat(rows)[order],
        "offsets": torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
        "counts": torch.bincount(token, weight.double(), minlength=first.vocab_size).long(),
        "weights": weight,
    }
    with TemporaryDirectory(prefix="sensedict-") as folder:
        fit_senses(store, folder, budget=budget, similarity=first.similarity, alone=True)
        found = read_senses(folder, store)
    configs = [senses.config for senses in dictionaries]
    num_tokens = [int(senses.usage.sum()) for senses in dictionaries]
    before = sum(config.distortion * number for config, number in zip(configs, num_tokens)) / sum(num_tokens)
    merged = SenseEmbeddingModel(
        SenseEmbeddingConfig(
            num_senses=len(found.senses),
            senses_dtype=first.senses_dtype,
            assignment=first.assignment,
            assignment_temperature=first.assignment_temperature,
            residual=first.residual,
            distortion=before + found.distortion,
            method="merge",
            method_value=budget,
            num_texts=sum(config.num_texts or 0 for config in configs),
            num_tokens=sum(num_tokens),
            sensedict_version=version("sensedict_hf"),
            **{name: getattr(first, name) for name in SAME_VECTORS},
        )
    )
    merged.senses, merged.scales = store_senses(found.senses, SENSES_DTYPES[first.senses_dtype])
    merged.offsets, merged.usage = found.offsets, found.usage
    merged.tokenizer = dictionaries[0].tokenizer
    return merged.eval()
