"""What a student without layers takes over from its teacher: the vectors of tokens."""

import copy
from dataclasses import asdict
from itertools import chain
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.logging import tqdm

from .arguments import check_kind
from .configuration_layer_free import LayerFreeConfig
from .configuration_sense_embedding import SenseEmbeddingConfig
from .fingerprints import tokenizer_fingerprint
from .modeling_layer_free import LayerFreeModel
from .modeling_sense_embedding import SenseEmbeddingModel
from .teachers import Teacher
from .tokenization import count_embeddings, special_tokens_around

# Fields of the backbone's config that a user may choose.
SIZES = ("context_size", "context_window", "context_embedding_size", "context_hidden_size", "text_hidden_size")
# A token of relative frequency p has the weight a / (a + p). Source: Arora et al., "A Simple but Tough-to-Beat
# Baseline for Sentence Embeddings", ICLR 2017.
SIF_CONSTANT = 1e-3
# The vector of a token alone counts as this many occurrences: rare tokens stay near it.
PSEUDO_COUNTS = 2
# Vectors that directions are computed from.
MAX_ROWS = 20_000
TOKENS_IN_BATCH = 512


class TokenStatistics(NamedTuple):
    """What is known of the teacher's vectors of each token.

    Attributes:
        counts: `[vocab]`, float32, the occurrences of each token.
        sums: `[vocab, hidden]`, float32, the sum of its vectors.
        tokens: `[n]`, the tokens of some vectors in context.
        vectors: `[n, hidden]`, float32, these vectors.
        weights: `[n]`, float32, how many occurrences each of them stands for.
    """

    counts: Tensor
    sums: Tensor
    tokens: Tensor
    vectors: Tensor
    weights: Tensor

    @classmethod
    def of_senses(cls, senses: SenseEmbeddingModel) -> "TokenStatistics":
        """Take the senses of a dictionary for vectors in context. A sense is the mean of the vectors that use it.

        Raises:
            ValueError: The senses are of the next token.
        """
        if senses.config.key == "next":
            raise ValueError(
                "a student without layers cannot predict the next token, which the senses are of: keep a layer, by "
                "num_hidden_layers=1, or build a dictionary with key='input'"
            )
        table, usage = senses.dequantized().float().cpu(), senses.usage.cpu().float()
        tokens = torch.arange(senses.config.vocab_size).repeat_interleave(senses.offsets.cpu().diff())
        counts = usage.new_zeros(senses.config.vocab_size).index_add_(0, tokens, usage)
        sums = table.new_zeros(len(counts), table.shape[1]).index_add_(0, tokens, table * usage[:, None])
        return cls(counts, sums, tokens, table, usage)


@runtime_checkable
class StoredVectors(Protocol):
    """The teacher's vectors of texts, as `encode_vectors` returns them.

    Attributes:
        settings: What they were computed with.
    """

    settings: dict[str, Any]

    def token_statistics(self, vocab_size: int) -> TokenStatistics:
        """Return what they say of each token."""


def make_layer_free(
    teacher: Teacher, statistics: TokenStatistics, layer: int, sizes: dict[str, Any]
) -> LayerFreeModel:
    """Make a backbone without layers whose vectors are those that the teacher gives the tokens on average.

    Args:
        teacher: The teacher. It runs over each token alone.
        statistics: What is known of its vectors of each token.
        layer: Index of the hidden states that the vectors are.
        sizes: Fields of :class:`LayerFreeConfig`: any of `SIZES`.

    Returns:
        The backbone, in float32. Context and hidden layer change nothing before training.
    """
    counts, sums, tokens, examples, weights = statistics
    # `Trainer` warns of a model that does not know the special tokens of its tokenizer.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = LayerFreeConfig(
        vocab_size=len(counts),
        hidden_size=sums.shape[1],
        special_token_ids=surrounding_ids(teacher),
        **{name: getattr(teacher.tokenizer, name) for name in names},
        **sizes,
    )
    model = LayerFreeModel(config)

    # The mean vector of each token. All vectors are in units of their root mean square in texts, unless that is zero.
    vectors = PSEUDO_COUNTS * encode_tokens(teacher, config.vocab_size, layer) + sums
    vectors /= (counts + PSEUDO_COUNTS)[:, None]
    frequency = (counts + 0.5) / (counts + 0.5).sum()
    config.vector_scale = float(frequency @ vectors.square().mean(1)) ** 0.5 or 1.0
    vectors /= config.vector_scale
    model.token_embeddings.weight.data.copy_(vectors)

    # Frequent tokens weigh less.
    model.token_weights.weight.data.copy_((SIF_CONSTANT / (SIF_CONSTANT + frequency)).log()[:, None])

    if config.context_size:
        _start_context(model, vectors, counts, examples / config.vector_scale - vectors[tokens], weights)
    if config.text_hidden_size:
        model.text_output.weight.data.zero_()
        model.text_output.bias.data.zero_()
    model.eval()
    return model


def _start_context(model: LayerFreeModel, vectors: Tensor, counts: Tensor, rest: Tensor, usage: Tensor) -> None:
    """Set the first weights of the context: small embeddings by PCA, directions by what the mean vectors leave out.

    Args:
        model: The backbone to fill.
        vectors: `[vocab, hidden]`, the mean vectors.
        counts: `[vocab]`, occurrences of the tokens.
        rest: `[n, hidden]`, vectors in context minus the mean vectors of their tokens.
        usage: `[n]`, how many occurrences each of them stands for.
    """
    config = model.config
    weights = counts.clamp_min(0.5).sqrt()[:, None]
    centred = vectors - (vectors * weights**2).sum(0) / (weights**2).sum()
    directions = _principal_directions(centred * weights / weights.mean(), config.context_embedding_size)
    small = centred @ directions.T
    small /= small.std().clamp_min(torch.finfo(small.dtype).tiny)
    model.context_embeddings.weight.data.zero_()
    model.context_embeddings.weight.data[:, : len(directions)] = small
    # Senses that are used most say most about what differs between contexts.
    kept = usage.argsort(descending=True, stable=True)[:MAX_ROWS]
    directions = _principal_directions(rest[kept] * usage[kept].sqrt()[:, None], config.context_size)
    output = torch.zeros(config.context_size, config.hidden_size, dtype=torch.float32)
    output[: len(directions)] = directions
    model.context_directions.weight.data.copy_(output.T)
    for layer in (model.context, model.context_weight):
        layer.weight.data.zero_()
    model.context.bias.data.zero_()


def _principal_directions(rows: Tensor, number: int) -> Tensor:
    """Return up to `number` right singular vectors of `[rows, width]`, the largest first, as rows."""
    vectors: Tensor = torch.linalg.eigh(rows.T @ rows).eigenvectors  # by ascending eigenvalue
    return vectors.T.flip(0)[:number]


@torch.inference_mode()
def encode_tokens(teacher: Teacher, vocab_size: int, layer: int = -1) -> Tensor:
    """Return the vectors that the teacher gives each token alone, between its special tokens, `[vocab, hidden]`.

    Args:
        teacher: The teacher.
        vocab_size: Number of tokens. Those that the teacher has no embedding for get zeros.
        layer: Index of the hidden states.
    """
    before, after = map(torch.tensor, special_tokens_around(teacher.tokenizer))
    known = min(vocab_size, count_embeddings(teacher.model))
    parts = []
    bar = tqdm(total=known, desc="Encoding tokens", unit=" tokens", leave=False, disable=known <= TOKENS_IN_BATCH)
    with bar:
        for first in range(0, known, TOKENS_IN_BATCH):
            tokens = torch.arange(first, min(first + TOKENS_IN_BATCH, known))
            rows = [x.long().expand(len(tokens), -1) for x in (before, after)]
            input_ids = torch.cat([rows[0], tokens[:, None], rows[1]], dim=1).to(teacher.device)
            states = teacher.hidden_states(input_ids, torch.ones_like(input_ids), layer)
            parts.append(states[:, len(before)].float().cpu())
            bar.update(len(tokens))
    vectors = torch.cat(parts)
    return F.pad(vectors, (0, 0, 0, vocab_size - known)).clone()


def surrounding_ids(teacher: Teacher) -> list[int]:
    """Return the ids of the special tokens that the tokenizer puts around a text, in ascending order."""
    return sorted(set(chain(*special_tokens_around(teacher.tokenizer))))


def empty_dictionary(senses: SenseEmbeddingModel) -> SenseEmbeddingModel:
    """Return a dictionary that says where it comes from as the given one does, and has no senses."""
    config = copy.deepcopy(senses.config)
    config.num_senses = 0
    empty = SenseEmbeddingModel(config)
    empty.tokenizer = senses.tokenizer
    return empty


def check_vectors(settings: dict[str, Any], **wanted: Any) -> None:
    """Raise a ValueError for vectors of texts that were computed with other settings than those that are wanted."""
    for name, value in wanted.items():
        if settings.get(name) != value:
            raise ValueError(
                f"the vectors were computed with {name}={settings.get(name)}, here it is {value}: compute them again"
            )


def read_statistics(teacher: Teacher, vectors: StoredVectors) -> tuple[TokenStatistics, SenseEmbeddingModel]:
    """Return what the vectors of texts say of each token, and a dictionary without senses that says whose they are.

    Args:
        teacher: The teacher.
        vectors: Its vectors.

    Raises:
        ValueError: The vectors are of other weights, another config, tokenizer, prompt or pooling than the teacher
            has.
    """
    check_kind("vectors", vectors, StoredVectors, "what encode_vectors returns")
    settings, tokenizer = vectors.settings, tokenizer_fingerprint(teacher.tokenizer)
    prompt = teacher.prompt and asdict(teacher.prompt)
    check_vectors(settings, tokenizer=tokenizer, prompt=prompt, pooling=teacher.pooling)
    if settings["teacher_fingerprint"] != teacher.fingerprint():
        raise ValueError(
            f"the vectors are of {settings['teacher']} with other weights, another config or in another dtype than "
            f"{teacher.name} has: pass the model that has computed them, loaded in the same way"
        )
    statistics = vectors.token_statistics(max(teacher.tokenizer.get_vocab().values()) + 1)
    config = SenseEmbeddingConfig(
        vocab_size=len(statistics.counts),
        hidden_size=statistics.sums.shape[1],
        base_model_name_or_path=teacher.name,
        base_model_revision=teacher.revision,
        base_model_fingerprint=settings["teacher_fingerprint"],
        tokenizer_fingerprint=tokenizer,
        layer=settings["layer"],
        window_length=settings["max_length"],
        prompt=settings["prompt"],
        attention=teacher.attention,
        num_tokens=int(statistics.counts.sum()),
        sensedict_version=settings["sensedict_hf"],
        card_data=teacher.card_data or None,
    )
    senses = SenseEmbeddingModel(config)
    senses.tokenizer = teacher.tokenizer
    return statistics, senses
