"""What a sense dictionary was made with."""

from typing import Any

import torch
from transformers import PreTrainedConfig

ASSIGNMENTS = ("hard", "soft", "none")
SIMILARITIES = ("l2", "cosine", "dot")
METHODS = ("budget", "num_senses", "mcl")
SENSES_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
SENSE_DEVICES = (None, "cpu")
SAMPLE_DTYPES = {name: SENSES_DTYPES[name] for name in ("float16", "float32")}
FORMAT_VERSION = 1
# What must be the same for the vectors of two dictionaries to mean the same.
SAME_VECTORS = (
    "base_model_name_or_path",
    "base_model_revision",
    "base_model_fingerprint",
    "attention",
    "prompt",
    "layer",
    "tokenizer_fingerprint",
    "teacher_tokenizer_fingerprint",
    "similarity",
    "vocab_size",
    "hidden_size",
)


class SenseEmbeddingConfig(PreTrainedConfig):
    """Configuration of a [`SenseEmbeddingModel`].

    Args:
        vocab_size: tokens that the dictionary is keyed by. hidden_size: width of a sense. num_senses: senses in all.
        senses_dtype: dtype of the stored table: `float16`, `bfloat16`, `float32` or `int8` (with a scale for every sense).
        learn_senses: whether the senses are a parameter, in float32 while they are learned, instead of a constant.
        sense_device: where the table of senses lies. None: with the rest of the model. `cpu`: in host memory, whatever device the model is
            moved to, which is then sent the senses of a batch's tokens alone; such senses cannot be learned. A table that
            `from_pretrained` loads into host memory stays mapped from its file, and is read where it is used: so one that is larger than
            the memory can lie on disk, without a setting of its own. Under DDP a module of your own that holds such a dictionary (not a
            student) needs `broadcast_buffers=False`; `nn.DataParallel` takes no model whose buffers lie apart.
        similarity: `l2`, `cosine` or `dot`: how a sense is chosen, see [`assign_senses`].
        assignment: what takes the place of a vector: `hard` the best sense, `soft` the posterior mean of the senses, `none` the
            vector itself.
        assignment_temperature: of the soft assignment, in units of `distortion`.
        residual: how much of the difference between a vector and what takes its place is added to that: 0: nothing, as in the paper;
            1: all of it, so that the vector stays.
        distortion: mean squared distance between a sample and its sense.
        base_model_name_or_path, base_model_revision: the teacher; base_model_fingerprint: of its weights and
            settings. layer: index into the teacher's hidden states (-1: the last).
        tokenizer_fingerprint: of the tokenizer whose tokens the dictionary is for, see [`tokenizer_fingerprint`];
            teacher_tokenizer_fingerprint: of the teacher's, None if it is the same.
        method: how the number of senses was set: `budget`, `num_senses`, `mcl` or `merge`, and the number given, `method_value`.
        max_samples_per_token, window_length, seed, num_texts, num_tokens: how and from what it was built.
        prompt: what the teacher read around the texts, the fields of a [`Prompt`]. attention: what its tokens attended to,
            `bidirectional` or `causal`, see [`probe_attention`].
        sensedict_version, format_version: what wrote it.
    """

    model_type = "sense_embedding"

    def __init__(
        self,
        vocab_size: int = 0,
        hidden_size: int = 1,
        num_senses: int = 0,
        senses_dtype: str = "float32",
        learn_senses: bool = False,
        sense_device: str | None = None,
        similarity: str = "l2",
        assignment: str = "soft",
        assignment_temperature: float = 0.3,
        residual: float = 0.0,
        distortion: float = 0.0,
        base_model_name_or_path: str | None = None,
        base_model_revision: str | None = None,
        base_model_fingerprint: str | None = None,
        layer: int = -1,
        tokenizer_fingerprint: str | None = None,
        teacher_tokenizer_fingerprint: str | None = None,
        method: str | None = None,
        method_value: int | None = None,
        max_samples_per_token: int | None = None,
        window_length: int | None = None,
        prompt: dict[str, Any] | None = None,
        attention: str | None = None,
        seed: int | None = None,
        num_texts: int | None = None,
        num_tokens: int | None = None,
        sensedict_version: str | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ):
        if similarity not in SIMILARITIES:
            raise ValueError(f"unknown similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
        if senses_dtype not in SENSES_DTYPES:
            raise ValueError(f"unknown senses_dtype {senses_dtype!r}: choose one of {', '.join(SENSES_DTYPES)}")
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"written in format {format_version}, this version reads up to {FORMAT_VERSION}: upgrade sensedict_hf"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_senses = num_senses
        self.senses_dtype = senses_dtype
        self.learn_senses = learn_senses
        self.sense_device = sense_device
        self.similarity = similarity
        self.assignment = assignment
        self.assignment_temperature = assignment_temperature
        self.residual = residual
        self.distortion = distortion
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.base_model_fingerprint = base_model_fingerprint
        self.layer = layer
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.teacher_tokenizer_fingerprint = teacher_tokenizer_fingerprint
        self.method = method
        self.method_value = method_value
        self.max_samples_per_token = max_samples_per_token
        self.window_length = window_length
        self.prompt = prompt
        self.attention = attention
        self.seed = seed
        self.num_texts = num_texts
        self.num_tokens = num_tokens
        self.sensedict_version = sensedict_version
        self.format_version = format_version
        self.check()
        super().__init__(**kwargs)

    def check_same_vectors(self, other: "SenseEmbeddingConfig") -> None:
        """Raises a ValueError if the senses of two dictionaries cannot stand for each other."""
        for name in SAME_VECTORS:
            if getattr(other, name) != getattr(self, name):
                raise ValueError(
                    f"{name} differs ({getattr(self, name)}, {getattr(other, name)}): their senses cannot be mixed"
                )

    def check(self) -> None:
        """Raises a ValueError if what `from_pretrained` may assign too is not possible."""
        check_assignment(self.assignment)
        check_residual(self.residual)
        temperature = self.assignment_temperature
        if not temperature > 0:
            raise ValueError(
                f"assignment_temperature is {temperature}: it must be above 0; hard assignment is its limit"
            )
        if self.sense_device not in SENSE_DEVICES:
            raise ValueError(
                f"unknown sense_device {self.sense_device!r}: choose 'cpu' to keep the senses in host memory, or None to have them "
                "wherever the model is moved to"
            )
        if self.learn_senses and self.sense_device is not None:
            raise ValueError(
                f"learn_senses=True with sense_device={self.sense_device!r}: only constant senses can lie apart from the model; choose "
                "sense_device=None, or learn_senses=False"
            )


def check_assignment(assignment: str) -> None:
    """Raises a ValueError if there is no such assignment."""
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"unknown assignment {assignment!r}: choose one of {', '.join(ASSIGNMENTS)}")


def check_residual(residual: float) -> None:
    """Raises a ValueError if it is not a share."""
    if not 0 <= residual <= 1:
        raise ValueError(
            f"residual is {residual}: it must be between 0, the senses alone, and 1, the vectors themselves"
        )
