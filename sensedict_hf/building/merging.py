"""Merge sense dictionaries of one teacher, or make a single one smaller."""

from collections.abc import Sequence
from importlib.metadata import version

import torch

from ..data import with_datasets
from ..models.arguments import check_integer, check_kind
from ..models.configuration_sense_embedding import (
    SAME_VECTORS,
    SENSES_DTYPES,
    TEACHER_NAMES,
    SenseEmbeddingConfig,
)
from ..models.loading import check_dictionary
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.sense_lookup import store_senses
from .fitting import cluster_samples
from .planning import check_budget

# What a merged dictionary keeps where all of them agree.
SHARED = ("window_length", "max_samples_per_token", "seed")


def merge_sense_dictionaries(
    dictionaries: Sequence[SenseEmbeddingModel], budget: int | None = None
) -> SenseEmbeddingModel:
    """Merge dictionaries of the same teacher, or make a single dictionary smaller.

    The senses of each token are clustered like samples in a build, each weighted by its usage. Senses with usage 0 are
    dropped. With `dot` similarity the usage is how often a sense has the largest product, so that the mean is not that
    of all vectors. The distortion of the result is the mean distortion of the dictionaries, weighted by their usage,
    plus what the merging adds. It is an upper bound: a vector may be closer to a sense of another dictionary.

    Args:
        dictionaries: The dictionaries, or a single one to make smaller.
        budget: Senses in all. They are given to the tokens where they lower the squared distance most. Default for a
            single dictionary: one sense for each token, the mean of its vectors. That is enough for a student that
            returns half of its own vectors.

    Returns:
        The merged dictionary. It has the dtype, the assignment and the tokenizer of the first one.

    Raises:
        ValueError: There are no dictionaries, or several without a budget; their teachers, layers, prompts, tokenizers
            or similarities differ; or the budget is below one sense for each token.

    Example:
        >>> from sensedict_hf import merge_sense_dictionaries
        >>> smaller = merge_sense_dictionaries([senses], budget=3_000)
        >>> smaller.config.num_senses
        3000
        >>> int(merge_sense_dictionaries([senses]).offsets.diff().max())
        1
    """
    check_kind("dictionaries", dictionaries, (list, tuple), "a list of dictionaries")
    if not dictionaries:
        raise ValueError("no dictionaries: give some that were built with the same teacher, or one to make it smaller")
    for dictionary in dictionaries:
        check_dictionary(dictionary)
    if budget is not None:
        budget = check_integer("budget", budget, 1)
    elif len(dictionaries) > 1:
        raise ValueError("give a budget, the number of senses in all: only a single dictionary has a default")
    configs = [dictionary.config for dictionary in dictionaries]
    first = configs[0]
    for config in configs[1:]:
        first.check_same_vectors(config)

    # Collect the senses that were used, with their tokens and usage, in the order of the tokens.
    tokens, rows, weights = [], [], []
    for dictionary in dictionaries:
        usage = dictionary.usage.cpu()
        used = usage > 0
        tokens.append(torch.arange(first.vocab_size).repeat_interleave(dictionary.offsets.cpu().diff())[used])
        rows.append(dictionary.dequantized().cpu().float()[used])
        weights.append(usage[used])
    order = torch.cat(tokens).argsort(stable=True)
    token, weight = torch.cat(tokens)[order], torch.cat(weights)[order]
    sizes = torch.bincount(token, minlength=first.vocab_size)
    num_seen = int((sizes > 0).sum())
    if not num_seen:
        raise ValueError("the dictionary has no senses, like that of a student without layers: nothing to merge")
    budget = num_seen if budget is None else budget
    check_budget(budget, num_seen)

    # Cluster them like samples.
    found = cluster_samples(
        torch.cat(rows)[order],
        torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
        torch.bincount(token, weight.double(), minlength=first.vocab_size).long(),
        weight,
        budget=budget,
        similarity=first.similarity,
    )

    # Make a dictionary from the result.
    num_tokens = [int(dictionary.usage.sum()) for dictionary in dictionaries]
    before = sum(config.distortion * number for config, number in zip(configs, num_tokens)) / sum(num_tokens)
    datasets = [name for config in configs for name in (config.card_data or {}).get("datasets", [])]
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
            **{name: getattr(first, name) for name in SHARED if len({getattr(each, name) for each in configs}) == 1},
            card_data=with_datasets(first.card_data, datasets),
            sensedict_version=version("sensedict_hf"),
            **{name: getattr(first, name) for name in TEACHER_NAMES + SAME_VECTORS},
        )
    )
    merged.senses, merged.scales = store_senses(found.senses, SENSES_DTYPES[first.senses_dtype])
    merged.offsets, merged.usage = found.offsets, found.usage
    merged.tokenizer = dictionaries[0].tokenizer
    merged.eval()
    return merged
