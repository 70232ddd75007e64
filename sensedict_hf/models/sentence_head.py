"""What sentence-transformers does with the pooled vector of a text: dense layers, length 1, fewer dimensions."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = ("ELU", "GELU", "Identity", "LeakyReLU", "ReLU", "SELU", "Sigmoid", "SiLU", "Softplus", "Tanh")


class Dense(nn.Module):
    """A linear layer with an activation. It is a constant: training does not change it.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.
        activation: Name of the activation, a class in `torch.nn`.

    Raises:
        ValueError: The activation is unknown.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "Tanh"):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r} of a dense layer: known are {', '.join(ACTIVATIONS)}")
        self.register_buffer("weight", torch.zeros(out_features, in_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self.activation = getattr(nn, activation)()

    def forward(self, vectors: Tensor) -> Tensor:
        """Map `[texts, in_features]` to `[texts, out_features]`."""
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        return cast(Tensor, self.activation(F.linear(vectors.to(weight), weight, bias)))


class Normalize(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Map `[texts, hidden]` to vectors of length 1."""
        return F.normalize(vectors, dim=-1)


class Truncate(nn.Module):
    """Keep the first dimensions of vectors.

    Args:
        dim: How many.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, vectors: Tensor) -> Tensor:
        """Map `[texts, hidden]` to `[texts, dim]`."""
        return vectors[:, : self.dim]


STEPS = {"dense": Dense, "normalize": Normalize, "truncate": Truncate}


def make_sentence_head(steps: Sequence[dict[str, Any]] | None) -> nn.Sequential | None:
    """Make the modules that a pooled vector goes through.

    Args:
        steps: For each module its `kind`, `dense`, `normalize` or `truncate`, and its arguments.

    Returns:
        The modules, the weights of dense layers zeros. None if there are none.

    Raises:
        ValueError: A kind or an activation is unknown.

    Example:
        >>> head = make_sentence_head([{"kind": "normalize"}, {"kind": "truncate", "dim": 2}])
        >>> head(torch.tensor([[3.0, 0.0, 4.0]]))
        tensor([[0.6000, 0.0000]])
    """
    modules = []
    for step in steps or ():
        arguments = dict(step)
        kind = arguments.pop("kind", None)
        if kind not in STEPS:
            raise ValueError(f"unknown kind {kind!r} in sentence_head: choose one of {', '.join(STEPS)}")
        modules.append(STEPS[kind](**arguments))
    return nn.Sequential(*modules) if modules else None
