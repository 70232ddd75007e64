"""The sense dictionary as a model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .arguments import check_integer, is_traced
from .configuration_sense_embedding import SENSES_DTYPES, SenseEmbeddingConfig, check_assignment, check_residual
from .fingerprints import digest_tensors
from .hub import SensePreTrainedModel
from .outputs import SenseEmbeddingOutput
from .sense_lookup import RaggedSenses, assign_senses, look_up, sense_cross_entropy, sense_posterior, store_senses
from .static_lookup import MostSenses
from .tokenization import find_token
from .validation import check_finite, check_structure


class SenseEmbeddingModel(SensePreTrainedModel):
    """A sense dictionary: a few vectors for every token of a vocabulary, which stand for all its contextual vectors.

    The senses of all tokens are in one table, one token after the other.

    Args:
        config: Configuration of the dictionary, whose senses are zeros at first.

    Attributes:
        senses: `[total_senses, hidden]`, the table: a buffer, or a parameter with `config.learn_senses`. This is its
            name in saved files; `table` is the same tensor.
        offsets: `[vocab + 1]`, int64. The senses of token `t` are the rows `offsets[t]:offsets[t + 1]`.
        usage: `[total_senses]`, int64: how often each sense was the nearest one in the corpus.
        scales: `[total_senses]`, float32: the factors of the rows of an int8 table. None for other dtypes.

    Raises:
        ValueError: A field of the config has a value that is not allowed, or int8 senses are to be learned.

    Example:
        >>> senses.save_pretrained("senses")
        >>> dictionary = SenseEmbeddingModel.from_pretrained("senses")
        >>> dictionary.table.shape == (dictionary.config.num_senses, 384)
        True
        >>> len(dictionary.senses_of("bank")) > 1
        True
    """

    config: SenseEmbeddingConfig
    config_class = SenseEmbeddingConfig
    senses: Tensor
    offsets: Tensor
    usage: Tensor
    scales: Tensor | None
    main_input_name = "input_ids"
    base_model_prefix = "sense_embedding"

    def __init__(self, config: SenseEmbeddingConfig) -> None:
        super().__init__(config)
        config.check()
        if config.learn_senses:
            if config.senses_dtype == "int8":
                raise ValueError(
                    "learn_senses=True: int8 senses cannot be learned; make them float32 first, by "
                    "senses.to_dtype('float32')"
                )
            config.senses_dtype = "float32"  # half precision would lose small updates

        # from_pretrained builds on the meta device, where no table takes memory: sense_device must not overrule that.
        device = None if torch.empty(0).is_meta else config.sense_device
        # The dtype is explicit, so that from_pretrained(dtype=...) keeps it. Only a table that is loaded in the dtype
        # of its file is memory-mapped.
        table = torch.zeros(
            config.num_senses, config.hidden_size, dtype=SENSES_DTYPES[config.senses_dtype], device=device
        )
        if config.learn_senses:
            self.senses = nn.Parameter(table)
        else:
            self.register_buffer("senses", table)
        if config.senses_dtype == "int8":
            self.register_buffer("scales", torch.zeros(config.num_senses, dtype=torch.float32, device=device))
        else:
            self.scales = None
        self.register_buffer("offsets", torch.zeros(config.vocab_size + 1, dtype=torch.int64))
        self.register_buffer("usage", torch.zeros(config.num_senses, dtype=torch.int64, device=device))
        self._most_senses = MostSenses()
        self.register_load_state_dict_post_hook(_count_most_senses)
        self.post_init()

    @property
    def table(self) -> Tensor:
        """The senses of all tokens as they are stored, `[total_senses, hidden]`."""
        return self.senses

    @property
    def ragged(self) -> RaggedSenses:
        """The table with its offsets, similarity and scales, as the functions of :mod:`sense_lookup` take it."""
        return RaggedSenses(self.senses, self.offsets, self.config.similarity, self.scales)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the senses; float32 for an int8 table."""
        return self.senses.dtype if self.scales is None else self.scales.dtype

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs. With `config.sense_device` the table may be on another one."""
        return self.offsets.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SenseEmbeddingModel":
        """Move the tables, but keep their dtype: `student.bfloat16()` must not round the senses.

        With `config.sense_device` all tensors that have a row for each sense stay there. PyTorch moves and casts a
        module through this method alone, also as part of a larger module.
        """
        host_tensors = [getattr(self, name) for name in self._host_tensors()]

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor[:0])  # shows device and dtype without moving the table
            if any(tensor is table for table in host_tensors) and not tensor.is_meta:
                return tensor.to(self.config.sense_device)
            return fn(tensor) if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self

    def extra_repr(self) -> str:
        """Return what `print(senses)` shows: size, dtype and teacher."""
        config = self.config
        size = (
            f"{config.num_senses:,} senses of width {config.hidden_size}, {config.senses_dtype}, {config.similarity}"
        )
        return f"{size}, layer {config.layer} of {config.base_model_name_or_path or 'an unnamed teacher'}"

    def _check_structure(self) -> None:
        check_structure(self.config, self.senses, self.offsets, self.usage, self.scales)
        self._most_senses.of(self.offsets)

    def _host_tensors(self) -> list[str]:
        names = [name for name, _ in self.named_buffers(recurse=False) if name != "offsets"]
        return names if self.config.sense_device is not None else []

    def forward(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        assignment: str | None = None,
        residual: float | None = None,
    ) -> SenseEmbeddingOutput:
        """Replace contextual vectors by senses.

        Args:
            input_ids: `[batch, positions]`, token ids.
            hidden_states: `[batch, positions, hidden]`, from the layer that the dictionary was built for.
            attention_mask: `[batch, positions]`; where it is 0, the vector stays as it is. None: there is no padding.
            assignment: `hard`, `soft` or `none`. None: the assignment of the config.
            residual: Weight of the vectors themselves, from 0 to 1. None: the residual of the config.

        Returns:
            The vectors after the assignment, and the sense ids. Assignment `none` returns sense ids too.

        Raises:
            ValueError: The shapes do not fit together, a token id is outside the vocabulary, the assignment is
                unknown, or the residual is not between 0 and 1.

        Example:
            >>> batch = senses.tokenizer(["the bank of a river"], return_tensors="pt")
            >>> hidden = teacher.hidden_states(batch["input_ids"])
            >>> output = senses(batch["input_ids"], hidden, assignment="hard")
            >>> output.hidden_states.shape, output.sense_ids.shape
            (torch.Size([1, 7, 384]), torch.Size([1, 7]))
        """
        assignment = assignment or self.config.assignment
        check_assignment(assignment)
        flat, tokens = self._flatten(*self.config.key_tokens(input_ids, attention_mask), hidden_states)
        temperature = self.score_temperature(self.config.assignment_temperature) if assignment == "soft" else None
        most = self._most_senses.of(self.offsets)
        vectors, sense_ids = assign_senses(flat, tokens, self.ragged, temperature, most)
        vectors = vectors.view_as(hidden_states)

        # Mix with the vectors themselves.
        residual = self.config.residual if residual is None else residual
        if not is_traced():
            check_residual(residual)  # config.residual may have been set without a check
        if residual:
            vectors = vectors + residual * (hidden_states.detach() - vectors)

        # Straight-through estimator (van den Oord et al., "Neural discrete representation learning", 2017): the choice
        # of a sense passes its gradient on to the vector that made it. The added difference is exactly zero.
        if hidden_states.requires_grad:
            vectors = vectors + (hidden_states - hidden_states.detach())
        return SenseEmbeddingOutput(
            hidden_states=hidden_states if assignment == "none" else vectors,
            sense_ids=sense_ids.view(input_ids.shape),
        )

    def posterior(
        self,
        token_ids: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Find the most probable senses of each position, see :func:`sense_posterior`.

        Args:
            token_ids: `[batch, positions]`, the tokens that the vectors belong to, see `config.key_tokens`.
            hidden_states: `[batch, positions, hidden]`, from the layer that the dictionary was built for.
            attention_mask: `[batch, positions]`; where it is 0, a position has no senses. None: there is no padding.
            temperature: Temperature of the softmax, in units of the dictionary's distortion.
            top_k: How many senses to return for each position.

        Returns:
            Sense ids `[batch, positions, top_k]`, the most probable first, -1 where the token has fewer senses, and
            their probabilities `[batch, positions, top_k]`, float32, which sum to 1 for each position that has senses.

        Raises:
            ValueError: The shapes do not fit together, or a token id is outside the vocabulary.

        Example:
            >>> batch = senses.tokenizer(["the bank of a river"], return_tensors="pt")
            >>> hidden = teacher.hidden_states(batch["input_ids"])
            >>> sense_ids, probabilities = senses.posterior(batch["input_ids"], hidden, top_k=3)
            >>> sense_ids.shape
            torch.Size([1, 7, 3])
        """
        flat, tokens = self._flatten(token_ids, attention_mask, hidden_states)
        temperature = self.score_temperature(temperature)
        sense_ids, probabilities = sense_posterior(flat, tokens, self.ragged, temperature, top_k)
        return sense_ids.view(*token_ids.shape, top_k), probabilities.view(*token_ids.shape, top_k)

    def cross_entropy(
        self,
        token_ids: Tensor,
        hidden_states: Tensor,
        sense_ids: Tensor,
        temperature: float = 1.0,
        probabilities: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy between the teacher's senses and the student's, see :func:`sense_cross_entropy`.

        Args:
            token_ids: `[batch, positions]`, the tokens that the vectors belong to, see `config.key_tokens`.
            hidden_states: `[batch, positions, hidden]`, the student's vectors. The gradient flows to them alone.
            sense_ids: `[batch, positions]`, or with `probabilities` `[batch, positions, k]`: the teacher's choice. A
                position is not counted if its first sense id is negative.
            temperature: Temperature of the softmax, in units of the dictionary's distortion.
            probabilities: `[batch, positions, k]`, the probabilities of `sense_ids`, times the weight of the position.

        Returns:
            The summed loss, a float32 scalar, and the best senses for `hidden_states`, `[batch, positions]`, -1 where
            a position is not counted.

        Raises:
            ValueError: A sense id is not in the dictionary, or the shapes do not fit together.

        Example:
            >>> batch = senses.tokenizer(["the bank of a river"], return_tensors="pt")
            >>> hidden = teacher.hidden_states(batch["input_ids"])
            >>> labels = senses(batch["input_ids"], hidden).sense_ids
            >>> loss, choices = senses.cross_entropy(batch["input_ids"], hidden, labels)
            >>> bool((choices == labels).all())
            True
        """
        sense_ids = sense_ids.view(*token_ids.shape, -1)
        flat, tokens = self._flatten(token_ids, sense_ids[..., 0] >= 0, hidden_states)
        weights = None if probabilities is None else probabilities.flatten(0, 1)
        temperature = self.score_temperature(temperature)
        loss, choices = sense_cross_entropy(flat, tokens, sense_ids.flatten(0, 1), self.ragged, temperature, weights)
        return loss, choices.view(token_ids.shape)

    def look_up(self, token_ids: Tensor, sense_ids: Tensor) -> Tensor:
        """Return the senses with the given ids, `[n, hidden]`, float32.

        Args:
            token_ids: `[n]`.
            sense_ids: `[n]`, the index of a sense among the senses of its token.

        Example:
            >>> token = torch.tensor([senses.token_id("bank")])
            >>> senses.look_up(token, torch.tensor([0])).shape
            torch.Size([1, 384])
        """
        return look_up(token_ids, sense_ids, self.ragged)

    def _flatten(self, token_ids: Tensor, mask: Tensor | None, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Check a batch, and return its vectors `[n, hidden]` and its token ids `[n]`, -1 where they are masked."""
        self.config.check_inputs(token_ids, hidden_states, mask)
        tokens = token_ids if mask is None else token_ids.masked_fill(mask == 0, -1)
        return hidden_states.reshape(-1, hidden_states.shape[-1]), tokens.reshape(-1)

    def score_temperature(self, temperature: float) -> float:
        """Return a temperature in units of the score.

        Args:
            temperature: The temperature in units of the dictionary's distortion. If the distortion is 0, because every
                sample is a sense, the unit is 1.

        Example:
            >>> senses.score_temperature(2.0) == 2.0 * (senses.config.distortion or 1.0)
            True
        """
        return temperature * (self.config.distortion or 1.0)

    def fingerprint(self) -> str:
        """Return a digest of everything that assignments depend on: the tensors and four settings.

        Example:
            >>> senses.fingerprint() == senses.to_dtype("int8").fingerprint()
            False
        """
        config = self.config
        key = "" if config.key == "input" else f" {config.key}"
        return digest_tensors(f"{config.similarity} {config.layer} {config.distortion}{key}", self.state_dict())

    def token_id(self, token: int | str) -> int:
        """Return the id of a token.

        Args:
            token: A token id, a token as the vocabulary spells it, or a word that is a single token at the beginning
                of a text or after a space. If several tokens match, the first one that has senses is taken.

        Raises:
            ValueError: The token is not in the vocabulary, or the word is not a single token.

        Example:
            >>> senses.token_id("bank") == senses.tokenizer.convert_tokens_to_ids("bank")
            True
        """
        if not isinstance(token, str):
            return check_integer("token", token, 0, self.config.vocab_size)
        ids = find_token(token, self.tokenizer)
        return next((number for number in ids if self.offsets[number + 1] > self.offsets[number]), ids[0])

    def rows_of(self, token: int | str) -> slice:
        """Return the rows of `table` and `usage` that belong to a token.

        Args:
            token: A token id, a token or a word, see :meth:`token_id`.

        Example:
            >>> int(senses.usage[senses.rows_of("bank")].sum()) > 0  # how often the corpus has "bank"
            True
        """
        first, last = self.offsets[self.token_id(token) :][:2].tolist()
        return slice(first, last)

    def senses_of(self, token: int | str) -> Tensor:
        """Return the senses of a token, `[k, hidden]`. A token that the corpus does not contain has none.

        Args:
            token: A token id, a token or a word, see :meth:`token_id`.

        Example:
            >>> senses.senses_of("[PAD]").shape
            torch.Size([0, 384])
        """
        return self.dequantized(self.rows_of(token))

    def dequantized(self, rows: slice = slice(None)) -> Tensor:
        """Return rows of the table, `[rows, hidden]`, without gradient. The rows of an int8 table are scaled.

        Args:
            rows: Which rows. Default: all.

        Example:
            >>> senses.to_dtype("int8").dequantized(slice(0, 10)).dtype
            torch.float32
        """
        table = check_finite(self.senses.detach()[rows])
        return table if self.scales is None else table * self.scales[rows, None]

    def to_dtype(self, senses_dtype: str) -> "SenseEmbeddingModel":
        """Return a copy of the dictionary with its table in another dtype. The senses of the copy are constants.

        Args:
            senses_dtype: Dtype of the new table: `float16`, `bfloat16`, `float32` or `int8`.

        Raises:
            ValueError: The dtype is unknown, or the senses are too large for it.

        Example:
            >>> senses.to_dtype("bfloat16").table.dtype
            torch.bfloat16
        """
        changes = {"senses_dtype": senses_dtype, "learn_senses": False, "dtype": None}
        model = SenseEmbeddingModel(SenseEmbeddingConfig(**{**self.config.to_dict(), **changes}))
        table, scales = store_senses(self.dequantized(), model.senses.dtype)
        model.senses, model.scales, model.offsets, model.usage = table, scales, self.offsets, self.usage
        model._tokenizer, model._tokenizer_source = self._tokenizer, self._tokenizer_source
        model.eval()
        return model


def _count_most_senses(senses: SenseEmbeddingModel, _: object) -> None:
    """Read what a tracer cannot, when other numbers were loaded."""
    if not senses.offsets.is_meta:
        senses._most_senses.of(senses.offsets)
