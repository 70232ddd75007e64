"""The configuration of a sense dictionary."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .arguments import check_choice, check_flag, check_integer, check_metadata, check_number, is_traced
from .fingerprints import tokenizer_fingerprint

ASSIGNMENTS = ("hard", "soft", "none")
KEYS = ("input", "next")
SIMILARITIES = ("l2", "cosine", "dot")
SENSES_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
SENSE_DEVICES = (None, "cpu")
SAMPLE_DTYPES = {name: SENSES_DTYPES[name] for name in ("float16", "float32")}
FORMAT_VERSION = 1
# The senses of two dictionaries can be compared only if all these fields are equal, and the names of teachers whose
# fingerprints are not known. A teacher may have several names, such as the folders of two copies.
TEACHER_NAMES = ("base_model_name_or_path", "base_model_revision")
SAME_VECTORS = (
    "base_model_fingerprint",
    "attention",
    "prompt",
    "layer",
    "key",
    "tokenizer_fingerprint",
    "teacher_tokenizer_fingerprint",
    "similarity",
    "vocab_size",
    "hidden_size",
)


class SenseEmbeddingConfig(PreTrainedConfig):
    """Configuration of a :class:`SenseEmbeddingModel`: its sizes, how senses are assigned, and how it was built.

    Args:
        vocab_size: Number of tokens that the dictionary has an entry for.
        hidden_size: Width of a sense.
        num_senses: Number of senses of all tokens together.
        senses_dtype: Dtype of the stored table: `float16`, `bfloat16`, `float32`, or `int8` with a scale for every
            sense.
        learn_senses: Whether the senses are a parameter that is trained, in float32, instead of a constant.
        sense_device: Where the table is. None: on the device of the model. `cpu`: in host memory, whatever device the
            model is moved to; the senses of a batch's tokens are then copied to that device. Such senses cannot be
            learned. A table that `from_pretrained` loads into host memory stays mapped from its file, so it may be
            larger than the memory. Under DistributedDataParallel a module of your own that holds such a dictionary
            (not a student) needs `broadcast_buffers=False`. `nn.DataParallel` does not work with it.
        similarity: How a vector is compared with a sense: `l2`, `cosine` or `dot`, see :func:`assign_senses`.
        assignment: What replaces a vector: `hard` the best sense of its token, `soft` the mean of the token's senses,
            weighted by their probabilities, `none` the vector itself.
        assignment_temperature: Temperature of the soft assignment, in units of `distortion`.
        residual: Weight of the vector itself, from 0 to 1, in `(1 - residual) * sense + residual * vector`. 0, as in
            the paper: the sense alone. 1: the vector alone.
        distortion: Mean squared distance between a sample and its sense.
        base_model_name_or_path: Name of the teacher.
        base_model_revision: Revision of the teacher's repository.
        base_model_fingerprint: Digest of the teacher's weights and settings.
        layer: Index into the teacher's hidden states; -1 is the last.
        key: Which token a hidden state belongs to: `input`, the token at its position, or `next`, the token after it,
            which the state of a causal model predicts. The last position of a text then belongs to no token. Saved
            only if it is `next`.
        tokenizer_fingerprint: Digest of the tokenizer whose tokens the dictionary is for, see
            :func:`tokenizer_fingerprint`.
        teacher_tokenizer_fingerprint: Digest of the teacher's tokenizer; None if it is the same.
        method: How the number of senses was set: `budget`, `senses_per_token`, `mcl` (the rule of the paper) or
            `merge` (a budget for merged dictionaries).
        method_value: The number of senses that the method was given: for each token with `senses_per_token`, in all
            with `budget` and `merge`. None with `mcl`.
        max_samples_per_token: The most vectors of one token that were clustered.
        window_length: Length in tokens of the windows that long texts were cut into.
        prompt: The fields of the :class:`Prompt` that the teacher read with every text.
        attention: What the teacher's tokens attended to: `bidirectional` or `causal`, see :func:`probe_attention`.
        seed: Seed of the build.
        num_texts: Number of texts in the corpus.
        num_tokens: Number of tokens in the corpus.
        card_data: Metadata of the model card: licence and language of the teacher, names of the texts on the Hub.
        sensedict_version: Version of this package that wrote the dictionary.
        format_version: Version of the file format.
        kwargs: Other fields of every config of transformers.

    Raises:
        ValueError: A field has a value that is not allowed, or the file format is newer than this version reads.

    Example:
        >>> config = SenseEmbeddingConfig(vocab_size=10, hidden_size=4, num_senses=20, similarity="cosine")
        >>> config.assignment, config.senses_dtype
        ('soft', 'float32')
    """

    model_type = "sense_embedding"

    vocab_size: int = 0
    hidden_size: int = 1
    num_senses: int = 0
    senses_dtype: str = "float32"
    learn_senses: bool = False
    sense_device: str | None = None
    similarity: str = "l2"
    assignment: str = "soft"
    assignment_temperature: float = 0.3
    residual: float = 0.0
    distortion: float = 0.0
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_fingerprint: str | None = None
    layer: int = -1
    key: str = "input"
    tokenizer_fingerprint: str | None = None
    teacher_tokenizer_fingerprint: str | None = None
    method: str | None = None
    method_value: int | None = None
    max_samples_per_token: int | None = None
    window_length: int | None = None
    prompt: dict[str, Any] | None = None
    attention: str | None = None
    seed: int | None = None
    num_texts: int | None = None
    num_tokens: int | None = None
    card_data: dict[str, Any] | None = None
    sensedict_version: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would save its own choice of code files, see `save_pretrained` of the model."""

    def check(self) -> None:
        """Check the fields that `from_pretrained` may set after the config was made.

        Raises:
            ValueError: A field has a value that is not allowed.

        Example:
            >>> config = SenseEmbeddingConfig()
            >>> config.residual = 0.5
            >>> config.check()
        """
        if check_integer("format_version", self.format_version, 1) > FORMAT_VERSION:
            raise ValueError(
                f"the dictionary is in format {self.format_version}, this version reads formats up to "
                f"{FORMAT_VERSION}: upgrade sensedict_hf"
            )
        for name, least in (("vocab_size", 0), ("hidden_size", 1), ("num_senses", 0), ("layer", None)):
            setattr(self, name, check_integer(name, getattr(self, name), least))
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("key", self.key, KEYS)
        check_choice("senses_dtype", self.senses_dtype, SENSES_DTYPES)
        check_flag("learn_senses", self.learn_senses)
        check_metadata("card_data", self.card_data)
        check_assignment(self.assignment)
        check_residual(self.residual)
        check_number("distortion", self.distortion, least=0)
        check_number("assignment_temperature", self.assignment_temperature, above=0)
        if self.sense_device not in SENSE_DEVICES:
            raise ValueError(
                f"unknown sense_device {self.sense_device!r}: choose 'cpu' to keep the senses in host memory, or None "
                "to have them wherever the model is moved to"
            )
        if self.learn_senses and self.sense_device is not None:
            raise ValueError(
                f"learn_senses=True with sense_device={self.sense_device!r}: only constant senses can lie on another "
                "device than the model; choose sense_device=None, or learn_senses=False"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they are saved. The key is left out if it is `input`.

        Example:
            >>> "key" in senses.config.to_dict()
            False
        """
        fields: dict[str, Any] = super().to_dict()
        if fields.get("key") == "input":
            del fields["key"]
        return fields

    def key_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the token that the hidden state at each position belongs to.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding on either side. None: there is no padding.

        Returns:
            Token ids, and a mask that is 0 where the state belongs to no token, both `[batch, positions]`. With the
            key `input` these are the arguments.

        Example:
            >>> config = SenseEmbeddingConfig(vocab_size=10, key="next")
            >>> config.key_tokens(torch.tensor([[0, 7, 8, 9]]), torch.tensor([[0, 1, 1, 1]]))
            (tensor([[7, 8, 9, 0]]), tensor([[False,  True,  True, False]]))
        """
        if self.key == "input":
            return input_ids, attention_mask
        return next_tokens(input_ids, attention_mask)

    def check_same_vectors(self, other: "SenseEmbeddingConfig") -> None:
        """Check that the senses of two dictionaries can be mixed.

        Args:
            other: The config of the other dictionary.

        Raises:
            ValueError: Teacher, attention, prompt, layer, tokenizer, similarity or sizes differ.

        Example:
            >>> senses.config.check_same_vectors(student.senses.config)
        """
        is_known = None not in (self.base_model_fingerprint, other.base_model_fingerprint)
        for name in SAME_VECTORS if is_known else TEACHER_NAMES + SAME_VECTORS:
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                raise ValueError(
                    f"{name} differs ({own}, {others}): the senses of these dictionaries cannot be mixed; build "
                    "both with the same teacher and settings"
                )

    def check_inputs(self, input_ids: Tensor, hidden_states: Tensor, attention_mask: Tensor | None = None) -> None:
        """Check that a batch fits the dictionary.

        Args:
            input_ids: `[batch, positions]`, token ids.
            hidden_states: `[batch, positions, hidden]`, contextual vectors.
            attention_mask: `[batch, positions]`; where it is 0, any token id is allowed. None: there is no padding.

        Raises:
            ValueError: Widths or shapes differ, or a token id is outside the vocabulary.

        Example:
            >>> senses.config.check_inputs(torch.tensor([[101, 102]]), torch.zeros(1, 2, 384))
        """
        width = hidden_states.shape[-1]
        if width != self.hidden_size:
            raise ValueError(
                f"the vectors are {width} wide, the senses {self.hidden_size}: the dictionary was built from a model "
                f"of another width ({self.base_model_name_or_path})"
            )
        if hidden_states.shape[:-1] != input_ids.shape:
            raise ValueError(
                f"input_ids are {tuple(input_ids.shape)}, hidden_states {tuple(hidden_states.shape)}: "
                "positions differ; give both of the same batch"
            )
        is_outside = (input_ids < 0) | (input_ids >= self.vocab_size)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask is {tuple(attention_mask.shape)}, input_ids are {tuple(input_ids.shape)}: "
                    "positions differ; give both of the same batch"
                )
            is_outside &= attention_mask.bool()
        if not is_traced() and is_outside.any():
            raise ValueError(
                f"token id {int(input_ids[is_outside][0])} is outside the dictionary's vocabulary of "
                f"{self.vocab_size} tokens: it comes from another tokenizer"
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer is the one whose tokens the dictionary is for.

        Args:
            tokenizer: The tokenizer to check.

        Raises:
            ValueError: It is another one.

        Example:
            >>> senses.config.check_tokenizer(student.tokenizer)
        """
        fingerprint = tokenizer_fingerprint(tokenizer)
        if fingerprint != self.tokenizer_fingerprint:
            raise ValueError(
                f"the tokenizer (fingerprint {fingerprint}, {len(tokenizer)} tokens) is not the dictionary's "
                f"(fingerprint {self.tokenizer_fingerprint}, {self.vocab_size} tokens): token ids would mean other "
                "words; build the dictionary with this tokenizer, or give a student's backbone the dictionary's by "
                "adopt_tokenizer"
            )

    def check_teacher_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer is the one of the dictionary's teacher.

        Args:
            tokenizer: The tokenizer to check.

        Raises:
            ValueError: It is another one.

        Example:
            >>> senses.config.check_teacher_tokenizer(teacher.tokenizer)
        """
        expected = self.teacher_tokenizer_fingerprint
        if expected is None:
            self.check_tokenizer(tokenizer)
        elif (fingerprint := tokenizer_fingerprint(tokenizer)) != expected:
            raise ValueError(
                f"the teacher's tokenizer (fingerprint {fingerprint}, {len(tokenizer)} tokens) is not that of "
                f"the teacher of this dictionary (fingerprint {expected}): give the teacher that it was built from, "
                "with its own tokenizer"
            )

    def check_takes_teacher_tokens(self) -> None:
        """Check that the dictionary is for the tokens of its teacher, so that the teacher's layers can use it.

        Raises:
            ValueError: It is for the tokens of another tokenizer.

        Example:
            >>> senses.config.check_takes_teacher_tokens()
        """
        if self.teacher_tokenizer_fingerprint is not None:
            raise ValueError(
                f"the dictionary is for the tokens of another tokenizer (fingerprint {self.tokenizer_fingerprint}) "
                f"than that of its teacher, {self.base_model_name_or_path} (fingerprint "
                f"{self.teacher_tokenizer_fingerprint}): the teacher's layers cannot use it; make a student of a "
                "model with that tokenizer by SKDStudentModel.from_backbone, or build a dictionary without tokenizer="
            )

    def check_attention(self, name: str, attention: str | None) -> None:
        """Check that the tokens of a model attend to the same tokens as the teacher's did.

        Args:
            name: Name of the model, for the message.
            attention: `bidirectional` or `causal`. None: not known.

        Raises:
            ValueError: One is bidirectional, the other causal.

        Example:
            >>> senses.config.check_attention("my encoder", "bidirectional")
        """
        own = self.attention
        if own is not None and attention is not None and own != attention:
            raise ValueError(
                f"the dictionary was built from a {own} teacher, {name} is {attention}: load it with "
                f"bidirectional={own == 'bidirectional'} (load_teacher), or build a dictionary from it as it is"
            )


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the token after each position, and a mask that is False where there is none.

    Args:
        input_ids: `[batch, positions]`, token ids.
        attention_mask: `[batch, positions]`, 0 for padding on either side. None: there is no padding.

    Returns:
        Token ids and mask, both `[batch, positions]`.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return F.pad(input_ids[..., 1:], (0, 1)), mask & F.pad(mask[..., 1:], (0, 1))


def check_assignment(assignment: str) -> None:
    """Raise a ValueError if an assignment is unknown."""
    check_choice("assignment", assignment, ASSIGNMENTS)


def check_residual(residual: float) -> None:
    """Raise a ValueError if a residual is not between 0, the senses alone, and 1, the vectors themselves."""
    check_number("residual", residual, least=0, most=1)
