"""What a student takes over from the model it is made from: layers, weights and settings."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .arguments import check_integer
from .configuration_layer_free import LayerFreeConfig
from .configuration_sense_embedding import SenseEmbeddingConfig
from .configuration_skd_student import SKDStudentConfig
from .loading import is_quantized
from .modeling_layer_free import LayerFreeModel
from .teachers import Teacher

# Parts next to the layers, which the hidden states do not depend on: a pooler would read the vectors before the
# senses, and the number of layers decides the size of ESM's head for contacts.
HEADS = ("pooler", "contact_head")


def check_weights(source: Teacher) -> None:
    """Check that the weights of a model can be copied.

    Args:
        source: The model to copy from.

    Raises:
        ValueError: The weights are quantized, or the config makes more than the model.
    """
    if source.model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(source.model).__name__} is the encoder of an encoder-decoder, and its config makes the whole: a "
            "student cannot start from it; choose another model as backbone, with from_backbone"
        )
    if is_quantized(source.model):
        raise ValueError(
            f"the weights of {source.name} are quantized and cannot be copied: load the model without quantization, "
            "load_teacher(name), and make the student from that"
        )


def encoding_settings(source: Teacher) -> dict[str, Any]:
    """Return the config fields that make a student encode texts as the model it is made from does.

    Args:
        source: The teacher, or the backbone of a student.

    Returns:
        Fields of :class:`SKDStudentConfig`.
    """
    return {
        "pooling": source.pooling,
        "max_seq_length": source.max_seq_length,
        "prompt": None if source.prompt is None else asdict(source.prompt),
        "prompts": source.prompts or None,
        "include_prompt": source.include_prompt,
        "sentence_head": source.sentence_head_steps or None,
        "similarity_fn_name": source.similarity_fn_name,
    }


def student_config(
    text_config: PreTrainedConfig, sense_config: SenseEmbeddingConfig, settings: dict[str, Any]
) -> SKDStudentConfig:
    """Make the config of a student from copies of the given configs.

    Args:
        text_config: Config of the backbone.
        sense_config: Config of the dictionary.
        settings: Other fields of :class:`SKDStudentConfig`.

    Returns:
        A config for a student in float32.

    Raises:
        ValueError: `settings` names an unknown field, or a field has a value that is not allowed, or the code of the
            backbone is not that of transformers.
    """
    if type(text_config).__module__.startswith("transformers_modules."):
        raise ValueError(
            f"{type(text_config).__name__} comes with code of its own, which a student would not have: make the "
            "student from another model, by SKDStudentModel.from_backbone"
        )
    text_config, sense_config = copy.deepcopy(text_config), copy.deepcopy(sense_config)
    # Float32 whatever the dtype of the source: training in pure half precision loses small updates. For mixed
    # precision there are the options `bf16` and `fp16` of Trainer.
    text_config.dtype = torch.float32
    vars(text_config).pop("quantization_config", None)  # a model from a GGUF file keeps it
    # The two configs and the vocabulary are given. Methods, and what the config computes, can be read but not set.
    known = SKDStudentConfig()
    properties = {name: value for name, value in vars(SKDStudentConfig).items() if isinstance(value, property)}
    others = {"text_config", "sense_config", "vocab_size"}
    others |= {name for name, value in properties.items() if value.fset is None}
    others |= {name for name in settings if callable(getattr(known, name, None))}
    if unknown := [name for name in settings if name in others or not hasattr(known, name)]:
        raise ValueError(
            f"a student has no setting {unknown[0]!r}: choose fields of SKDStudentConfig, such as assignment or "
            "pooling"
        )
    return SKDStudentConfig(text_config=text_config, sense_config=sense_config, **settings)


def choose_layers(num_hidden_layers: int | Sequence[int], source: Teacher, layer: int = -1) -> list[int]:
    """Return the indices of the layers to keep.

    Args:
        num_hidden_layers: How many layers to keep, or the indices of the layers to keep. A number keeps the first
            layers and, from two on, the last one instead of the last of these: it makes the vectors that the student
            learns. A single layer is the first.
        source: The model that the layers are taken from.
        layer: Index of the hidden states that the dictionary was built from. The layer that makes them counts as the
            last one.

    Returns:
        Indices of layers, counted from 0.

    Raises:
        ValueError: No layer is left, or the model has no layer of that index.
    """
    total = source.model.config.num_hidden_layers
    if not total:
        raise ValueError(
            f"{source.name} has no layers: only a student without layers can be made, num_hidden_layers=0"
        )
    if isinstance(num_hidden_layers, Iterable):
        layers = [check_integer("num_hidden_layers", index) for index in num_hidden_layers]
    elif 0 < (number := check_integer("num_hidden_layers", num_hidden_layers)) <= total:
        last = max(number, layer % (total + 1)) - 1  # hidden states 0 are the embeddings
        layers = [0] if number == 1 else [*range(number - 1), last]
    else:
        layers = []
    if not layers or not all(0 <= index < total for index in layers):
        raise ValueError(
            f"num_hidden_layers={num_hidden_layers}: {source.name} has layers 0 to {total - 1}; give a number from 1 "
            f"to {total}, or a list of layers from 0 to {total - 1}"
        )
    return layers


def keep_layers(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a model's config for some of its layers.

    Fields with one entry for each layer, such as `layer_types`, are shortened too.

    Args:
        config: The config of the whole model. It stays as it is.
        layers: Indices of the layers to keep, in their new order.

    Returns:
        The config of the smaller model.

    Raises:
        ValueError: A layer would compute something else at another place.
    """
    depends_on_place = getattr(config, "scale_attn_by_inverse_layer_idx", False) or config.model_type == "diffllama"
    if depends_on_place and [*layers] != [*range(len(layers))]:
        raise ValueError(
            f"num_hidden_layers={[*layers]}: attention in this {config.model_type} depends on the place of a layer; "
            f"keep the first ones, {[*range(len(layers))]}"
        )
    config, total = copy.deepcopy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        # Lists of other things, which may be as long as the model is deep: DeBERTa's kinds of relative attention, ids.
        if name in ("pos_att_type", "architectures") or name.endswith("_token_id"):
            continue
        if isinstance(value, list) and len(value) == total and not name.startswith("_"):
            setattr(config, name, [value[layer] for layer in layers])
    config.num_hidden_layers = len(layers)
    return config


def keep_layer_weights(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of some layers of a model, and of everything outside its layers.

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


def make_backbone(config: PreTrainedConfig) -> Any:  # as AutoModel says
    """Make the backbone of a student, with random weights and without heads.

    Args:
        config: Config of the backbone.
    """
    # Where the code of a saved folder runs, AutoModel does not know this class.
    if isinstance(config, LayerFreeConfig):
        return LayerFreeModel(config)
    backbone = AutoModel.from_config(config, trust_remote_code=False)
    for name in HEADS:
        if getattr(backbone, name, None) is not None:
            setattr(backbone, name, nn.Identity())  # some architectures call it in any case
    return backbone


def load_weights(model: PreTrainedModel, weights: dict[str, Tensor], source: PreTrainedModel) -> None:
    """Load a state dict into a model. Heads, which students do not have, are left out.

    Args:
        model: The model to fill.
        weights: Its state dict.
        source: The model that the weights come from, for the error message.

    Raises:
        ValueError: Weights are missing, or there is no place for some.
    """
    weights = {key: value for key, value in weights.items() if key.split(".")[0] not in HEADS}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"the weights of {type(source).__name__} do not fit a {type(model).__name__} made from its config: "
            f"{', '.join([*missing, *unexpected][:5])} are only in one of them; choose another model, "
            "as backbone of a student made with from_backbone"
        )
