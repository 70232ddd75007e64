"""Students with a head for a task: a new one to be learned, or that of a fine-tuned teacher, copied and frozen."""

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .checkpoints import read_json
from .configuration_skd_student import SKDStudentConfig
from .encoding import pool
from .modeling_sense_embedding import SenseEmbeddingModel
from .modeling_skd_student import SKDStudentModel, SKDStudentPreTrainedModel
from .teachers import check_name, load_teacher, origin_of

# Encoders that classify by their first token, by model type: the dense layer before the classifier, its activation (or the field of the
# config that names it), and the classifier. To classify tokens each of them has a `classifier` alone.
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


class SKDStudentHeadModel(SKDStudentPreTrainedModel):
    """What the heads share. With `config.freeze_head` no part of the head is learned, nor may any be missing from a checkpoint. They read
    token ids as they come: where a student has a prompt (`config.prompt`), it must be in them as in training."""

    # The losses are sums, divided by the number of labels of all accumulated batches and processes, which Trainer counts.
    accepts_loss_kwargs = True
    _teacher_class: type

    def __init__(self, config: SKDStudentConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.student = SKDStudentModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    @classmethod
    def from_teacher(
        cls,
        classifier: str | os.PathLike | PreTrainedModel,
        senses: SenseEmbeddingModel,
        num_hidden_layers: int | Sequence[int] = 2,
        **config: Any,
    ) -> "SKDStudentHeadModel":
        """A student made of layers of a fine-tuned teacher, with the teacher's own pooler and head, frozen, on its senses.

        Args:
            classifier: a name, a path or a model: `bert-base-uncased` fine-tuned for this task, say.
            senses: a dictionary built from it. num_hidden_layers, config: as in [`SKDStudentModel.from_teacher`]; labels, pooling and the
                like are those of the head.

        Raises:
            ValueError: the dictionary does not fit the teacher, there are no such layers, or the teacher's head cannot be copied.
        """
        classifier = cls.load_classifier(classifier)
        teacher = load_teacher(classifier, tokenizer=None if classifier.name_or_path else senses.tokenizer)
        return cls.from_student(SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers, **config), classifier)

    @classmethod
    def from_student(
        cls, student: SKDStudentModel, classifier: str | os.PathLike | PreTrainedModel
    ) -> "SKDStudentHeadModel":
        """A copy of a student, of whatever backbone, with the pooler and head of its fine-tuned teacher, frozen.

        Args:
            student: with a dictionary of the teacher's last layer. classifier: that teacher: a name, a path or a model.

        Raises:
            ValueError: the teacher's head cannot be copied, or does not read what the senses are made of.
        """
        classifier = cls.load_classifier(classifier)
        layers, settings = cls._head_of(classifier)
        senses, depth, width = (
            student.config.sense_config,
            classifier.config.num_hidden_layers,
            layers["classifier"].in_features,
        )
        if width != senses.hidden_size or senses.layer not in (-1, depth):
            raise ValueError(
                f"the head of {type(classifier).__name__} reads layer {depth} of width {width}, the senses are of layer {senses.layer} and "
                f"width {senses.hidden_size}: build a dictionary from the last layer of this teacher"
            )
        check_name(senses, origin_of(classifier.name_or_path) or type(classifier.base_model).__name__)
        config = copy.deepcopy(student.config)
        settings |= {
            name: copy.copy(getattr(classifier.config, name)) for name in ("id2label", "label2id", "problem_type")
        }
        settings["freeze_head"] = True
        for name, value in settings.items():
            setattr(config, name, value)
        model = cls(config)
        model.student.load_state_dict(student.state_dict())
        for name, layer in layers.items():
            _copy_linear(model.get_submodule(name), layer)
        for part in model._parts():
            part._tokenizer, part._tokenizer_source = student._tokenizer, student._tokenizer_source
        return model._freeze_head().to(student.device)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but refuses a checkpoint without the head that it was made with, instead of inventing one.

        Raises:
            ValueError: the checkpoint does not hold the dictionary or the frozen head that its config describes, or that head is for
                another task.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if model.config.freeze_head:
            wrong = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
            wrong = sorted(key for key in wrong if not key.startswith(f"{cls.base_model_prefix}."))
            if wrong:
                raise ValueError(
                    f"{pretrained_model_name_or_path} lacks {', '.join(wrong)} in the size that its config says, of a head that was copied "
                    f"from the teacher: copy it again with {cls.__name__}.from_student, or learn one with freeze_head=False"
                )
            made = read_json(os.fspath(pretrained_model_name_or_path), "config.json", kwargs.get("revision")) or {}
            if (kinds := made.get("architectures")) and cls.__name__ not in kinds:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds the frozen head of a {kinds[0]}: load that, or pass freeze_head=False"
                )
            model._freeze_head()  # loading has made all parameters trainable
        return (model, info) if output_loading_info else model

    @classmethod
    def load_classifier(cls, classifier: str | os.PathLike | PreTrainedModel) -> PreTrainedModel:
        """A fine-tuned model of a name or a path; one that is loaded is returned.

        Raises:
            ValueError: weights of its head are missing, or it is no model.
        """
        if isinstance(classifier, PreTrainedModel):
            return classifier
        if not isinstance(classifier, (str, os.PathLike)):
            raise ValueError(
                f"classifier is a {type(classifier).__name__}: pass a name, a path or a fine-tuned model of transformers"
            )
        model, info = cls._teacher_class.from_pretrained(classifier, dtype="auto", output_loading_info=True)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:5])
            raise ValueError(
                f"{classifier} lacks weights of {type(model).__name__}, which would be random: {missing}; fine-tune it first"
            )
        return model

    @classmethod
    def _head_of(cls, classifier: PreTrainedModel) -> tuple[dict[str, nn.Linear], dict[str, Any]]:
        """The layers of a fine-tuned model's head by their names here, and the fields of the config that go with them."""
        raise NotImplementedError

    @classmethod
    def _no_head(cls, classifier: PreTrainedModel) -> ValueError:
        task = cls.__name__.removeprefix("SKDStudent")
        return ValueError(
            f"cannot copy the head of {type(classifier).__name__}: known are decoders and {', '.join(ENCODER_HEADS)}, {task}; for others "
            f"save the student, load it by {cls._teacher_class.__name__}.from_pretrained(folder, num_labels=...) and learn a head of its "
            "own with Trainer"
        )

    def _freeze_head(self) -> "SKDStudentHeadModel":
        for name, part in self.named_children():
            if name != self.base_model_prefix:
                part.requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.student.get_input_embeddings()


class SKDStudentForSequenceClassification(SKDStudentHeadModel):
    """A student with a classifier on its pooled senses, behind a dense layer if `config.classifier_activation` names its activation."""

    _teacher_class = AutoModelForSequenceClassification

    def __init__(self, config: SKDStudentConfig):
        super().__init__(config)
        activation, width = config.classifier_activation, config.hidden_size
        self.pre_classifier = nn.Linear(width, width) if activation else None
        self.activation = ACT2FN[activation] if activation else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        assignment: str | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids, attention_mask: `[batch, positions]`.
            labels: `[batch]` classes (cross-entropy), `[batch, num_labels]` floats (binary cross-entropy for each label), or, for
                `num_labels=1`, `[batch]` numbers (squared error); `config.problem_type` decides if it is set.
            num_items_in_batch: what the summed loss is divided by; default: its mean over the batch.
        """
        outputs = self.student(input_ids, attention_mask, token_type_ids, assignment, return_dict=True, **kwargs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = pool(outputs.last_hidden_state, mask, self.config.pooling)
        if self.pre_classifier is not None:
            pooled = self.activation(self.pre_classifier(pooled))
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self._loss(logits.float(), labels, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        kind, reduction = self.config.problem_type, "mean" if items is None else "sum"
        if kind == "regression" or (kind is None and self.num_labels == 1):
            loss = F.mse_loss(logits, labels.to(logits.dtype).view_as(logits), reduction=reduction)
        elif kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)
        else:
            loss = F.cross_entropy(logits, labels.view(-1), reduction=reduction)
        return loss if items is None else loss / items

    @classmethod
    def _head_of(cls, classifier: PreTrainedModel) -> tuple[dict[str, nn.Linear], dict[str, Any]]:
        if isinstance(classifier, GenericForSequenceClassification):
            return {"classifier": classifier.score}, {
                "pooling": "last",
                "classifier_activation": None,
                "classifier_dropout": 0.0,
            }
        kind = classifier.config.model_type
        if kind not in ENCODER_HEADS or not type(classifier).__name__.endswith("ForSequenceClassification"):
            raise cls._no_head(classifier)
        dense, activation, last = ENCODER_HEADS[kind]
        layers = {"pre_classifier": classifier.get_submodule(dense), "classifier": classifier.get_submodule(last)}
        return layers, {
            "pooling": "cls",
            "classifier_activation": getattr(classifier.config, activation, activation),
            "classifier_dropout": classifier.get_submodule(last.rpartition(".")[0]).dropout.p,
        }


class SKDStudentForTokenClassification(SKDStudentHeadModel):
    """A student with a linear classifier on the sense of each token."""

    _teacher_class = AutoModelForTokenClassification

    def __init__(self, config: SKDStudentConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        assignment: str | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """
        Args:
            input_ids, attention_mask: `[batch, positions]`.
            labels: `[batch, positions]`, classes; -100 where a position is not counted.
            num_items_in_batch: what the summed loss is divided by; default: its mean over the counted positions.
        """
        outputs = self.student(input_ids, attention_mask, token_type_ids, assignment, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction=reduction)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    @classmethod
    def _head_of(cls, classifier: PreTrainedModel) -> tuple[dict[str, nn.Linear], dict[str, Any]]:
        known = classifier.config.model_type in ENCODER_HEADS and type(classifier).__name__.endswith(
            "ForTokenClassification"
        )
        if isinstance(classifier, GenericForTokenClassification):
            last = classifier.score
        elif known:
            last = classifier.classifier
        else:
            raise cls._no_head(classifier)
        return {"classifier": last}, {"classifier_dropout": classifier.dropout.p}


@torch.no_grad()
def _copy_linear(target: nn.Linear, source: nn.Linear) -> None:
    """Copies a layer; one without a bias gets a bias of zeros, which is the same."""
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias) if source.bias is not None else target.bias.zero_()
