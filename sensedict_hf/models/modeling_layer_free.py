"""A backbone without transformer layers: one vector per token, changed by the token's neighbours.

The vector of a token is `E[token] + U context`. `E` is a table. `context` has few dimensions: a convolution over small
embeddings of the neighbours, plus a map of their mean over the text.

The vector of a text is a weighted mean of the vectors of its tokens, and a hidden layer on that mean. The weights
depend on the token and on its context. `U` and the hidden layer are applied to the mean, once for a text and not once
for a token. So a text costs little more than reading its rows of the tables, and takes memory for its token ids and a
few small numbers for each.

`encode_ragged` has all texts of a batch in one long row, without padding: that is how students encode and are trained.
`forward` computes the same for a padded batch, as other libraries have it.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .arguments import check_choice
from .configuration_layer_free import TABLE_DTYPES, LayerFreeConfig
from .sense_lookup import store_senses

FIXED_TOKENS = "the token embeddings of a layer-free model cannot be replaced: make a model for the new tokens"
# Rows of an int8 table that become floats at a time. They fit into the cache of a core.
SUMMED_ROWS = 2048


class Int8Table(nn.Module):
    """A table whose rows are stored in int8, with a scale for each row. Only rows that are looked up become floats.

    Args:
        rows: Number of rows.
        width: Width of the rows.

    Attributes:
        weight: `[rows, width]`, int8.
        scales: `[rows]`, float32: row `i` stands for `weight[i] * scales[i]`.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, width
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(rows))

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows: ids of any shape, `[...] -> [..., width]`, in the dtype of the scales."""
        return F.embedding(ids, self.weight) * self.scales[ids][..., None]

    def sum_rows(self, ids: Tensor, weights: Tensor, text: Tensor, texts: int) -> Tensor:
        """Sum the rows of each text, weighted: ids, weights and indices of texts, `[tokens] -> [texts, width]`."""
        total = self.scales.new_zeros(texts, self.embedding_dim, dtype=torch.float32)
        columns = (ids, weights.float() * self.scales[ids], text)
        for some, factors, rows in zip(*(column.split(SUMMED_ROWS) for column in columns)):
            total.index_add_(0, rows, F.embedding(some, self.weight) * factors[:, None])
        return total.to(self.scales.dtype)


class LayerFreeModel(PreTrainedModel):
    """A backbone without transformer layers, for students that are many times as fast as their teacher.

    Args:
        config: Configuration of the model. The weights are random: make a student with
            `SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=0)`.

    Attributes:
        token_embeddings: The vectors of tokens without context, `[vocab, hidden]`, in units of `config.vector_scale`.
        token_weights: Logarithms of the tokens' weights in the mean of a text, `[vocab, 1]`.
        context_embeddings: The embeddings in which neighbours are seen, `[vocab, context_embedding_size]`. This table
            and `token_embeddings` are in int8 with `config.table_dtype="int8"`.

    Example:
        >>> import torch
        >>> from sensedict_hf import LayerFreeConfig, LayerFreeModel
        >>> model = LayerFreeModel(LayerFreeConfig(vocab_size=100, hidden_size=16))
        >>> output = model(torch.tensor([[5, 6, 7]]))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        (torch.Size([1, 3, 16]), torch.Size([1, 16]))
    """

    config: LayerFreeConfig
    config_class = LayerFreeConfig
    base_model_prefix = "layer_free"
    main_input_name = "input_ids"
    # There is no attention: any implementation of it is fine.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: LayerFreeConfig):
        super().__init__(config)
        width, inner = config.hidden_size, config.context_hidden_size
        table: type[Int8Table | nn.Embedding] = Int8Table if config.table_dtype == "int8" else nn.Embedding
        self.token_embeddings = table(config.vocab_size, width)
        self.token_weights = nn.Embedding(config.vocab_size, 1)
        if config.context_size:
            self.context_embeddings = table(config.vocab_size, config.context_embedding_size)
            size = 2 * config.context_window + 1
            self.neighbours = nn.Conv1d(config.context_embedding_size, inner, size, padding=config.context_window)
            self.text_mean = nn.Linear(config.context_embedding_size, inner, bias=False)
            self.context = nn.Linear(inner, config.context_size)
            self.context_weight = nn.Linear(inner, 1, bias=False)
            self.context_directions = nn.Linear(config.context_size, width, bias=False)
        if config.text_hidden_size:
            self.text_hidden = nn.Linear(width, config.text_hidden_size)
            self.text_output = nn.Linear(config.text_hidden_size, width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token vectors."""
        return self.token_embeddings

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Return the table of token vectors; refuse another number of tokens with a ValueError."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(f"{new_num_tokens} tokens instead of {self.config.vocab_size}: {FIXED_TOKENS}")
        return cast(nn.Embedding, self.token_embeddings)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse another table with a ValueError: the other tables are for the same tokens."""
        raise ValueError(FIXED_TOKENS)

    def convert_tables(self, table_dtype: str) -> None:
        """Store the tables of vectors in another dtype.

        Rows in int8 have 127 steps up to their largest absolute value. Tables in int8 are constant: a training does
        not change them.

        Args:
            table_dtype: `float32`, or `int8` with a scale for each row.

        Raises:
            ValueError: The dtype is unknown.

        Example:
            >>> from sensedict_hf import LayerFreeConfig, LayerFreeModel
            >>> model = LayerFreeModel(LayerFreeConfig(vocab_size=100, hidden_size=16))
            >>> model.convert_tables("int8")
            >>> model.token_embeddings.weight.dtype
            torch.int8
        """
        check_choice("table_dtype", table_dtype, TABLE_DTYPES)
        if table_dtype == self.config.table_dtype:
            return
        for name in ("token_embeddings", "context_embeddings"):
            if (old := getattr(self, name, None)) is None:
                continue
            if table_dtype == "int8":
                new = Int8Table(old.num_embeddings, old.embedding_dim)
                new.weight, scales = cast(tuple[Tensor, Tensor], store_senses(old.weight.detach(), torch.int8))
                new.scales = scales.to(old.weight.dtype)
            else:
                rows = old(torch.arange(old.num_embeddings, device=old.weight.device))
                new = nn.Embedding.from_pretrained(rows, freeze=False)
            setattr(self, name, new.train(self.training))
        self.config.table_dtype = table_dtype

    def encode_ragged(
        self, input_ids: Tensor, lengths: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Compute the vectors of texts, and of some of their tokens, without padding.

        Args:
            input_ids: `[tokens]`, the token ids of all texts, one text after the other, without special tokens.
            lengths: `[texts]`, the number of tokens of each text, at least 1.
            positions: `[positions]`, the tokens whose vectors are returned too. None: no tokens.

        Returns:
            The vectors of these tokens, `[positions, hidden]`, or None; and those of the texts, `[texts, hidden]`.
        """
        text = torch.repeat_interleave(torch.arange(len(lengths), device=input_ids.device), lengths)
        log_weights = self.token_weights(input_ids).squeeze(1)
        seen = None
        if self.config.context_size:
            seen = self._look_around(input_ids, lengths, text)
            log_weights = log_weights + self.context_weight(seen).squeeze(1)

        # The weighted mean of each text. What is linear is applied to the mean: context, and the way to full width.
        weights = _softmax_in_texts(log_weights, lengths, text)
        vectors = self._mean_embeddings(input_ids, weights, lengths, text)
        if seen is not None:
            mean_seen = _sum_texts(seen * weights[:, None], text, len(lengths)).to(seen.dtype)
            vectors = vectors + self.context_directions(self.context(mean_seen))
        vectors = self._transform_texts(vectors)

        if positions is None:
            return None, vectors
        own = self.token_embeddings(input_ids[positions])
        if seen is not None:
            own = own + self.context_directions(self.context(seen[positions]))
        return own * self.config.vector_scale, vectors

    def _mean_embeddings(self, input_ids: Tensor, weights: Tensor, lengths: Tensor, text: Tensor) -> Tensor:
        """Return the weighted mean of the embeddings of each text, `[texts, hidden]`. The weights of a text sum to 1.

        The rows of all tokens are never in memory together.
        """
        table = self.token_embeddings
        if isinstance(table, Int8Table):
            return table.sum_rows(input_ids, weights, text, len(lengths))
        if not isinstance(table, nn.Embedding):  # it has adapters
            rows = table(input_ids)
            return _sum_texts(rows * weights[:, None], text, len(lengths)).to(rows.dtype)
        starts = lengths.cumsum(0) - lengths
        return F.embedding_bag(
            input_ids,
            table.weight,
            starts,
            mode="sum",
            sparse=table.sparse,
            per_sample_weights=weights.to(table.weight.dtype),
        )

    def _look_around(self, input_ids: Tensor, lengths: Tensor, text: Tensor) -> Tensor:
        """Return what each token sees of its neighbours and of its text, `[tokens, context_hidden_size]`."""
        embeddings = self.context_embeddings(input_ids)
        mean = _sum_texts(embeddings, text, len(lengths)) / lengths[:, None]
        # Empty places between the texts, so that no token sees a neighbour of another text.
        place = torch.arange(len(input_ids), device=input_ids.device) + text * self.config.context_window
        row = embeddings.new_zeros(len(input_ids) + len(lengths) * self.config.context_window, embeddings.shape[1])
        row = row.index_copy(0, place, embeddings)
        seen = self.neighbours(row.T[None])[0].T.contiguous().index_select(0, place)
        return F.gelu(seen + self.text_mean(mean).index_select(0, text))

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Compute the vectors of a padded batch. `torch.onnx.export` takes it, for any number and length of texts.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.
            kwargs: Arguments of other backbones, such as `token_type_ids`; they change nothing.

        Returns:
            `last_hidden_state`, `[batch, positions, hidden]`: the vectors of tokens. Special tokens and padding have
            no context. `pooler_output`, `[batch, hidden]`: the vectors of texts, zeros for a text without tokens.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for token_id in self.config.special_token_ids:
            mask = mask & (input_ids != token_id)
        # The tokens that count move to the front of their row, so that neighbours are next to each other.
        count = mask.sum(1, keepdim=True)
        place = torch.where(mask, mask.cumsum(1), count + (~mask).cumsum(1)) - 1
        token_ids = torch.zeros_like(input_ids).scatter(1, place, input_ids)
        is_token = (torch.arange(input_ids.shape[1], device=input_ids.device) < count)[..., None]

        vectors, logits = self.token_embeddings(token_ids), self.token_weights(token_ids)
        if self.config.context_size:
            embeddings = self.context_embeddings(token_ids) * is_token
            mean = embeddings.sum(1) / count.clamp_min(1)
            seen = self.neighbours(embeddings.transpose(1, 2)).transpose(1, 2)
            seen = F.gelu(seen + self.text_mean(mean)[:, None])
            logits = logits + self.context_weight(seen)
            vectors = vectors + self.context_directions(self.context(seen)) * is_token
        weights = logits.masked_fill(~is_token, torch.finfo(logits.dtype).min).softmax(1)
        pooled = self._transform_texts((vectors * weights).sum(1)) * (count > 0)
        own = vectors.gather(1, place[..., None].expand_as(vectors)) * self.config.vector_scale
        return BaseModelOutputWithPooling(last_hidden_state=own, pooler_output=pooled)

    def _transform_texts(self, vectors: Tensor) -> Tensor:
        """Return the vectors of texts from the weighted means of their tokens, both `[texts, hidden]`."""
        if self.config.text_hidden_size:
            vectors = vectors + self.text_output(F.gelu(self.text_hidden(vectors)))
        return vectors * self.config.vector_scale


def _softmax_in_texts(logits: Tensor, lengths: Tensor, text: Tensor) -> Tensor:
    """Return weights of tokens, `[tokens]`, float32, that sum to 1 in each text."""
    logits = logits.float()
    # The largest weight of a text is 1 before the division, so that no sum overflows or vanishes.
    largest = torch.segment_reduce(logits.detach(), "max", lengths=lengths, unsafe=True)
    weights = (logits - largest.index_select(0, text)).exp()
    total = logits.new_zeros(len(lengths)).index_add(0, text, weights)
    return weights / total.index_select(0, text)


def _sum_texts(rows: Tensor, text: Tensor, texts: int) -> Tensor:
    """Sum the rows of each text: `[tokens, width] -> [texts, width]`.

    The sum is made in float32. In bfloat16 a sum of many small numbers stops growing.
    """
    total = rows.new_zeros(texts, rows.shape[1], dtype=torch.float32)
    return total.index_add(0, text, rows.float()).to(rows.dtype)
