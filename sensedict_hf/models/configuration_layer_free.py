"""The configuration of a backbone without transformer layers."""

from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig

from .arguments import check_choice, check_integer, check_number

TABLE_DTYPES = ("float32", "int8")


class LayerFreeConfig(PreTrainedConfig):
    """Configuration of a :class:`LayerFreeModel`.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Width of the vectors of tokens and texts.
        context_size: Dimensions in which the neighbours of a token change its vector. 0: a token has the same vector
            everywhere.
        context_window: Number of neighbours on each side that a token looks at.
        context_embedding_size: Width of the embeddings that neighbours are looked at in.
        context_hidden_size: Width between neighbours and context.
        text_hidden_size: Width of the hidden layer on the vector of a text. 0: there is none.
        special_token_ids: Ids of tokens that have no part in the vector of a text, such as `[CLS]` and `[SEP]`.
        table_dtype: How the tables `token_embeddings` and `context_embeddings` are stored: `float32`, or `int8` with
            a scale for each row. Tables in int8 are constant.
        vector_scale: Factor of all vectors. The weights are in units of it, so that the same learning rates fit
            teachers with short and with long vectors.
        kwargs: Other fields of every config of transformers.

    Raises:
        ValueError: A size is negative, `vocab_size` or `hidden_size` is 0, `table_dtype` is unknown, or `vector_scale`
            is not a finite number above 0.

    Example:
        >>> from sensedict_hf import LayerFreeConfig
        >>> LayerFreeConfig(vocab_size=100, hidden_size=16).num_hidden_layers
        0
    """

    model_type = "layer_free"

    vocab_size: int = 30522
    hidden_size: int = 384
    context_size: int = 64
    context_window: int = 3
    context_embedding_size: int = 32
    context_hidden_size: int = 96
    text_hidden_size: int = 1024
    special_token_ids: list[int] = field(default_factory=list)
    table_dtype: str = "float32"
    vector_scale: float = 1.0
    num_hidden_layers: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("vocab_size", "hidden_size", "context_embedding_size", "context_hidden_size"):
            setattr(self, name, check_integer(name, getattr(self, name), 1))
        for name in ("context_size", "context_window", "text_hidden_size"):
            setattr(self, name, check_integer(name, getattr(self, name), 0))
        self.vector_scale = check_number("vector_scale", self.vector_scale, above=0)
        check_choice("table_dtype", self.table_dtype, TABLE_DTYPES)
        super().__post_init__(**kwargs)
