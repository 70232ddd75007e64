"""What dictionaries and students return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class SenseEmbeddingOutput(ModelOutput):
    """What a :class:`SenseEmbeddingModel` returns.

    Attributes:
        hidden_states: `[batch, positions, hidden]`, the vectors after the assignment of senses.
        sense_ids: `[batch, positions]`, int64: the index of the best sense among the senses of the token; -1 for a
            token that has none and for padding.
    """

    hidden_states: Tensor | None = None
    sense_ids: Tensor | None = None


@dataclass
class SKDStudentOutput(ModelOutput):
    """What a student returns.

    Attributes:
        last_hidden_state: `[batch, positions, teacher_hidden]`, the vectors after the assignment of senses.
        student_hidden_state: `[batch, positions, teacher_hidden]`, the student's own vectors before it.
        sense_ids: `[batch, positions]`, int64: the index of the best sense among the senses of the token; -1 for a
            token that has none and for padding. None with assignment `none`.
        hidden_states: Hidden states of every layer of the backbone, with `output_hidden_states=True`.
        attentions: Attention weights of every layer of the backbone, with `output_attentions=True`.
        pooler_output: `[batch, teacher_hidden]`, the vectors of texts, of a student without layers only.
    """

    last_hidden_state: Tensor | None = None
    student_hidden_state: Tensor | None = None
    sense_ids: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    pooler_output: Tensor | None = None
