"""What distillation refuses before the teacher runs, with errors that name the way out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from pyarrow import compute
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint
from transformers.utils import logging

from ..data import Texts
from ..models.arguments import check_string
from ..models.loading import check_dictionary
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher
from .generation import is_generative
from .labels import has_labels, label_settings
from .training_args import SKDTrainingArguments

logger = logging.get_logger(__name__)
TOO_FAST = "go on from an earlier checkpoint with a lower learning rate, or without half precision"
NOT_FINITE = {
    "teacher": "the teacher yields NaN or infinite vectors: load it in another dtype",
    "student": f"the student yields NaN or infinite vectors: {TOO_FAST}",
    "loss": f"the loss is NaN or infinite: {TOO_FAST}",
}


def warn_of_unused(args: SKDTrainingArguments) -> None:
    """Warn of settings that were given and change nothing."""
    if args.unused:
        logger.warning(
            f"objective={args.objective!r} and this student make no use of {', '.join(args.unused)}: leave it out"
        )


def find_student(model: PreTrainedModel) -> SKDStudentModel:
    """Return the student that is a model, or that is inside a model with adapters.

    Raises:
        ValueError: There is no student, or it cannot be distilled.
    """
    has_student = isinstance(getattr(model, "student", None), SKDStudentModel)  # PEFT passes attributes on
    if has_student and not is_generative(model):
        raise ValueError("adapters over a task model: put them on its student, model.student, and distil that")
    student = next((module for module in model.modules() if isinstance(module, SKDStudentModel)), None)
    if student is None:
        raise ValueError(f"{type(model).__name__} is not a student: make one with SKDStudentModel.from_teacher")
    if student.config.learn_senses:
        raise ValueError(
            "distillation does not change the senses: load the student with learn_senses=False; to learn senses on a "
            "task, use Trainer"
        )
    return student


def check_arguments(text_column: str, senses: SenseEmbeddingModel | None, others: dict[str, Any]) -> None:
    """Check arguments of :class:`SKDTrainer` by their types.

    Args:
        text_column: Name of the text column.
        senses: The dictionary that guides a student that generates text.
        others: Arguments of `Trainer`. Those that are None and would have no effect are removed.

    Raises:
        ValueError: One of them is of another type, or has no effect.
    """
    if others.pop("model_init", None) is not None:
        raise ValueError("model_init has no part in distillation: make the student and pass it as model")
    for name in ("compute_metrics", "compute_loss_func", "data_collator", "preprocess_logits_for_metrics"):
        if others.pop(name, None) is not None:
            raise ValueError(
                f"{name} has no part in distillation: args.objective decides the loss, the metrics are fixed, and "
                "batches are made from the rows of encode_senses; leave it out"
            )
    check_string("text_column", text_column)
    if senses is not None:
        check_dictionary(senses)


def check_adapters(model: nn.Module, student: SKDStudentModel) -> None:
    """Warn if a student with adapters of PEFT is trained.

    Args:
        model: The student, with or without adapters.
        student: The student inside.

    Raises:
        ValueError: The student's projection is random, and the adapters freeze it.
    """
    if not hasattr(model, "peft_config"):
        return
    logger.warning(
        "a folder of adapters does not hold the student's config, which decides what the student returns after "
        "distillation: merge the adapters into the student before you save it, or save its config too"
    )
    projection = student.projection
    if projection is not None and not projection.weight.requires_grad and student.config.objective is None:
        raise ValueError(
            'the student has a projection, which is random and which the adapters freeze: add "projection" to '
            "modules_to_save of the config of PEFT"
        )


def check_dtypes(model: nn.Module) -> None:
    """Raise a ValueError if weights to be trained are in half precision, which loses small updates."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"weights to be trained are {parameter.dtype}: load the student with dtype=torch.float32; to compute "
                "in half precision, set args.bf16"
            )


def check_step(step: int, mask: Tensor | None = None, **tensors: Tensor | None) -> None:
    """Raise a ValueError if a number is NaN or infinite. `Trainer` would log such a loss as 0.

    Args:
        step: Number of steps that are done.
        mask: `[batch, positions]`, 0 for padding, which may be anything.
        tensors: The vectors of `teacher` or `student`, `[batch, positions, hidden]`, or the `loss`.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not (tensor if mask is None else tensor[mask.bool()]).isfinite().all():
            raise ValueError(f"step {step + 1}: {NOT_FINITE[name]}")


def check_checkpoint(resumed: str | bool | None, output_dir: str) -> None:
    """Raise a ValueError if there is no checkpoint to resume from, or it lacks the optimizer or its last file.

    Without the optimizer the weights would become others.

    Args:
        resumed: The folder of the checkpoint. True: the last one in `output_dir`. None or False: there is none.
        output_dir: Folder of the checkpoints.
    """
    path = resumed or None
    if path is True:
        path = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
        if not path:
            raise ValueError(
                f"there is no checkpoint in {output_dir} to resume from: train without resume_from_checkpoint, or "
                "with the output_dir of the earlier training"
            )
    if path and not (Path(path) / "trainer_state.json").is_file():
        raise ValueError(
            f"{path} is no checkpoint, or its writing was interrupted (it has no trainer_state.json): name "
            "another one, or delete it"
        )
    if path and not any(Path(path).glob("optimizer.*")) and not any(Path(path).glob("global_step*")):
        raise ValueError(
            f"{path} holds no optimizer (save_only_model=True), so that training would not go on as it was: train "
            "without resume_from_checkpoint"
        )


def check_batches(args: SKDTrainingArguments, dataset: Any) -> None:
    """Raise a ValueError if the texts to train on make no whole batch, and others are to be left out."""
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and hasattr(dataset, "__len__") and len(dataset) < size:
        raise ValueError(
            f"dataloader_drop_last=True leaves out the only batch, as {len(dataset)} rows are fewer than {size}: "
            "leave it out, or lower per_device_train_batch_size"
        )


def check_trained(steps: int) -> None:
    """Raise a ValueError if a training has ended without a step."""
    if not steps:
        raise ValueError("no step was done, as there are no texts to train on: pass more texts")


def check_counted(counted: Tensor) -> None:
    """Raise a ValueError if an evaluation has no position that is counted. Its scores would be perfect."""
    if not counted:
        raise ValueError(
            "the texts to evaluate on have no position that the objective counts: pass more or longer texts"
        )


def check_poolings(student: SKDStudentModel, teacher: Teacher) -> None:
    """Warn if student and teacher pool in other ways."""
    pooling = student.config.pooling
    if teacher.pooling != pooling:
        logger.warning(
            f"the student's pooling is {pooling}, the teacher's {teacher.pooling}: the student's is used for both; "
            "from_teacher and from_backbone take another one as pooling="
        )


def check_prompt(teacher: Teacher, prompt: dict[str, Any] | None) -> None:
    """Raise a ValueError if the teacher reads texts in another prompt than the student will.

    Args:
        teacher: The teacher.
        prompt: The prompt of the student's config.
    """
    if (read := teacher.prompt and asdict(teacher.prompt)) != prompt:
        raise ValueError(
            f"the teacher has prompt={read}, the student prompt={prompt}: load the teacher with the student's, or "
            "make the student from this teacher"
        )


def each(datasets: Any) -> list[Any]:
    """Return the datasets of a dictionary, or the only one that is given."""
    return [*datasets.values()] if isinstance(datasets, dict) else [datasets]


def check_datasets(
    args: SKDTrainingArguments, train_dataset: Texts | None, eval_dataset: Texts | dict[str, Texts] | None
) -> None:
    """Raise a ValueError if the texts to evaluate on are missing, or if a stream cannot be used."""
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(f"eval_strategy={IntervalStrategy(args.eval_strategy).value!r} needs an eval_dataset")
    if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
        raise ValueError(f"max_steps={args.max_steps}: a stream has no length, say how many steps to train")
    if args.world_size > 1 and any(isinstance(texts, IterableDataset) for texts in each(eval_dataset)):
        raise ValueError(
            "several processes cannot share a streamed eval_dataset: pass a dataset with a length, or use one process"
        )


def is_encoded(
    texts: Any,
    senses: SenseEmbeddingModel,
    args: SKDTrainingArguments,
    max_length: int,
    text_column: str,
    *,
    has_teacher: bool,
    prompt: dict[str, Any] | None,
) -> bool:
    """Return whether texts are a dataset from :func:`encode_senses`.

    Args:
        texts: Texts, or a dataset.
        senses: The student's dictionary.
        args: The settings of this run.
        max_length: Longest row in tokens.
        text_column: Name of the text column.
        has_teacher: Whether there is a teacher.
        prompt: The prompt of the student.

    Raises:
        ValueError: The dataset cannot be used in this run.
    """
    if not isinstance(texts, Dataset) or not has_labels(texts):
        return False
    if made_with := label_settings(texts):
        has_vectors = "vectors" in texts.features
        if args.keeps_vectors and not has_vectors:
            raise ValueError(
                "cache_vectors=True with a dataset that has no vectors: encode the texts with keep_vectors=True, or "
                "leave cache_vectors out"
            )
        if args.needs_vectors and not has_teacher and not has_vectors:
            raise ValueError(
                f"objective={args.objective!r} needs the teacher's vectors: pass teacher=, encode the texts with "
                "keep_vectors=True, or choose objective='sense'"
            )
        if "kl" in args.terms and not has_teacher:
            raise ValueError(f"objective={args.objective!r} reads the teacher's head: pass teacher=")
        check_encoded(texts, made_with, senses, args, max_length, prompt)
        return True
    if text_column not in texts.features:
        raise ValueError(
            "the dataset has labels, but does not tell how they were made, and has no column "
            f"{text_column!r}: pass texts, or what encode_senses returned (save_to_disk keeps how labels were made, "
            "other formats and joined datasets do not)"
        )
    return False


def check_encoded(
    dataset: Dataset,
    made_with: dict[str, Any],
    senses: SenseEmbeddingModel,
    args: SKDTrainingArguments,
    max_length: int,
    prompt: dict[str, Any] | None,
) -> None:
    """Raise a ValueError if a dataset was encoded otherwise than the texts of this run would be.

    Args:
        dataset: A dataset from :func:`encode_senses`.
        made_with: The settings of its labels.
        senses: The student's dictionary.
        args: The settings of this run.
        max_length: Longest row in tokens.
        prompt: The prompt of the student.
    """
    wanted: dict[str, Any] = {"tokenizer": senses.config.tokenizer_fingerprint, "prompt": prompt}
    if not args.needs_vectors:  # otherwise the labels are computed at every step
        wanted |= {"senses": senses.fingerprint(), "top_k": args.label_top_k, "only_tokens": False}
        if args.label_top_k > 1:
            wanted["temperature"] = args.label_temperature
    elif "vectors" in dataset.features:
        wanted["senses"] = senses.fingerprint()  # of the same teacher, and the same layer
    for name, value in wanted.items():
        found = made_with.get(name)
        if found != value:
            raise ValueError(
                f"the dataset was encoded with {name}={found}, here it is {value}: encode the texts again"
            )

    # Rows are read in chunks: the dataset may be larger than the memory.
    longest = 0
    for part in dataset.with_format("arrow").iter(10_000):
        longest = max(longest, compute.max(compute.list_value_length(part["input_ids"])).as_py())
        for column in part["probabilities"].chunks if "probabilities" in part.column_names else ():
            probabilities = column.flatten().to_numpy(zero_copy_only=False)
            if not (np.isfinite(probabilities) & (probabilities >= 0)).all():
                raise ValueError("the dataset has probabilities that are negative or not finite: encode it again")
    if longest > max_length:
        raise ValueError(
            f"the dataset has rows of {longest} tokens, above the {max_length} that student, teacher and "
            f"args.max_length allow: encode the texts again with max_length={max_length}"
        )


class SameSenses(TrainerCallback):
    """Checks that a checkpoint has not changed the dictionary when training begins.

    Args:
        senses: The dictionary before the checkpoint is loaded.
    """

    def __init__(self, senses: SenseEmbeddingModel):
        self.senses, self.fingerprint = senses, senses.fingerprint()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError if the dictionary is another one than before."""
        if self.senses.fingerprint() != self.fingerprint:
            raise ValueError(
                "the checkpoint is of a student with another dictionary: make the student with that dictionary, or "
                "train without resume_from_checkpoint"
            )
