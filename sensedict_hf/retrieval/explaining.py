"""What the tokens of a query match in a document."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.modeling_sense_embedding import SenseEmbeddingModel
from .own_rows import OwnRows


class Match(NamedTuple):
    """What a token of a query matched in a document.

    Attributes:
        query_token: The token of the query.
        document_token: The token of the document with the best sense.
        sense_id: Index of this sense among the senses of the token; -1 if the token has none and a row of its own.
        cosine: The cosine of the query token's vector and the sense: what the match adds to the score.
    """

    query_token: str
    document_token: str
    sense_id: int
    cosine: float


def tokens_of_rows(rows: Tensor, senses: SenseEmbeddingModel, own_rows: OwnRows) -> tuple[Tensor, Tensor]:
    """Return the token of each row of an index, and which of the senses of the token it is, both `[n]`.

    Args:
        rows: Row numbers, `[n]`.
        senses: The dictionary.
        own_rows: The rows of tokens without senses, for which the second number is -1.
    """
    offsets, num_senses = senses.offsets.cpu(), senses.config.num_senses
    is_sense = rows < num_senses
    tokens = torch.searchsorted(offsets, rows, right=True) - 1
    tokens[~is_sense] = own_rows.tokens[rows[~is_sense] - num_senses]
    return tokens, torch.where(is_sense, rows - offsets[tokens], -1)


def find_matches(
    query_tokens: Tensor,
    cosines: Tensor,
    rows: NDArray[np.integer[Any]],
    tokenizer: PreTrainedTokenizerBase,
    senses: SenseEmbeddingModel,
    own_rows: OwnRows,
) -> list[Match]:
    """Return what each token of a query matched in a document.

    Args:
        query_tokens: The tokens of the query, `[tokens]`.
        cosines: The cosine of each with each row of the index, `[tokens, rows]`.
        rows: The rows of the document.
        tokenizer: Names the tokens.
        senses: The dictionary.
        own_rows: The rows of tokens without senses.
    """
    found = torch.from_numpy(rows.astype(np.int64))
    best = cosines[:, found].max(dim=1)
    tokens, sense_ids = tokens_of_rows(found[best.indices], senses, own_rows)
    names = map(tokenizer.convert_ids_to_tokens, (query_tokens.tolist(), tokens.tolist()))
    return [Match(*match) for match in zip(*names, sense_ids.tolist(), best.values.tolist())]
