"""What a student starts from: layers of its teacher, another model, or tables alone."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..models.arguments import check_choice, check_integer, check_kind
from ..models.head_transfer import load_with_head
from ..models.layer_free_transfer import StoredVectors
from ..models.layer_transfer import encoding_settings
from ..models.loading import load_senses, move_model
from ..models.modeling_layer_free import LayerFreeModel
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_base import SKDStudentPreTrainedModel
from ..models.modeling_skd_causal_lm import SKDStudentForCausalLM
from ..models.modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from ..models.vocabulary_transfer import adopt_tokenizer

CAUSAL_LM = "causal_lm"
HEADS: dict[str, Any] = {
    CAUSAL_LM: SKDStudentForCausalLM,
    "sequence_classification": SKDStudentForSequenceClassification,
    "token_classification": SKDStudentForTokenClassification,
}
# How a decoder is loaded with its head, which `load_teacher` then leaves as it is.
WITH_HEAD = ("dtype", "device_map", "quantization_config")


def source_name(source: Any) -> str | None:
    """Return the last part of a name or folder; its place on this machine is nobody's business. None for objects."""
    return Path(source).name if isinstance(source, (str, os.PathLike)) else None


@dataclass
class Models:
    """The models of a run.

    Attributes:
        teacher: The teacher.
        senses: Its dictionary. None: the run does without.
        backbone: The model that the student starts from. None: it starts from the teacher.
        with_head: The teacher with its head. None: the student gets no head.
    """

    teacher: Teacher
    senses: SenseEmbeddingModel | None
    backbone: Teacher | None = None
    with_head: PreTrainedModel | None = None


@dataclass(frozen=True)
class StudentStart:
    """What a student starts from and what it returns; the arguments of :func:`distill_student`.

    Attributes:
        num_hidden_layers: Number of layers of the teacher.
        layers: Or indices of the teacher's layers.
        backbone: Or another model.
        adopt_tokenizer: Whether that model gets the dictionary's tokenizer.
        head: Kind of the head that is copied from a fine-tuned teacher.
        assignment: What the student returns.
        residual: Share of the student's own vectors in that.
    """

    num_hidden_layers: int | None = None
    layers: Sequence[int] | None = None
    backbone: str | os.PathLike[str] | PreTrainedModel | Teacher | None = None
    adopt_tokenizer: bool = False
    head: str | None = None
    assignment: str | None = None
    residual: float | None = None

    @property
    def number(self) -> int:
        """Number of layers of the teacher, if neither their indices nor a backbone are given."""
        return 2 if self.num_hidden_layers is None else self.num_hidden_layers

    def check(self, options: Mapping[str, Any], *, has_senses: bool) -> None:
        """Raise a ValueError for arguments that exclude each other, or exclude options of the teacher."""
        is_without_layers = self.backbone is None and self.is_layer_free(None)
        if self.head == CAUSAL_LM:
            others = {"backbone": self.backbone, "assignment": self.assignment, "residual": self.residual}
            if given := [name for name, value in others.items() if value is not None]:
                raise ValueError(
                    f"{given[0]} with head={CAUSAL_LM!r}: a student that generates text has layers of its teacher "
                    "and returns no senses; leave it out"
                )
            if given := [name for name in ("instruction", "template", "pooling") if options.get(name)]:
                raise ValueError(
                    f"{given[0]} with head={CAUSAL_LM!r}: a student that generates text reads what its teacher "
                    "reads, and pools nothing; leave it out"
                )
        elif not has_senses and not is_without_layers:
            raise ValueError(
                "give senses, the teacher's dictionary: only students without layers (num_hidden_layers=0) and those "
                f"with head={CAUSAL_LM!r} do without"
            )
        elif not has_senses:
            output = {"assignment": self.assignment, "residual": self.residual}
            if given := [name for name, value in output.items() if value not in (None, "none")]:
                raise ValueError(
                    f"{given[0]}={output[given[0]]!r} without senses: the student returns its own vectors; leave it "
                    "out, or give senses"
                )
        given = [name for name in ("num_hidden_layers", "layers", "backbone") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: a student starts from one of these; give one of them")
        check_integer("num_hidden_layers", self.number, 0)
        if self.adopt_tokenizer and self.backbone is None:
            raise ValueError("adopt_tokenizer is for a backbone, but none is given: the teacher has its own tokenizer")
        if self.head is not None:
            check_choice("head", self.head, HEADS)
        if self.head == "sequence_classification" and is_without_layers:
            raise ValueError(
                "head='sequence_classification' without layers: the student pools texts in another way than its "
                "teacher; distil it without a head, and train a new one on it"
            )
        if self.layers is not None:
            check_kind("layers", self.layers, Iterable, "a list of layers")
            for layer in self.layers:
                check_integer("layers", layer)
        if self.head is not None and options.get("adapters"):
            raise ValueError(
                f"head={self.head!r} is copied from the teacher itself, not from adapters: merge them first"
            )

    def record(self) -> dict[str, Any]:
        """Return what the state tells of this."""
        record = {name: getattr(self, name) for name in ("head", "assignment", "residual")}
        record["num_hidden_layers"] = int(self.number)  # numpy's integers are no JSON
        layers = None if self.layers is None else [int(layer) for layer in self.layers]
        record |= {"layers": layers, "backbone": source_name(self.backbone)}
        return record | ({"adopt_tokenizer": True} if self.adopt_tokenizer else {})

    def is_layer_free(self, backbone: Teacher | None) -> bool:
        """Return whether the student has no layers.

        Args:
            backbone: The loaded backbone, if there is one.
        """
        if backbone is not None:
            return isinstance(backbone.model, LayerFreeModel)
        return self.layers is None and self.number == 0

    def load(
        self,
        teacher: Any,
        senses: str | os.PathLike[str] | SenseEmbeddingModel | None,
        options: Mapping[str, Any],
        device: torch.device,
    ) -> Models:
        """Load the models of a run.

        Args:
            teacher: The teacher, as in :func:`distill_student`.
            senses: Its dictionary.
            options: Arguments of :func:`load_teacher`.
            device: Device of the teacher.
        """
        with_head: PreTrainedModel | None = None
        trust, rest = bool(options.get("trust_remote_code")), dict(options)
        if self.head is not None:
            revision = options.get("revision")
            if self.head == CAUSAL_LM:
                loading = {name: rest.pop(name) for name in WITH_HEAD if rest.get(name) is not None}
                with_head = load_with_head(teacher, AutoModelForCausalLM, trust, revision=revision, **loading)
                move_model(with_head, device)
                teacher = with_head
            else:
                with_head = HEADS[self.head].load_classifier(teacher, trust, revision=revision)
        loaded = load_teacher(teacher, device=device, **rest)
        if isinstance(senses, (str, os.PathLike)):
            senses = load_senses(senses, trust_remote_code=trust)
        return Models(loaded, senses, self._load_backbone(senses, options), with_head)

    def _load_backbone(self, senses: SenseEmbeddingModel | None, options: Mapping[str, Any]) -> Teacher | None:
        """Load the backbone if there is one. It can have the tokenizer of the dictionary, and some of the options."""
        if self.backbone is None or senses is None:
            return None
        if isinstance(self.backbone, PreTrainedModel) and not self.backbone.name_or_path:
            return load_teacher(self.backbone, tokenizer=senses.tokenizer)
        is_named, names = isinstance(self.backbone, (str, os.PathLike)), ("bidirectional", "trust_remote_code")
        shared = {name: options[name] for name in names if is_named and name in options}
        loaded = load_teacher(self.backbone, **shared)
        return adopt_tokenizer(loaded, senses.tokenizer) if self.adopt_tokenizer else loaded

    def make(self, models: Models, vectors: StoredVectors | None = None) -> SKDStudentPreTrainedModel:
        """Make the student from the loaded models, or from the vectors of texts if there is no dictionary."""
        teacher, backbone = models.teacher, models.backbone
        layers = self.number if self.layers is None else self.layers
        if self.head == CAUSAL_LM:
            model = cast(PreTrainedModel, models.with_head)
            decoder = SKDStudentForCausalLM.from_teacher(model, layers, tokenizer=teacher.tokenizer)
            decoder.config.sense_config.base_model_revision = teacher.revision
            return decoder
        output = {"assignment": self.assignment, "residual": self.residual}
        senses = cast(SenseEmbeddingModel, models.senses)  # without it there are vectors
        if vectors is not None:
            student = SKDStudentModel.from_vectors(teacher, vectors, **output)
        elif backbone is not None:
            longest = min(teacher.max_seq_length, backbone.max_seq_length)
            like = encoding_settings(teacher) | {"max_seq_length": longest}
            if self.is_layer_free(backbone):
                like.pop("pooling")
            student = SKDStudentModel.from_backbone(backbone, senses, **like, **output)
            if student.sentence_head is not None and teacher.sentence_head is not None:
                student.sentence_head.load_state_dict(teacher.sentence_head.state_dict())
        else:
            student = SKDStudentModel.from_teacher(teacher, senses, layers, **output)
        if self.head is None:
            return student
        return cast(SKDStudentPreTrainedModel, HEADS[self.head].from_student(student, models.with_head))
