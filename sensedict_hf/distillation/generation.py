"""Distilling students that generate text: their batches, their losses and what is logged.

The state at a position predicts the next token. So the last position of a text is not counted. As in `losses.py` every
loss is a sum over positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.arguments import check_kind
from ..models.configuration_sense_embedding import next_tokens
from ..models.encoding import pad_batch
from ..models.loading import load_tokenizer
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_causal_lm import SKDStudentForCausalLM
from ..models.tokenization import count_embeddings
from .batches import pad_vectors
from .losses import IGNORED
from .training_args import SKDTrainingArguments

LANGUAGE_TERMS = ("lm", "kl")


def is_generative(model: nn.Module) -> bool:
    """Return whether a model is a student that generates text, or has one inside, as a model with adapters does."""
    check_kind("model", model, nn.Module, "a student")
    return any(isinstance(module, SKDStudentForCausalLM) for module in model.modules())


def check_generative(model: PreTrainedModel, senses: SenseEmbeddingModel | None, args: SKDTrainingArguments) -> None:
    """Raise a ValueError if objective and dictionary do not fit the student, or if it could not be saved.

    Args:
        model: The student.
        senses: The dictionary that guides its training, if there is one.
        args: The settings, with the defaults for this student.
    """
    if not is_generative(model):
        if senses is not None:
            raise ValueError("senses are for students that generate text: this student has a dictionary of its own")
        if set(args.terms) & set(LANGUAGE_TERMS):
            raise ValueError(
                f"objective={args.objective!r}: lm and kl train a language-model head, which {type(model).__name__} "
                "does not have; make the student with SKDStudentForCausalLM.from_teacher"
            )
        return
    if "sentence" in args.terms or not set(args.terms) & set(LANGUAGE_TERMS):
        raise ValueError(
            f"objective={args.objective!r} does not suit a student that generates text: give lm, kl or both, and add "
            "mse or sense"
        )
    if "sense" in args.terms and senses is None:
        raise ValueError(f"objective={args.objective!r} needs the teacher's dictionary: pass senses=, or leave it out")
    if senses is not None and senses.config.layer != -1:
        raise ValueError(
            f"the senses are of layer {senses.config.layer}, the head reads the last: build a dictionary with layer=-1"
        )
    # Trainer gives the generation config the tokenizer's special tokens. A config that has been changed is saved only
    # if it is valid, so a checkpoint would fail.
    try:
        cast(Any, model).generation_config.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            f"the student could not be saved: correct its generation_config, which is not valid: {error}"
        ) from error


def teacher_tokenizer(teacher: Any, student: SKDStudentForCausalLM) -> PreTrainedTokenizerBase | None:
    """Return the student's tokenizer if a loaded teacher has none of its own, or a smaller one; else None.

    Args:
        teacher: The teacher. Of a name or a folder the own tokenizer is loaded.
        student: The student.
    """
    if not isinstance(teacher, PreTrainedModel):
        return None
    name = teacher.name_or_path or ""
    try:
        own = load_tokenizer(name, "", None, False).get_vocab()
    except (OSError, ValueError):
        if name and not Path(name).is_dir():
            raise  # the Hub cannot be reached: its tokenizer may be another one
        return student.tokenizer
    used = student.tokenizer.get_vocab()  # tokens may have been added in memory
    is_larger = len(own) < len(used) <= count_embeddings(teacher) and own.items() <= used.items()
    return student.tokenizer if is_larger else None


@dataclass
class GenerationCollator:
    """Makes batches for students that generate text, from the rows of :func:`encode_senses`.

    Attributes:
        pad_token_id: Token id of padding.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad rows to a batch.

        Returns:
            `input_ids`, `attention_mask` and `labels` (the next token; -100: there is none, or another row counts the
            position), all `[rows, longest]`. If the rows have the teacher's states also `vectors`, `[rows, longest,
            hidden]`, float32.
        """
        input_ids, mask = pad_batch([row["input_ids"] for row in rows], self.pad_token_id)
        owned = pad_sequence([torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows], True, IGNORED)
        following, is_known = next_tokens(input_ids, mask)
        labels = following.masked_fill(~is_known | (owned == IGNORED), IGNORED)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, **pad_vectors(rows)}


class GenerationCounts(NamedTuple):
    """Sums over the positions of a batch, from which the logged means are computed.

    Attributes:
        loss: The loss.
        counted: Number of positions in the loss.
        cross_entropy: Cross-entropy of the next tokens, in nats.
        right_tokens: Number of positions at which the next token has the largest logit.
        known: Number of positions at which student and teacher both pick a sense.
        right: Number of known positions at which they pick the same sense.
    """

    loss: Tensor
    counted: Tensor
    cross_entropy: Tensor
    right_tokens: Tensor
    known: Tensor
    right: Tensor


def generation_means(sums: Tensor) -> dict[str, float]:
    """Compute what is logged from the sums of :class:`GenerationCounts`.

    Args:
        sums: `[6]`, sums over any number of batches.

    Returns:
        `loss`, `perplexity` and `token_accuracy`; also `sense_accuracy` if any position is known.
    """
    loss, counted, cross_entropy, right_tokens, known, right = sums.double()
    total = counted.clamp_min(1)
    logged = {
        "loss": loss / total,
        "perplexity": (cross_entropy / total).exp(),
        "token_accuracy": right_tokens / total,
    }
    if known:
        logged["sense_accuracy"] = right / known
    return {name: float(value) for name, value in logged.items()}


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum the Kullback-Leibler divergences from the teacher's distributions to the student's.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, with temperature 1.

    Args:
        student: `[n, vocab]`, logits.
        teacher: `[n, vocab]`, logits.
    """
    own, theirs = (F.log_softmax(logits.float(), dim=-1) for logits in (student, teacher))
    return F.kl_div(own, theirs, reduction="sum", log_target=True)


def state_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum the squared distances between states, each in units of the squared length of the teacher's state.

    Args:
        student: `[n, hidden]`.
        teacher: `[n, hidden]`.
    """
    theirs = teacher.float()
    lengths = theirs.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((student.float() - theirs).square().sum(-1) / lengths).sum()


def generation_loss(
    logits: Tensor,
    states: Tensor,
    inputs: Mapping[str, Tensor],
    args: SKDTrainingArguments,
    *,
    teacher: Tensor | None = None,
    head: nn.Module | None = None,
    senses: SenseEmbeddingModel | None = None,
) -> tuple[Tensor, GenerationCounts]:
    """Add up the losses of a student that generates text.

    Args:
        logits: `[batch, positions, vocab]`, the student's.
        states: `[batch, positions, hidden]`, the states that its head reads.
        inputs: A batch of :class:`GenerationCollator`.
        args: The settings.
        teacher: `[batch, positions, hidden]`, the states of the teacher's last layer. Not needed for `lm`.
        head: The teacher's head. Needed for `kl`.
        senses: The dictionary. Needed for `sense`; without that loss it serves the counts.

    Returns:
        The summed loss (float32 scalar), and the sums for the log.

    Raises:
        ValueError: The teacher's states, its head or the dictionary are missing.
    """
    weights, counted = args.loss_weights, inputs["labels"] != IGNORED
    missing = {"kl": head, "mse": teacher, "sense": senses}
    for name in weights.keys() & missing.keys():
        if missing[name] is None or teacher is None:
            raise ValueError(f"the loss {name} compares with the teacher: pass teacher=, and head= or senses=")
    targets, logits, states = inputs["labels"][counted], logits[counted].float(), states[counted]

    # The next token: the one in the text, and the teacher's distribution.
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    loss = weights.get("lm", 0.0) * cross_entropy
    if teacher is not None:
        teacher = teacher[counted]
    if "kl" in weights and teacher is not None and head is not None:
        with torch.no_grad():
            theirs = head(teacher.to(next(head.parameters()).dtype))
        loss = loss + weights["kl"] * kl_divergence(logits, theirs)
    if "mse" in weights and teacher is not None:
        loss = loss + weights["mse"] * state_mse(states, teacher)

    # The student's state must pick the sense that the teacher's state picks.
    known = right = torch.zeros_like(cross_entropy)
    if senses is not None and teacher is not None:
        tokens, mask = senses.config.key_tokens(inputs["input_ids"], inputs["attention_mask"])
        tokens, is_keyed = tokens[counted][None], mask[counted][None] != 0  # type: ignore[index]  # a mask was given
        labels, probabilities = senses.posterior(
            tokens, teacher[None], is_keyed, args.label_temperature, args.label_top_k
        )
        term, choices = senses.cross_entropy(tokens, states[None], labels, args.temperature, probabilities)
        if "sense" in weights:
            loss = loss + weights["sense"] * term
        is_known = choices >= 0
        known, right = is_known.sum(), (choices == labels[..., 0])[is_known].sum()
    right_tokens = (logits.argmax(-1) == targets).sum()
    return loss, GenerationCounts(loss.detach(), counted.sum(), cross_entropy, right_tokens, known, right)
