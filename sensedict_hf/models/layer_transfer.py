"""Layers of a teacher as the first weights of a student."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .teachers import Teacher


def _refuse_quantized(source: Teacher) -> None:
    if getattr(source.model, "is_quantized", False):
        raise ValueError(
            f"the weights of {source.name} are quantized: take the layers out of the model as it was, load_teacher(name)"
        )


def _keep_layers(config: Any, layers: list[int]) -> Any:
    """A copy of a model's config with only some layers, in every field that has one entry per layer."""
    config, total = copy.deepcopy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        if name == "pos_att_type":
            continue  # DeBERTa's kinds of relative attention, which may be as many
        if isinstance(value, list) and len(value) == total and not name.startswith("_"):
            setattr(config, name, [value[layer] for layer in layers])
    config.num_hidden_layers = len(layers)
    return config


def _keep_layer_weights(model: PreTrainedModel, layers: list[int]) -> dict[str, Tensor]:
    """The state dict of a model with only some layers, renumbered."""
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]
    if len(stacks) != 1:
        total = model.config.num_hidden_layers
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} stacks of {total} layers, not one: use from_backbone"
        )
    prefix, weights = stacks[0] + ".", {}
    for key, value in model.state_dict().items():
        if not key.startswith(prefix):
            weights[key] = value
            continue
        number, rest = key[len(prefix) :].split(".", 1)
        for new, old in enumerate(layers):
            if old == int(number):
                weights[f"{prefix}{new}.{rest}"] = value
    return weights
