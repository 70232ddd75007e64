"""Students that classify texts or tokens, with a new head or with the head of their fine-tuned teacher."""

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_skd_student import SKDStudentConfig
from .encoding import LEARNED, pool
from .head_transfer import (
    AutoTaskModel,
    ClassifierHead,
    check_head,
    copy_linear,
    find_text_head,
    find_token_head,
    load_with_head,
)
from .modeling_sense_embedding import SenseEmbeddingModel
from .modeling_skd_base import SKDStudentPreTrainedModel
from .modeling_skd_student import SKDStudentModel
from .teachers import load_teacher

Model = TypeVar("Model", bound="SKDStudentHeadModel")


class SKDStudentHeadModel(SKDStudentPreTrainedModel):
    """The base class of students with a head.

    The token ids must include the prompt of the config, if there is one, in training and later.

    Attributes:
        student: The student, a :class:`SKDStudentModel`.
        dropout: Dropout before the classifier.
        classifier: The last linear layer, from the teacher's width to the number of labels.
    """

    # The losses are sums over labels, divided by the number of labels in all accumulated batches of all processes,
    # which Trainer counts.
    accepts_loss_kwargs = True
    # For the task of the class: how a fine-tuned teacher is loaded, and how its head is found.
    _teacher_class: AutoTaskModel
    _find_head: Callable[[PreTrainedModel], ClassifierHead]

    def __init__(self, config: SKDStudentConfig):
        super().__init__(config)
        num_labels = int(config.num_labels or 0)
        self.num_labels = num_labels
        self.student = SKDStudentModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    @classmethod
    def from_teacher(
        cls: type[Model],
        classifier: str | os.PathLike[str] | PreTrainedModel,
        senses: SenseEmbeddingModel,
        num_hidden_layers: int | Sequence[int] = 2,
        **config: Any,
    ) -> Model:
        """Make a student from some layers of a fine-tuned teacher, with the head of this teacher, frozen.

        Args:
            classifier: The fine-tuned model with its head: a name, a path or a loaded model.
            senses: A sense dictionary built from this model. It is copied into the student.
            num_hidden_layers: How many of the teacher's layers to keep, the first ones and the last, or the indices of
                the layers to keep.
            config: Other fields of :class:`SKDStudentConfig`. Labels and pooling are those of the teacher's head.

        Returns:
            A student in float32, on the device of the teacher.

        Raises:
            ValueError: The dictionary does not fit this teacher, the teacher has no such layers, or its head
                cannot be copied.

        Example:
            >>> from transformers import AutoModelForSequenceClassification
            >>> from sensedict_hf import SKDStudentForSequenceClassification
            >>> name = teacher.model.name_or_path  # here you give the name of a fine-tuned model
            >>> classifier = AutoModelForSequenceClassification.from_pretrained(name, num_labels=3)
            >>> model = SKDStudentForSequenceClassification.from_teacher(classifier, senses, num_hidden_layers=2)
            >>> model.classifier.out_features, model.classifier.weight.requires_grad
            (3, False)
        """
        classifier = cls.load_classifier(classifier)
        teacher = load_teacher(classifier, tokenizer=None if classifier.name_or_path else senses.tokenizer)
        return cls.from_student(SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers, **config), classifier)

    @classmethod
    def from_student(
        cls: type[Model], student: SKDStudentModel, classifier: str | os.PathLike[str] | PreTrainedModel
    ) -> Model:
        """Copy a student and give it the head of its fine-tuned teacher, frozen.

        Args:
            student: A student with a dictionary of the teacher's last layer. Its backbone may be any model.
            classifier: The fine-tuned teacher: a name, a path or a loaded model.

        Returns:
            A student with a head, on the device of the student, ready to predict (`eval()`).

        Raises:
            ValueError: The head cannot be copied, or it does not read the layer that the senses are of.

        Example:
            >>> from transformers import AutoModelForTokenClassification
            >>> from sensedict_hf import SKDStudentForTokenClassification
            >>> name = teacher.model.name_or_path  # here you give the name of a fine-tuned model
            >>> classifier = AutoModelForTokenClassification.from_pretrained(name, num_labels=5)
            >>> model = SKDStudentForTokenClassification.from_student(student, classifier)
            >>> model.config.freeze_head
            True
        """
        classifier = cls.load_classifier(classifier)
        head = cls._find_head(classifier)
        check_head(head, classifier, student.config, student.tokenizer)
        # The config: that of the student, with labels and settings of the head.
        config = copy.deepcopy(student.config)
        for name in ("id2label", "label2id", "problem_type"):
            setattr(config, name, copy.copy(getattr(classifier.config, name)))
        for name, value in head.settings.items():
            setattr(config, name, value)
        config.freeze_head = True
        # The weights.
        model = cls(config)
        model.student.load_state_dict(student.state_dict())
        for name, layer in head.layers.items():
            target = model.get_submodule(name)
            assert isinstance(target, nn.Linear)
            copy_linear(target, layer)
        model._freeze_head()
        # The tokenizer, which the student may not have read yet.
        for part in model._parts():
            part._tokenizer, part._tokenizer_source = student._tokenizer, student._tokenizer_source
        model.to(student.device)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
        model.eval()
        return model

    def _finish_loading(self, source: str, options: dict[str, Any]) -> None:
        if self.config.freeze_head:
            self._freeze_head()  # loading makes all parameters trainable

    @classmethod
    def _has_new_head(cls, config: SKDStudentConfig, source: str) -> bool:
        saved_as = (config.architectures or [""])[0]
        if "For" in saved_as and saved_as != cls.__name__:
            raise ValueError(
                f"{source} holds the head of a {saved_as}: load that; for a new head save its student alone, with "
                "model.student.save_pretrained(folder), and load this folder with freeze_head=False"
            )
        return not config.freeze_head and saved_as != cls.__name__

    @classmethod
    def load_classifier(
        cls, classifier: str | os.PathLike[str] | PreTrainedModel, trust_remote_code: bool = False, **loading: Any
    ) -> PreTrainedModel:
        """Load a fine-tuned teacher with its head, in evaluation mode.

        Args:
            classifier: A name or a path. A loaded model is returned as it is.
            trust_remote_code: Whether to run code from the folder or repository.
            loading: Other arguments of `from_pretrained`, such as `revision`.

        Raises:
            ValueError: Weights of the head are missing, or `classifier` is none of these.

        Example:
            >>> from sensedict_hf import SKDStudentForSequenceClassification
            >>> SKDStudentForSequenceClassification.load_classifier(teacher.model) is teacher.model
            True
        """
        return load_with_head(classifier, cls._teacher_class, trust_remote_code, **loading)

    def _freeze_head(self) -> None:
        """Make all parameters outside the student constant."""
        for name, part in self.named_children():
            if name != self.base_model_prefix:
                part.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the backbone."""
        return self.student.get_input_embeddings()


class SKDStudentForSequenceClassification(SKDStudentHeadModel):
    """A student that classifies texts, by their pooled senses.

    Args:
        config: Configuration of student and head. With `classifier_activation` there is a dense layer with this
            activation before the classifier.

    Attributes:
        student: The student, a :class:`SKDStudentModel`.
        pre_classifier: The dense layer before the classifier, or None.
        classifier: The last linear layer.

    Example:
        >>> from transformers import AutoModelForSequenceClassification
        >>> student.save_pretrained("skd-minilm")
        >>> model = AutoModelForSequenceClassification.from_pretrained("skd-minilm", num_labels=3)
        >>> model(**student.tokenizer(texts[:2], padding=True, return_tensors="pt")).logits.shape
        torch.Size([2, 3])
    """

    _teacher_class = AutoModelForSequenceClassification
    _find_head = staticmethod(find_text_head)

    def __init__(self, config: SKDStudentConfig):
        if config.learn_senses and config.pooling == LEARNED:
            raise ValueError(
                "learn_senses=True for texts: without layers their vectors are made without senses, and none would be "
                "learned; leave it out"
            )
        super().__init__(config)
        activation, width = config.classifier_activation, config.hidden_size
        self.pre_classifier = nn.Linear(width, width) if activation else None
        self.activation = ACT2FN[activation] if activation else None
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
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
        """Compute logits and, with labels, the loss.

        The loss follows `config.problem_type`. If that is None, the first labels set it: `regression` for one label
        (squared error), `multi_label_classification` for labels that are floats (binary cross-entropy), otherwise
        `single_label_classification` (cross-entropy).

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.
            token_type_ids: `[batch, positions]`, segment ids, for backbones that have them.
            labels: `[batch]`, int64, for cross-entropy; `[batch, num_labels]` of zeros and ones for binary
                cross-entropy; `[batch]` or `[batch, num_labels]` of numbers for the squared error.
            assignment: `hard`, `soft` or `none`, see :class:`SKDStudentConfig`. None: the assignment of the config.
            num_items_in_batch: Number that the summed loss is divided by. None: the loss is a mean over the batch.
            kwargs: Other arguments of the backbone, and `return_dict`.

        Returns:
            `logits [batch, num_labels]` and `loss`, in a `SequenceClassifierOutput`, or a tuple with
            `return_dict=False`.

        Example:
            >>> import torch
            >>> from transformers import AutoModelForSequenceClassification
            >>> student.save_pretrained("skd-minilm")
            >>> model = AutoModelForSequenceClassification.from_pretrained("skd-minilm", num_labels=3)
            >>> batch = student.tokenizer(texts[:2], padding=True, return_tensors="pt")
            >>> model(**batch, labels=torch.tensor([0, 2])).loss.shape
            torch.Size([])
        """
        outputs = self.student(input_ids, attention_mask, token_type_ids, assignment, return_dict=True, **kwargs)
        # One vector for each text.
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = outputs.pooler_output
        if pooled is None:
            pooled = pool(outputs.last_hidden_state, mask, self.config.pooling)
        # The head.
        if self.pre_classifier is not None and self.activation is not None:
            pooled = self.activation(self.pre_classifier(pooled))
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else text_loss(self.config, logits.float(), labels, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SKDStudentForTokenClassification(SKDStudentHeadModel):
    """A student that classifies tokens, each by its sense.

    Args:
        config: Configuration of student and head.

    Attributes:
        student: The student, a :class:`SKDStudentModel`.
        classifier: The linear layer.

    Example:
        >>> from transformers import AutoModelForTokenClassification
        >>> student.save_pretrained("skd-minilm")
        >>> model = AutoModelForTokenClassification.from_pretrained("skd-minilm", num_labels=5)
        >>> model(**student.tokenizer(["the bank of the river"], return_tensors="pt")).logits.shape
        torch.Size([1, 7, 5])
    """

    _teacher_class = AutoModelForTokenClassification
    _find_head = staticmethod(find_token_head)

    def __init__(self, config: SKDStudentConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
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
        """Compute logits and, with labels, the cross-entropy.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.
            token_type_ids: `[batch, positions]`, segment ids, for backbones that have them.
            labels: `[batch, positions]`, int64, -100 for positions that are not counted.
            assignment: `hard`, `soft` or `none`, see :class:`SKDStudentConfig`. None: the assignment of the config.
            num_items_in_batch: Number that the summed loss is divided by. None: the loss is a mean over the counted
                positions.
            kwargs: Other arguments of the backbone, and `return_dict`.

        Returns:
            `logits [batch, positions, num_labels]` and `loss`, in a `TokenClassifierOutput`, or a tuple with
            `return_dict=False`.

        Example:
            >>> from transformers import AutoModelForTokenClassification
            >>> student.save_pretrained("skd-minilm")
            >>> model = AutoModelForTokenClassification.from_pretrained("skd-minilm", num_labels=5)
            >>> batch = student.tokenizer(texts[:2], padding=True, return_tensors="pt")
            >>> labels = (batch["input_ids"] % 5).masked_fill(batch["attention_mask"] == 0, -100)
            >>> model(**batch, labels=labels).loss.shape
            torch.Size([])
        """
        outputs = self.student(input_ids, attention_mask, token_type_ids, assignment, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def text_loss(config: SKDStudentConfig, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """Compute the loss of `config.problem_type`, which the first labels set if it is None.

    transformers divides by `items` for one label of several only.

    Args:
        config: Config of the student.
        logits: `[batch, num_labels]`.
        labels: `[batch]`, or `[batch, num_labels]`.
        items: Number that the summed loss is divided by. None: the loss is a mean.
    """
    if config.problem_type is None:  # a pipeline reads it from the saved config
        if logits.shape[-1] == 1:
            config.problem_type = "regression"
        elif labels.is_floating_point():
            config.problem_type = "multi_label_classification"
        else:
            config.problem_type = "single_label_classification"
    reduction = "mean" if items is None else "sum"
    if config.problem_type == "regression":
        loss = F.mse_loss(logits, labels.to(logits.dtype).view_as(logits), reduction=reduction)
    elif config.problem_type == "multi_label_classification":
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)
    else:
        loss = F.cross_entropy(logits, labels.view(-1), reduction=reduction)
    return loss if items is None else loss / items
