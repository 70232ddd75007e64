"""Which sense a student picks for each token of a text."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from .arguments import check_kind
from .prompts import check_texts
from .tokenization import check_offsets, tokenize

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
    check_texts([text])
    check_kind("text", text, str, "one string")
    check_offsets(student.tokenizer)
    wanted = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
    found = tokenize(student.tokenizer, text, **wanted)
    ids, limit = found["input_ids"], student.config.max_seq_length
    if len(ids) > limit:
        raise ValueError(f"the text has {len(ids):,} tokens, the student reads {limit:,}: pass it in parts")
    if not student.config.sense_config.num_senses:
        raise ValueError("the student has no senses: it was made with assignment='none' and without layers")
    input_ids = torch.tensor([ids], device=student.device)
    was_training = student.training
    with torch.inference_mode():
        output = student.eval()(input_ids, torch.ones_like(input_ids), assignment="hard")
    student.train(was_training)
    # With the key `next` the sense of a token is at the position before it.
    shift = 0 if student.config.sense_config.key == "input" else 1
    picked = output.sense_ids[0, : len(ids) - shift].cpu()

    # The share of each sense in the usage of its token.
    usage, offsets = student.senses.usage.cpu(), student.senses.offsets.cpu()
    tokens, before = torch.tensor(ids[shift:]), F.pad(usage.cumsum(0), (1, 0))
    totals = before[offsets[tokens + 1]] - before[offsets[tokens]]
    rows = (offsets[tokens] + picked).clamp(0, len(usage) - 1)
    shares = torch.where(picked >= 0, usage[rows] / totals.clamp(min=1), 0.0)
    columns = (found["special_tokens_mask"][shift:], found["offset_mapping"][shift:], picked.tolist(), shares.tolist())
    return [
        TokenSense(text[begin:end], sense_id, share)
        for is_special, (begin, end), sense_id, share in zip(*columns)
        if not is_special
    ]
