"""Which sense a student picks for each token of a text."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from .tokenization import check_offsets

if TYPE_CHECKING:
    from .modeling_skd_student import SKDStudentModel


class TokenSense(NamedTuple):
    """The sense of a token in a text.

    Attributes:
        text: The token as it stands in the text.
        sense_id: Index of the sense among the senses of the token; -1 if it has none.
        share: Which share of the token's occurrences in the corpus has this sense.
    """

    text: str
    sense_id: int
    share: float


def senses_in(student: "SKDStudentModel", text: str) -> list[TokenSense]:
    """Return the sense of each token of a text, see :meth:`SKDStudentModel.senses_in`."""
    check_offsets(student.tokenizer)
    found = student.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids, limit = found["input_ids"], student.config.max_seq_length
    if len(ids) > limit:
        raise ValueError(f"the text has {len(ids):,} tokens, the student reads {limit:,}: pass it in parts")
    if not student.config.sense_config.num_senses:
        raise ValueError("the student has no senses: it was made with assignment='none' and without layers")
    input_ids = torch.tensor([ids], device=student.device)
    was_training = student.training
    with torch.inference_mode():
        sense_ids = student.eval()(input_ids, torch.ones_like(input_ids), assignment="hard").sense_ids[0].tolist()
    student.train(was_training)
    # With the key `next` the sense of a token is at the position before it.
    shift = 0 if student.config.sense_config.key == "input" else 1
    senses = []
    for place in range(shift, len(ids)):
        if not found["special_tokens_mask"][place]:
            begin, end = found["offset_mapping"][place]
            sense_id, usage = sense_ids[place - shift], student.senses.usage[student.senses.rows_of(ids[place])]
            share = float(usage[sense_id] / usage.sum().clamp(min=1)) if sense_id >= 0 else 0.0
            senses.append(TokenSense(text[begin:end], sense_id, share))
    return senses
