"""The sense dictionary as a model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput, logging

from .configuration_sense_embedding import SENSES_DTYPES, SenseEmbeddingConfig, check_residual
from .fingerprints import digest_tensors, tokenizer_fingerprint
from .hub import SensePreTrainedModel
from .sense_lookup import assign_senses, look_up, sense_cross_entropy, sense_posterior, store_senses

logger = logging.get_logger(__name__)


@dataclass
class SenseEmbeddingOutput(ModelOutput):
    """
    Args:
        hidden_states: `[batch, positions, hidden]`, every vector replaced by a sense of its token.
        sense_ids: `[batch, positions]`, int64: the best sense among the token's own, -1 where it has none or is masked.
    """

    hidden_states: Tensor | None = None
    sense_ids: Tensor | None = None


class SenseEmbeddingModel(SensePreTrainedModel):
    """A sense dictionary: for every token of a vocabulary the few vectors that stand for all its contextual ones.

    Attributes:
        senses: `[total_senses, hidden]`, a buffer, or a parameter with `config.learn_senses`.
        offsets: `[vocab + 1]`, int64: the senses of token t are the rows `offsets[t]:offsets[t + 1]`.
        usage: `[total_senses]`, int64: how often each was the nearest in the corpus.
        scales: `[total_senses]`, what each row of an int8 table is to be multiplied with; None for other dtypes.
    """

    config: SenseEmbeddingConfig
    config_class = SenseEmbeddingConfig
    senses: Tensor
    offsets: Tensor
    usage: Tensor
    scales: Tensor | None
    main_input_name = "input_ids"
    base_model_prefix = "sense_embedding"

    def __init__(self, config: SenseEmbeddingConfig):
        super().__init__(config)
        config.check()
        if config.learn_senses:
            if config.senses_dtype == "int8":
                raise ValueError(
                    "learn_senses=True: int8 senses cannot be learned; make them float32 first, by senses.to_dtype('float32')"
                )
            config.senses_dtype = "float32"  # half precision would lose small updates
        # An explicit dtype stays what it is under from_pretrained(dtype=...): only a table of the file's dtype is memory-mapped.
        # Built on the meta device, as by from_pretrained, all tables are there, and none takes memory.
        device = None if torch.empty(0).is_meta else config.sense_device
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
        self.post_init()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SenseEmbeddingModel":
        """Moves the tables, but keeps their dtype: `student.bfloat16()` must not round the senses. With `config.sense_device` all that
        have a row for each sense stay there."""

        apart = [getattr(self, name) for name in self._tables_apart()]

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor[:0])
            if any(tensor is table for table in apart) and not tensor.is_meta:
                return tensor.to(self.config.sense_device)
            return fn(tensor) if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _tables_apart(self) -> list[str]:
        names = [name for name, _ in self.named_buffers(recurse=False) if name != "offsets"]
        return names if self.config.sense_device is not None else []

    @property
    def dtype(self) -> torch.dtype:  # there are no parameters to tell it from
        return self.senses.dtype if self.scales is None else self.scales.dtype

    @property
    def device(self) -> torch.device:  # of the vectors that it takes; the senses may lie apart
        return self.offsets.device

    def forward(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        assignment: str | None = None,
        residual: float | None = None,
    ) -> SenseEmbeddingOutput:
        """Replaces contextual vectors by senses.

        Args:
            input_ids: `[batch, positions]`. hidden_states: `[batch, positions, hidden]`, at the layer of the dictionary.
            attention_mask: `[batch, positions]`; where it is 0, the vector stays.
            assignment: `hard`, `soft` or `none`. residual: how much of the vectors is kept; see [`SenseEmbeddingConfig`], which has
                the defaults of both.

        Raises:
            ValueError: widths or shapes differ, a token id outside the vocabulary, an unknown assignment or no share as residual.
        """
        assignment = assignment or self.config.assignment
        if assignment not in ("hard", "soft", "none"):
            raise ValueError(f"unknown assignment {assignment!r}: choose hard, soft or none")
        tokens = self.selected_tokens(input_ids, hidden_states, attention_mask)
        vectors, sense_ids = assign_senses(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            tokens,
            self.senses,
            self.offsets,
            self.config.similarity,
            self.score_temperature(self.config.assignment_temperature) if assignment == "soft" else None,
            self.scales,
        )
        vectors = vectors.view_as(hidden_states)
        residual = self.config.residual if residual is None else residual
        check_residual(residual)  # from_pretrained may have assigned it to a config
        if residual:
            vectors = vectors + residual * (hidden_states.detach() - vectors)
        if hidden_states.requires_grad:
            # Straight through (van den Oord et al., "Neural discrete representation learning", 2017): the choice of a sense passes
            # its gradient on to the vector that made it. The difference is exactly zero.
            vectors = vectors + (hidden_states - hidden_states.detach())
        return SenseEmbeddingOutput(
            hidden_states=hidden_states if assignment == "none" else vectors,
            sense_ids=sense_ids.view(input_ids.shape),
        )

    def posterior(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """The most probable senses of each position, and their probabilities, both `[batch, positions, top_k]`; see
        [`sense_posterior`].

        Args:
            input_ids, attention_mask: `[batch, positions]`. hidden_states: `[batch, positions, hidden]`. temperature: in units of the
                dictionary's distortion.
        """
        tokens = self.selected_tokens(input_ids, hidden_states, attention_mask)
        sense_ids, probabilities = sense_posterior(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            tokens,
            self.senses,
            self.offsets,
            self.config.similarity,
            self.score_temperature(temperature),
            self.scales,
            top_k,
        )
        return sense_ids.view(*input_ids.shape, top_k), probabilities.view(*input_ids.shape, top_k)

    def cross_entropy(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        sense_ids: Tensor,
        temperature: float = 1.0,
        probabilities: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of choosing `sense_ids`, and the choices made `[batch, positions]`; see [`sense_cross_entropy`].

        Args:
            input_ids: `[batch, positions]`. sense_ids: the same, or, with probabilities, `[batch, positions, k]`; positions whose
                first sense id is negative are not counted.
            hidden_states: `[batch, positions, hidden]`. temperature: in units of the dictionary's distortion.
            probabilities: `[batch, positions, k]`, of those senses, times the weight of the position.
        """
        sense_ids = sense_ids.view(*input_ids.shape, -1)
        tokens = self.selected_tokens(input_ids, hidden_states, sense_ids[..., 0] >= 0)
        loss, choices = sense_cross_entropy(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            tokens,
            sense_ids.flatten(0, 1),
            self.senses,
            self.offsets,
            self.config.similarity,
            self.score_temperature(temperature),
            self.scales,
            None if probabilities is None else probabilities.flatten(0, 1),
        )
        return loss, choices.view(input_ids.shape)

    def look_up(self, token_ids: Tensor, sense_ids: Tensor) -> Tensor:
        """The senses `[n, hidden]`, float32, with the numbers `sense_ids [n]` among those of the tokens `token_ids [n]`."""
        return look_up(token_ids, sense_ids, self.senses, self.offsets, self.scales)

    def selected_tokens(self, input_ids: Tensor, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Checks the inputs; the token ids `[batch * positions]`, -1 for those that are masked."""
        if hidden_states.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"the vectors are {hidden_states.shape[-1]} wide, the senses {self.config.hidden_size}: the dictionary was built from a "
                f"model of another width ({self.config.base_model_name_or_path})"
            )
        if hidden_states.shape[:-1] != input_ids.shape:
            raise ValueError(
                f"input_ids are {tuple(input_ids.shape)}, hidden_states {tuple(hidden_states.shape)}: positions differ"
            )
        outside = (input_ids < 0) | (input_ids >= self.config.vocab_size)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask is {tuple(attention_mask.shape)}, input_ids are {tuple(input_ids.shape)}"
                )
            outside &= attention_mask.bool()
        if outside.any():
            raise ValueError(
                f"token id {int(input_ids[outside][0])} is outside the dictionary's vocabulary of {self.config.vocab_size} tokens: it "
                "comes from another tokenizer"
            )
        return (input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, -1)).reshape(-1)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises a ValueError if the dictionary was built with another tokenizer."""
        fingerprint, expected = tokenizer_fingerprint(tokenizer), self.config.tokenizer_fingerprint
        if fingerprint != expected:
            raise ValueError(
                f"the tokenizer (fingerprint {fingerprint}, {len(tokenizer)} tokens) is not the dictionary's (fingerprint {expected}, "
                f"{self.config.vocab_size} tokens): token ids would mean other words; build the dictionary with this tokenizer"
            )

    def check_teacher_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises a ValueError if the dictionary was built from a teacher with another tokenizer."""
        expected = self.config.teacher_tokenizer_fingerprint
        if expected is None:
            self.check_tokenizer(tokenizer)
        elif tokenizer_fingerprint(tokenizer) != expected:
            raise ValueError(
                f"the teacher's tokenizer (fingerprint {tokenizer_fingerprint(tokenizer)}, {len(tokenizer)} tokens) is not that of the "
                f"teacher of this dictionary (fingerprint {expected}): give the teacher that it was built from, with its own tokenizer"
            )

    def check_attention(self, name: str, attention: str | None) -> None:
        """Raises a ValueError if the tokens of a model attend to others than those of the teacher did."""
        own = self.config.attention
        if None not in (own, attention) and own != attention:
            raise ValueError(
                f"the dictionary was built from a {own} teacher, {name} is {attention}: load it with "
                f"bidirectional={own == 'bidirectional'} (load_teacher), or build a dictionary from it as it is"
            )

    def check_takes_teacher_tokens(self) -> None:
        """Raises a ValueError if the dictionary is for the tokens of another tokenizer than its teacher's."""
        if self.config.teacher_tokenizer_fingerprint is not None:
            raise ValueError(
                f"the dictionary is for the tokens of another tokenizer (fingerprint {self.config.tokenizer_fingerprint}) than that of its "
                f"teacher, {self.config.base_model_name_or_path} (fingerprint {self.config.teacher_tokenizer_fingerprint}): the teacher's "
                "layers cannot use it; make a student of a model with that tokenizer by SKDStudentModel.from_backbone, or build a "
                "dictionary without tokenizer="
            )

    def score_temperature(self, temperature: float) -> float:
        """A temperature in units of the distortion as one in units of the score (a dictionary of exact samples has no distortion, and
        1 as its unit)."""
        return temperature * (self.config.distortion or 1.0)

    def fingerprint(self) -> str:
        """A digest of what assignments depend on."""
        config = self.config
        return digest_tensors(f"{config.similarity} {config.layer} {config.distortion}", self.state_dict())

    def token_id(self, token: int | str) -> int:
        """The id of a token given as id, as it stands in the vocabulary, or as a word that is a single token, at the beginning of a
        text or behind a space; of several the first that has senses.

        Raises:
            ValueError: the token is not in the vocabulary.
        """
        if isinstance(token, str):
            tokenized = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (token, f" {token}")]
            vocabulary = self.tokenizer.get_vocab()
            ids = [vocabulary[token]] if token in vocabulary else []
            ids += [pieces[0] for pieces in tokenized if len(pieces) == 1 and pieces[0] != self.tokenizer.unk_token_id]
            if not ids:
                pieces = " ".join(self.tokenizer.convert_ids_to_tokens(tokenized[0]))
                raise ValueError(
                    f"{token!r} is not one token of this dictionary but {pieces or 'none'}: name one of those"
                )
            return next((number for number in ids if self.offsets[number + 1] > self.offsets[number]), ids[0])
        if not 0 <= token < self.config.vocab_size:
            raise ValueError(
                f"token id {token} is outside the dictionary's vocabulary of {self.config.vocab_size} tokens"
            )
        return token

    def rows_of(self, token: int | str) -> slice:
        """The rows of `senses` and `usage` that belong to a token."""
        first, last = self.offsets[self.token_id(token) :][:2].tolist()
        return slice(first, last)

    def senses_of(self, token: int | str) -> Tensor:
        """The senses of a token, `[k, hidden]`; none if it was never seen."""
        return self.dequantized(self.rows_of(token))

    def dequantized(self, rows: slice = slice(None)) -> Tensor:
        """Rows of the table, `[rows, hidden]`, as numbers that mean something, without gradient: those of an int8 table times their
        scales."""
        table = self.senses.detach()[rows]
        return table if self.scales is None else table * self.scales[rows, None]

    def to_dtype(self, senses_dtype: str) -> "SenseEmbeddingModel":
        """The same dictionary, no longer learned, with its table in another dtype: `float16`, `bfloat16`, `float32` or `int8`.

        Raises:
            ValueError: unknown dtype, or senses too large for it.
        """
        changes = {"senses_dtype": senses_dtype, "learn_senses": False, "dtype": None}
        model = SenseEmbeddingModel(SenseEmbeddingConfig(**{**self.config.to_dict(), **changes}))
        table, scales = store_senses(self.dequantized(), model.senses.dtype)
        model.senses, model.scales, model.offsets, model.usage = table, scales, self.offsets, self.usage
        model._tokenizer, model._tokenizer_source = self._tokenizer, self._tokenizer_source
        return model.eval()
