"""What the tokens of a query match in a document."""

from typing import NamedTuple

import torch
from torch import Tensor

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
