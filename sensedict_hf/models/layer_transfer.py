"""Copy layers and weights of a loaded model into a new, smaller one."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .teachers import Teacher


def refuse_quantized(source: Teacher) -> None:
    """Check that the weights of a model can be copied.

    Args:
        source: The model to copy from.

    Raises:
        ValueError: The weights are quantized.
    """
    if getattr(source.model, "is_quantized", False):
        raise ValueError(
            f"the weights of {source.name} are quantized and cannot be copied: load the model without quantization, "
            "load_teacher(name), and make the student from that"
        )


def choose_layers(num_hidden_layers: int | Sequence[int], source: Teacher) -> list[int]:
    """Turn a number of layers, or a list of them, into the indices of the layers to keep.

    Args:
        num_hidden_layers: How many of the first layers to keep, or the indices of the layers to keep.
        source: The model that the layers are taken from.

    Returns:
        Indices of layers, counted from 0.

    Raises:
        ValueError: No layer is left, or the model has no layer of that index.
    """
    total = source.model.config.num_hidden_layers
    layers = list(range(num_hidden_layers)) if isinstance(num_hidden_layers, int) else list(num_hidden_layers)
    if not layers or not all(0 <= layer < total for layer in layers):
        raise ValueError(
            f"num_hidden_layers={num_hidden_layers}: {source.name} has layers 0 to {total - 1}; give a number from 1 to "
            f"{total}, or a list of layers"
        )
    return layers


def keep_layers(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Copy the config of a model, for only some of its layers.

    Fields with one entry for each layer, such as `layer_types`, are shortened too.

    Args:
        config: The config of the whole model. It stays as it is.
        layers: Indices of the layers to keep, in their new order.

    Returns:
        The config of the smaller model.
    """
    config, total = copy.deepcopy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        if name == "pos_att_type":
            continue  # DeBERTa's kinds of relative attention: a list that may be as long as the model is deep
        if isinstance(value, list) and len(value) == total and not name.startswith("_"):
            setattr(config, name, [value[layer] for layer in layers])
    config.num_hidden_layers = len(layers)
    return config


def keep_layer_weights(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """Select the weights of some layers of a model, and everything outside its layers.

    Args:
        model: The whole model.
        layers: Indices of the layers to keep, in their new order.

    Returns:
        A state dict in which the layers are numbered from 0.

    Raises:
        ValueError: The model does not keep all its layers in one list of modules.
    """
    total = model.config.num_hidden_layers
    stacks = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} lists of {total} layers, not one, so that its layers cannot be "
            "told apart: make the student from a smaller model, with from_backbone"
        )
    prefix, weights = f"{stacks[0]}.", {}
    for key, value in model.state_dict().items():
        if not key.startswith(prefix):
            weights[key] = value
            continue
        number, rest = key.removeprefix(prefix).split(".", 1)
        for new, old in enumerate(layers):  # a layer may be kept more than once
            if old == int(number):
                weights[f"{prefix}{new}.{rest}"] = value
    return weights


def load_weights(model: PreTrainedModel, weights: dict[str, Tensor], source: PreTrainedModel) -> None:
    """Load a state dict into a model. A pooler, which students do not have, is left out.

    Args:
        model: The model to fill.
        weights: Its state dict.
        source: The model that the weights come from, for the error message.

    Raises:
        ValueError: Weights are missing, or there is no place for some.
    """
    weights = {key: value for key, value in weights.items() if not key.startswith("pooler.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"the weights of {type(source).__name__} do not fit a {type(model).__name__} made from its config: "
            f"{', '.join([*missing, *unexpected][:5])} are only in one of them; choose another model, for a student of another "
            "architecture with from_backbone"
        )
