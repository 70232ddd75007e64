"""The shapes that are measured, and models of these shapes with random weights."""

from itertools import chain
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, LlamaConfig

from sensedict_hf import SenseEmbeddingConfig, SenseEmbeddingModel, SKDStudentConfig

SENSES_PER_TOKEN = 5


class Size(NamedTuple):
    """Shapes of the full model and of its student.

    Attributes:
        layers: Layers of the full model.
        student_layers: Layers of the student.
        width: Width of the hidden states.
        intermediate: Width of the feed-forward layers.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
        vocabulary: Number of tokens.
        dtype: Dtype of weights and dictionary.
        batch: The larger of the two batch sizes.
    """

    layers: int
    student_layers: int
    width: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    dtype: torch.dtype
    batch: int

    @property
    def settings(self) -> list["Setting"]:
        """The batches to measure."""
        return [Setting(batch, tokens) for batch in (1, self.batch) for tokens in (128, 512)]


LLAMA_3_8B = Size(32, 4, 4096, 14336, 32, 8, 128_256, torch.bfloat16, batch=32)
SMALL_LLAMA = Size(8, 2, 256, 896, 4, 2, 8_192, torch.float32, batch=4)  # most CPUs are slow in bfloat16


class Setting(NamedTuple):
    """Texts in a batch, and tokens in a text."""

    batch: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens}"


def llama(size: Size, layers: int) -> LlamaConfig:
    """Return the config of a Llama."""
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        use_cache=False,
        dtype=size.dtype,
    )


def sense_config(size: Size, dtype: str = "bfloat16", dictionary: str = "device") -> SenseEmbeddingConfig:
    """Return the config of a dictionary that lies where `dictionary` says."""
    return SenseEmbeddingConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_senses=0 if dictionary == "none" else SENSES_PER_TOKEN * size.vocabulary,
        senses_dtype=dtype,
        sense_device="cpu" if dictionary == "host" else None,
        distortion=float(size.width),
    )


def make_model(size: Size, dictionary: str | None, assignment: str, device: str) -> nn.Module:
    """Make a student with its dictionary in some place; for None the full model."""
    config = llama(size, size.layers if dictionary is None else size.student_layers)
    if dictionary is not None:
        assignment = "none" if dictionary == "none" else assignment
        senses = sense_config(size, dictionary=dictionary)
        config = SKDStudentConfig(text_config=config, sense_config=senses, assignment=assignment, dtype=size.dtype)
    with torch.device(device):
        model = AutoModel.from_config(config).eval()
    if dictionary not in (None, "none"):
        fill(model.senses)
    return model


def fill(senses: SenseEmbeddingModel) -> None:
    """Fill a dictionary with random senses.

    Without this, its host memory would be one page of zeros that is always in the cache.
    """
    senses.offsets.copy_(SENSES_PER_TOKEN * torch.arange(len(senses.offsets)))
    table = senses.table
    rows = torch.randn(min(len(table), 1 << 13), table.shape[1], dtype=table.dtype, device=table.device)
    for part in table.split(len(rows)):
        part.copy_(rows[: len(part)])


def tensor_bytes(module: nn.Module, device_type: str | None = None) -> int:
    """Return the bytes of parameters and buffers; only of those on one kind of device, if it is given."""
    tensors = chain(module.parameters(), module.buffers())
    return sum(tensor.nbytes for tensor in tensors if device_type in (None, tensor.device.type))
