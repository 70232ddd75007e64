"""How students without layers are trained: on cached vectors of the teacher, without padding.

:class:`SKDTrainer` does the rest, as for other students.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..data import Texts
from ..models.layer_free_transfer import check_vectors, surrounding_ids
from ..models.matching import has_other_weights
from ..models.modeling_layer_free import LayerFreeModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher
from ..models.tokenization import check_max_length
from .checks import check_prompt
from .labels import label_settings
from .losses import Errors, vector_errors, vector_loss
from .training_args import SKDTrainingArguments
from .vectors import TeacherVectors, Variances, encode_vectors

logger = logging.get_logger(__name__)

# Share of the tokens of a batch that the loss is computed for. Neighbouring tokens tell much the same.
TOKEN_SHARE = 0.5
# The most epochs by default, with few texts. More make the student's vectors of new texts worse.
MOST_EPOCHS = 10.0


def is_layer_free(student: SKDStudentModel) -> bool:
    """Return whether a student has a backbone without layers."""
    return isinstance(student.backbone, LayerFreeModel)


def check_layer_free(student: SKDStudentModel, args: SKDTrainingArguments) -> None:
    """Raise a ValueError for students and settings that do not work without layers.

    Args:
        student: The student.
        args: The settings after :meth:`SKDTrainingArguments.for_layer_free`.
    """
    check_layer_free_args(args)
    if (table_dtype := student.config.text_config.table_dtype) != "float32":
        raise ValueError(
            f"tables in {table_dtype} are constant: train the student before they are converted, or make them floats "
            'again with student.backbone.convert_tables("float32")'
        )
    if student.projection is not None:
        raise ValueError(
            f"the backbone has {student.config.text_config.hidden_size} dimensions, the teacher "
            f"{student.config.hidden_size}: a student without layers must be as wide as its teacher"
        )


def check_layer_free_args(args: SKDTrainingArguments) -> None:
    """Raise a ValueError for settings that do not work with students without layers.

    Args:
        args: The settings after :meth:`SKDTrainingArguments.for_layer_free`.
    """
    if "sense" in args.terms:
        raise ValueError(
            f"objective={args.objective!r}: a student without layers does not learn to pick senses: choose mse, "
            "sentence or mse+sentence, which is the default"
        )
    if args.world_size > 1:
        raise ValueError(
            f"{args.world_size} processes: a student without layers is trained by one process, as a step is short; "
            "several processes can share the teacher's work with encode_vectors, before the training"
        )
    if args.weight_decay:
        raise ValueError(f"weight_decay={args.weight_decay}: there is none for a student without layers, leave it out")
    if args.neftune_noise_alpha:
        raise ValueError(
            f"neftune_noise_alpha={args.neftune_noise_alpha}: the tables of a student without layers get no noise, "
            "leave it out"
        )
    optimizer = OptimizerNames(args.optim).value
    if not optimizer.startswith("adamw_torch"):
        raise ValueError(
            f"optim={optimizer!r}: a student without layers has its own optimizer, leave it out; to use another one, "
            "pass optimizers= to the trainer"
        )


def encode_training_vectors(
    teacher: Teacher, texts: Texts, args: SKDTrainingArguments, text_column: str
) -> TeacherVectors:
    """Compute the teacher's vectors of training texts, for a student that starts with them and has no dictionary.

    Args:
        teacher: The teacher.
        texts: The texts.
        args: The settings after :meth:`SKDTrainingArguments.for_layer_free`.
        text_column: Name of the text column.
    """
    check_layer_free_args(args)
    refuse_stream(texts)
    return encode_vectors(
        teacher,
        texts,
        os.path.join(str(args.output_dir), "_encoded", "train"),
        special_token_ids=surrounding_ids(teacher),
        overwrite=True,
        text_column=text_column,
        max_length=check_max_length(args.max_length, teacher.max_window),
        batch_size=args.per_device_eval_batch_size,
    )


def refuse_stream(texts: Texts) -> None:
    """Raise a ValueError for texts that are a stream."""
    if isinstance(texts, IterableDataset):
        raise ValueError(
            "a student without layers reads its texts more than once, which a stream does not allow: pass a dataset "
            "with a length"
        )


def encode_for(
    student: SKDStudentModel, teacher: Teacher | None, texts: Texts | TeacherVectors, **settings: Any
) -> TeacherVectors:
    """Compute the teacher's vectors of texts, or check those that are there.

    Args:
        student: The student.
        teacher: The teacher. None: the vectors must be there.
        texts: Texts, or what :func:`encode_vectors` has returned.
        settings: Arguments of :func:`encode_vectors`.

    Raises:
        ValueError: The teacher is missing, the texts are a stream, or the vectors were not made for this student.
    """
    backbone = cast(LayerFreeModel, student.backbone)
    senses = student.senses.config
    if isinstance(texts, TeacherVectors):
        wanted: dict[str, Any] = {
            "layer": senses.layer,
            "tokenizer": senses.tokenizer_fingerprint,
            "prompt": student.config.prompt,
        }
        if teacher is not None:
            wanted |= {"prompt": teacher.prompt and asdict(teacher.prompt), "pooling": teacher.pooling}
        check_vectors(texts.settings, **wanted)
        if has_other_weights(senses, texts.settings["teacher_fingerprint"]):
            logger.warning_once(
                f"the teacher of the vectors, {texts.settings['teacher']}, has other weights than the one that the "
                f"student was made from, {senses.base_model_name_or_path}: the student learns the vectors"
            )
        return texts
    refuse_stream(texts)
    if isinstance(texts, Dataset) and label_settings(texts):
        raise ValueError(
            "a dataset from encode_senses holds no vectors, from which a student without layers learns: pass the "
            "texts, or what encode_vectors returned"
        )
    if teacher is None:
        raise ValueError("texts need a teacher that computes their vectors: pass teacher=")
    check_prompt(teacher, student.config.prompt)
    ids = backbone.config.special_token_ids
    return encode_vectors(teacher, texts, layer=senses.layer, special_token_ids=ids, overwrite=True, **settings)


def default_epochs(args: SKDTrainingArguments, rows: int) -> SKDTrainingArguments:
    """Return settings with the default number of epochs, which depends on the number of texts.

    Args:
        args: The settings.
        rows: Number of rows of the training dataset.
    """
    args = copy.copy(args)
    if args.least_steps:
        epochs = args.least_steps * args.train_batch_size * args.gradient_accumulation_steps / rows
        args.num_train_epochs = min(max(epochs, args.num_train_epochs), MOST_EPOCHS)
    return args


def collate_ragged(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Make a batch of rows of :class:`TeacherVectors`, without padding.

    Returns:
        `lengths`, `[rows]`; `input_ids`, `[tokens]`, int64; `vectors`, `[tokens, hidden]`, float16; `text_vectors`,
        `[rows, hidden]`, float32.
    """
    return {
        "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
        "input_ids": torch.cat([row["input_ids"] for row in rows]).long(),
        "vectors": torch.cat([row["vectors"] for row in rows]),
        "text_vectors": torch.stack([row["text_vector"] for row in rows]),
    }


def layer_free_loss(
    backbone: LayerFreeModel,
    inputs: Mapping[str, Tensor],
    variances: Variances,
    weights: Mapping[str, float],
    seed: tuple[int, ...] | None = None,
) -> tuple[Tensor, Errors]:
    """Compute the loss of a batch.

    Args:
        backbone: The student's backbone.
        inputs: A batch of :func:`collate_ragged`.
        variances: Of the teacher's vectors.
        weights: Weight of the errors of tokens (`mse`) and of texts (`sentence`).
        seed: In training: decides which half of the tokens is compared. None: all are compared.

    Returns:
        The mean loss, a float32 scalar, and the sums for the log.
    """
    input_ids = inputs["input_ids"]
    positions = torch.arange(len(input_ids))
    if seed is not None:
        # Drawn apart from other random numbers, so that evaluations do not change the training.
        order = np.random.default_rng([*seed, len(input_ids)]).permutation(len(input_ids))
        positions = torch.from_numpy(order[: max(1, int(TOKEN_SHARE * len(input_ids)))])
    positions = positions.to(input_ids.device)
    tokens, texts = backbone.encode_ragged(input_ids, inputs["lengths"], positions)
    errors = vector_errors(
        cast(Tensor, tokens), inputs["vectors"][positions], texts, inputs["text_vectors"], *variances
    )
    return vector_loss(errors, weights), errors
