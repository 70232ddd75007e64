"""The objective of sense-based knowledge distillation, as functions of tensors.

Every loss is a sum over positions: the trainer divides it by the number of counted positions in all accumulated
batches and processes. Only students without layers have a loss that is a mean, see :func:`vector_loss`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.encoding import pool
from ..models.modeling_sense_embedding import SenseEmbeddingModel

IGNORED = -100  # the label of a position that is not counted; Trainer counts the others


class SenseLabels(NamedTuple):
    """The senses that the teacher picks at each position.

    Attributes:
        sense_ids: `[batch, positions, k]`, indices among the token's own senses, the most probable first; -1 where
            there is none. A position whose first index is -1 is not counted.
        probabilities: `[batch, positions, k]`, of these senses, float32. None: each position has one sense, of
            probability 1.
    """

    sense_ids: Tensor
    probabilities: Tensor | None = None


class Counts(NamedTuple):
    """Sums over the positions of a batch, from which the logged means are computed.

    Attributes:
        loss: The loss.
        counted: Number of positions in the loss.
        owned: Number of positions that belong to this row and not to an overlapping window.
        covered: Number of owned positions whose token has senses.
        known: Number of positions at which student and teacher both pick a sense.
        right: Number of known positions at which they pick the same sense.
        error: Squared distances from the student's vectors to the senses it picks, in units of the dictionary's
            distortion.
    """

    loss: Tensor
    counted: Tensor
    owned: Tensor
    covered: Tensor
    known: Tensor
    right: Tensor
    error: Tensor


def means(sums: Tensor) -> dict[str, float]:
    """Compute what is logged from the sums of :class:`Counts`.

    Args:
        sums: `[7]`, sums over any number of batches.

    Returns:
        `loss` and `coverage`; also `sense_accuracy` and `quantization_error` if any position is known.
    """
    loss, counted, owned, covered, known, right, error = sums.tolist()
    logged = {"loss": loss / max(counted, 1), "coverage": covered / max(owned, 1)}
    return logged | {"sense_accuracy": right / known, "quantization_error": error / known} if known else logged


def comparable(vectors: Tensor, similarity: str) -> Tensor:
    """Return vectors whose squared distances can be compared with the dictionary's distortion.

    Args:
        vectors: `[..., hidden]`.
        similarity: Of the dictionary. For `cosine` the vectors are normalized to unit length.

    Returns:
        `[..., hidden]`, float32.
    """
    return F.normalize(vectors.float(), dim=-1) if similarity == "cosine" else vectors.float()


def hidden_mse(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """Sum the squared distances between the hidden states of student and teacher, the usual baseline.

    Args:
        student: `[batch, positions, hidden]`.
        teacher: `[batch, positions, hidden]`.
        counted: `[batch, positions]`, True where a position is counted.
    """
    return ((student.float() - teacher.float()).square().sum(-1) * counted.float()).sum()


def sentence_mse(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """Sum the squared distances between the sentence vectors of student and teacher.

    A text's distance is multiplied by its number of counted positions. So this sum and that of :func:`hidden_mse` can
    be divided by the same number. The loss is that of Reimers and Gurevych, "Making Monolingual Sentence Embeddings
    Multilingual", EMNLP 2020.

    Args:
        student: `[batch, hidden]`.
        teacher: `[batch, hidden]`.
        counted: `[batch, positions]`, True where a position is counted.
    """
    return ((student.float() - teacher.float()).square().sum(-1) * counted.float().sum(1)).sum()


def sense_labels(
    inputs: Mapping[str, Tensor],
    senses: SenseEmbeddingModel,
    teacher: Tensor | None = None,
    top_k: int = 1,
    temperature: float = 1.0,
) -> SenseLabels:
    """Compute the labels from the teacher's vectors, or read them from the batch.

    Args:
        inputs: A batch with `input_ids`, `attention_mask` and `labels`, `[batch, positions]`; for soft labels
            without `teacher` also with `sense_ids` and `probabilities`, `[batch, positions, k]`. Positions whose label
            is -100 are not counted.
        senses: The dictionary.
        teacher: `[batch, positions, hidden]`, the teacher's vectors. None: the batch holds the labels.
        top_k: Number of senses in a label that is computed.
        temperature: Temperature of the posterior over senses; in units of the dictionary's distortion.
    """
    counted = inputs["labels"] != IGNORED
    if teacher is not None:
        tokens, mask = senses.config.key_tokens(inputs["input_ids"], inputs["attention_mask"])
        return SenseLabels(*senses.posterior(tokens, teacher, counted & (mask != 0), temperature, top_k))
    sense_ids = inputs.get("sense_ids", inputs["labels"][..., None]).masked_fill(~counted[..., None], -1)
    return SenseLabels(sense_ids, inputs["probabilities"].float() if "probabilities" in inputs else None)


def skd_loss(
    student: Tensor,
    inputs: Mapping[str, Tensor],
    senses: SenseEmbeddingModel,
    weights: Mapping[str, float],
    *,
    labels: SenseLabels | None = None,
    temperature: float = 1.0,
    teacher: Tensor | None = None,
    pooling: str = "mean",
    has_prompt: bool = False,
) -> tuple[Tensor, Counts]:
    """Add up the losses of distillation.

    Squared distances are divided by the dictionary's distortion, so that the same weights suit any teacher.

    Args:
        student: `[batch, positions, hidden]`, the student's own vectors, before senses are assigned.
        inputs: A batch with `input_ids`, `attention_mask`, `labels` (-100: not counted) and `owned` (see
            :class:`Counts`), each of shape `[batch, positions]`.
        senses: The dictionary.
        weights: Weight of each loss by its name: `sense`, `mse` or `sentence`.
        labels: The senses that the teacher picks. Needed for `sense`. With other losses they are optional: they are
            then only compared with the student's choices, for the counts.
        temperature: Divides the scores of the senses; in units of the dictionary's distortion.
        teacher: `[batch, positions, hidden]`, the teacher's vectors. Needed for `mse` and `sentence`.
        pooling: How `sentence` makes one vector of a text.
        has_prompt: Whether the texts are read inside a prompt. The prompt is not pooled: its positions are not owned.

    Returns:
        The summed loss (float32 scalar), and the sums for the log.

    Raises:
        ValueError: Labels or the teacher's vectors are missing.
    """
    if "sense" in weights and labels is None:
        raise ValueError("the sense loss compares senses: pass the teacher's with labels=")
    if weights.keys() - {"sense"} and teacher is None:
        raise ValueError(
            f"{' and '.join(sorted(weights.keys() - {'sense'}))} compare vectors: pass the teacher's with teacher="
        )
    mask, owned = inputs["attention_mask"], inputs["owned"]
    tokens, key_mask = senses.config.key_tokens(inputs["input_ids"], mask)
    counted = inputs["labels"] != IGNORED
    unit, similarity = senses.score_temperature(1.0), senses.config.similarity
    loss = student.new_zeros((), dtype=torch.float32)
    known = right = error = torch.zeros_like(loss)

    # Senses: the loss, and how well the student's choices fit. Labels without a weight are wanted for the latter only.
    if labels is not None:
        cross_entropy, choices = senses.cross_entropy(
            tokens, student, labels.sense_ids, temperature, labels.probabilities
        )
        if "sense" in weights:
            loss = loss + weights["sense"] * cross_entropy
        is_known = choices >= 0
        known, right = is_known.sum(), (choices == labels.sense_ids[..., 0])[is_known].sum()
        with torch.no_grad():
            picked = senses.look_up(tokens[is_known], choices[is_known])
            distances = comparable(student[is_known], similarity) - comparable(picked, similarity)
            error = distances.square().sum() / unit

    # Vectors of positions, and of whole texts.
    if teacher is not None and "mse" in weights:
        own, theirs = (comparable(vectors, similarity) for vectors in (student, teacher))
        loss = loss + weights["mse"] / unit * hidden_mse(own, theirs, counted)
    if teacher is not None and "sentence" in weights:
        # An empty text inside a prompt owns nothing: all its positions are pooled.
        pooled = torch.where(owned.any(1, keepdim=True), owned, mask.bool()) if has_prompt else None
        own, theirs = (comparable(pool(vectors, mask, pooling, pooled), similarity) for vectors in (student, teacher))
        loss = loss + weights["sentence"] / unit * sentence_mse(own, theirs, counted)

    # Coverage.
    has_senses = senses.offsets[tokens + 1] > senses.offsets[tokens]
    covered = (owned & has_senses & (key_mask != 0)).sum()
    return loss, Counts(loss.detach(), counted.sum(), owned.sum(), covered, known, right, error)


class Errors(NamedTuple):
    """Sums over the tokens and texts of a batch, for students without layers.

    Attributes:
        token_error: Squared distances between the vectors of tokens, divided by the teacher's variance.
        tokens: Number of these tokens.
        sentence_error: Squared distances between the vectors of texts, divided by the teacher's variance.
        texts: Number of these texts.
    """

    token_error: Tensor
    tokens: Tensor
    sentence_error: Tensor
    texts: Tensor


def vector_errors(
    tokens: Tensor,
    teacher_tokens: Tensor,
    texts: Tensor,
    teacher_texts: Tensor,
    token_variance: float,
    text_variance: float,
) -> Errors:
    """Compare the vectors of a student without layers with its teacher's.

    Args:
        tokens: `[tokens, hidden]`, the student's vectors of tokens.
        teacher_tokens: `[tokens, hidden]`, of any dtype.
        texts: `[texts, hidden]`, the student's vectors of texts.
        teacher_texts: `[texts, hidden]`.
        token_variance: Mean squared distance of the teacher's vectors of tokens from their mean.
        text_variance: The same of its vectors of texts.
    """
    return Errors(
        (tokens.float() - teacher_tokens.float()).square().sum() / token_variance,
        tokens.new_tensor(len(tokens)),
        (texts.float() - teacher_texts.float()).square().sum() / text_variance,
        texts.new_tensor(len(texts)),
    )


def vector_loss(errors: Errors, weights: Mapping[str, float]) -> Tensor:
    """Add up the mean errors of tokens and texts.

    An error of 1 is that of a student that always returns the mean vector.

    Args:
        errors: Sums over any number of tokens and texts.
        weights: Weight of each mean by its name: `mse` for tokens, `sentence` for texts.

    Returns:
        A float32 scalar.
    """
    token_error = errors.token_error / errors.tokens.clamp_min(1)
    sentence_error = errors.sentence_error / errors.texts.clamp_min(1)
    return weights.get("mse", 0.0) * token_error + weights.get("sentence", 0.0) * sentence_error


def mean_errors(sums: Tensor, weights: Mapping[str, float]) -> dict[str, float]:
    """Compute what is logged from the sums of :class:`Errors`.

    Args:
        sums: `[4]`, sums over any number of batches.
        weights: As in :func:`vector_loss`.

    Returns:
        `loss`, `token_error` and `sentence_error`.
    """
    errors = Errors(*sums.double())
    each = {"token_error": {"mse": 1.0}, "sentence_error": {"sentence": 1.0}}
    return {name: float(vector_loss(errors, chosen)) for name, chosen in ({"loss": weights} | each).items()}
