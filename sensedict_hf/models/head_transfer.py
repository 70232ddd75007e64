"""The head of a fine-tuned classifier, as a student takes it over: its layers and their settings."""

import os
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from .configuration_skd_student import SKDStudentConfig
from .encoding import LEARNED
from .files import reading
from .matching import check_name
from .teachers import origin_of
from .tokenization import special_tokens_around

# Encoders that classify a text by its first token, by model type: the name of the dense layer before the classifier,
# the activation (or the config field that names it), the name of the classifier. Their heads for tokens are one layer,
# named `classifier`.
ENCODER_HEADS = {
    "bert": ("bert.pooler.dense", "tanh", "classifier"),
    "camembert": ("classifier.dense", "tanh", "classifier.out_proj"),
    "deberta": ("pooler.dense", "pooler_hidden_act", "classifier"),
    "deberta-v2": ("pooler.dense", "pooler_hidden_act", "classifier"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "mpnet": ("classifier.dense", "tanh", "classifier.out_proj"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
}


# The Auto class of a task.
AutoTaskModel: TypeAlias = (
    type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification] | type[AutoModelForTokenClassification]
)


class ClassifierHead(NamedTuple):
    """The head of a fine-tuned classifier.

    Attributes:
        layers: Linear layers, by the names that they have in a student.
        settings: Fields of :class:`SKDStudentConfig` that the layers need.
    """

    layers: dict[str, nn.Linear]
    settings: dict[str, Any]


def load_with_head(
    model: str | os.PathLike[str] | PreTrainedModel,
    auto_class: AutoTaskModel,
    trust_remote_code: bool = False,
    **loading: Any,
) -> PreTrainedModel:
    """Load a model with its head: a fine-tuned classifier or a language model.

    Args:
        model: A name or a path. A loaded model is returned as it is.
        auto_class: The class to load it with.
        trust_remote_code: Whether to run code from the folder or repository.
        loading: Other arguments of `from_pretrained`, such as `revision`.

    Returns:
        The model, in evaluation mode if it was loaded here.

    Raises:
        ValueError: Weights of the head are missing, or `model` is none of these.
    """
    if isinstance(model, PreTrainedModel):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"{type(model).__name__} is no model with a head: pass a name, a path or a loaded model")
    with reading(model):
        options = {"dtype": "auto", "trust_remote_code": trust_remote_code, "output_loading_info": True}
        found: Any = auto_class.from_pretrained(model, **options | loading)
    loaded: PreTrainedModel = found[0]
    if found[1]["missing_keys"]:
        missing = ", ".join(sorted(found[1]["missing_keys"])[:5])
        raise ValueError(
            f"{model} lacks weights of {type(loaded).__name__}, which would be random: {missing}; fine-tune it first"
        )
    return loaded


def find_text_head(classifier: PreTrainedModel) -> ClassifierHead:
    """Find the head of a model that classifies texts.

    Args:
        classifier: A decoder, or an encoder of :data:`ENCODER_HEADS`, for sequence classification.

    Returns:
        The layer `classifier` and, for encoders, the layer `pre_classifier`, with pooling, activation and dropout.

    Raises:
        ValueError: The architecture is not known.
    """
    if isinstance(classifier, GenericForSequenceClassification):  # decoders classify by the last token
        settings = {"pooling": "last", "classifier_activation": None, "classifier_dropout": 0.0}
        return ClassifierHead({"classifier": _linear(classifier, "score")}, settings)
    kind = classifier.config.model_type
    if kind not in ENCODER_HEADS or not type(classifier).__name__.endswith("ForSequenceClassification"):
        raise _unknown_head(classifier, "AutoModelForSequenceClassification")
    dense, activation, last = ENCODER_HEADS[kind]
    settings = {
        "pooling": "cls",
        "classifier_activation": getattr(classifier.config, activation, activation),
        "classifier_dropout": _dropout(classifier, f"{last.rpartition('.')[0]}.dropout".lstrip(".")),
    }
    return ClassifierHead(
        {"pre_classifier": _linear(classifier, dense), "classifier": _linear(classifier, last)}, settings
    )


def find_token_head(classifier: PreTrainedModel) -> ClassifierHead:
    """Find the head of a model that classifies tokens.

    Args:
        classifier: A decoder, or an encoder of :data:`ENCODER_HEADS`, for token classification.

    Returns:
        The layer `classifier`, with its dropout.

    Raises:
        ValueError: The architecture is not known.
    """
    name = "score" if isinstance(classifier, GenericForTokenClassification) else "classifier"
    is_known_encoder = classifier.config.model_type in ENCODER_HEADS
    is_for_tokens = type(classifier).__name__.endswith("ForTokenClassification")
    if name == "classifier" and not (is_known_encoder and is_for_tokens):
        raise _unknown_head(classifier, "AutoModelForTokenClassification")
    settings = {"classifier_dropout": _dropout(classifier, "dropout")}
    return ClassifierHead({"classifier": _linear(classifier, name)}, settings)


def check_head(
    head: ClassifierHead,
    classifier: PreTrainedModel,
    student: SKDStudentConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check that a head can read senses instead of the hidden states of its own model.

    Args:
        head: The head.
        classifier: The fine-tuned model that it belongs to.
        student: Config of the student.
        tokenizer: The tokenizer of the student.

    Raises:
        ValueError: The senses have another width, or are not of the last layer, or the student would read another
            token of a text, or pools texts by itself.
    """
    senses = student.sense_config
    if student.pooling == LEARNED and "pooling" in head.settings:
        raise ValueError(
            "a student without layers takes no head for texts from its teacher, as it pools them in another way: "
            "distil it without a head, and train a new one on it"
        )
    # A decoder with a head reads the last token that is no padding, whatever the mask says.
    after = special_tokens_around(tokenizer)[1]
    if head.settings.get("pooling") == "last" and after and after[-1] == classifier.config.pad_token_id:
        raise ValueError(
            f"the tokenizer ends each text with {tokenizer.convert_ids_to_tokens(after[-1])!r}, which is the padding "
            f"token of {type(classifier).__name__} and not read by its head: give classifier.config another "
            "pad_token_id, or a tokenizer that adds nothing"
        )
    depth, width = classifier.config.num_hidden_layers, head.layers["classifier"].in_features
    if width != senses.hidden_size or senses.layer not in (-1, depth):
        raise ValueError(
            f"the head of {type(classifier).__name__} reads layer {depth} of width {width}, the senses are of layer "
            f"{senses.layer} and width {senses.hidden_size}: build a dictionary from the last layer of this teacher"
        )
    check_name(senses, origin_of(classifier.name_or_path or "") or type(classifier.base_model).__name__)


@torch.no_grad()
def copy_linear(target: nn.Linear, source: nn.Linear) -> None:
    """Copy a linear layer. If the source has no bias, the bias of the copy is zero.

    Args:
        target: The layer to fill.
        source: A layer of the same size.
    """
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias) if source.bias is not None else target.bias.zero_()


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    return cast(nn.Linear, model.get_submodule(name))


def _dropout(model: PreTrainedModel, name: str) -> float:
    return cast(nn.Dropout, model.get_submodule(name)).p


def _unknown_head(classifier: PreTrainedModel, auto_class: str) -> ValueError:
    task = auto_class.removeprefix("AutoModel")
    return ValueError(
        f"cannot copy the head of {type(classifier).__name__}: known are decoders and {', '.join(ENCODER_HEADS)}, "
        f"{task}; for others save the student, load it with {auto_class}.from_pretrained(folder, num_labels=...) and "
        "learn a head of its own with Trainer"
    )
