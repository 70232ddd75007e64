"""What distilling a student would read, run and write, found without training."""

import math
import os
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from datasets import IterableDataset
from transformers import PreTrainedModel

from ..data import Texts, iterate_texts
from ..models.encoding import pad_batch
from ..models.modeling_layer_free import LayerFreeModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher
from ..models.tokenization import check_max_length, special_token_counts, tokenize
from ..models.windows import cut_windows, window_width
from .layer_free import check_layer_free_args, default_epochs, refuse_stream
from .start import StudentStart
from .training_args import SKDTrainingArguments
from .vectors import encode_vectors

# How many texts are looked at for the length of a text, and how many batches are timed after the first.
SAMPLE, TIMED_BATCHES = 1000, 3
# Texts that a student without a dictionary is made from here: it has the same size.
FEW = 8
# Weights, gradients and the two averages of Adam.
COPIES = 4


def estimate_distillation(
    teacher: str,
    senses: str | os.PathLike[str] | None,
    texts: Texts,
    args: SKDTrainingArguments,
    start: StudentStart,
    *,
    text_column: str = "text",
    teacher_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the student, time a few batches of it and of its teacher, and write nothing.

    Args:
        teacher: The teacher.
        senses: The teacher's dictionary. None: a student without layers does without.
        texts: The texts to learn from.
        args: The settings of the training.
        start: What the student starts from.
        text_column: Column that holds the texts, if they are a dataset.
        teacher_options: Arguments of :func:`load_teacher`.

    Returns:
        The facts by their names. The number of tokens and the time are projected from some of the texts. The time of
        evaluations is not counted.

    Raises:
        ValueError: The student has a head, or cannot be made from these models or with these settings.
    """
    if start.head is not None:
        raise ValueError(f"a dry run does not know students with a head: leave out head={start.head!r}")
    options = dict(teacher_options or {})
    start.check(options, has_senses=senses is not None)
    sample = list(islice(iterate_texts(texts, text_column), SAMPLE))
    if not sample:
        raise ValueError("there are no texts: give some")
    models = start.load(teacher, senses, options, args.device)
    loaded = models.teacher
    whole = tokenize(loaded.tokenizer, sample, add_special_tokens=False, verbose=False)["input_ids"]
    if models.senses is None:
        few = [text for text, ids in zip(sample, whole) if ids][:FEW]
        with TemporaryDirectory(prefix="sensedict-") as folder:
            student = start.make(models, encode_vectors(loaded, few, f"{folder}/vectors"))
    else:
        student = start.make(models)
    is_layer_free = isinstance(cast(SKDStudentModel, student).backbone, LayerFreeModel)
    if is_layer_free:
        args = args.for_layer_free()
        check_layer_free_args(args)
        refuse_stream(texts)

    # The texts: how many, and how long.
    total = None if isinstance(texts, IterableDataset) else len(texts)  # type: ignore[arg-type]
    length = check_max_length(args.max_length, loaded.max_window)
    size = args.per_device_train_batch_size * max(1, args.n_gpu)
    # Longer texts are cut into windows, as in a run.
    around = sum(special_token_counts(loaded.tokenizer))
    windows = cut_windows(np.array([len(ids) for ids in whole]), window_width(length, around))
    tokens_of_sample = int((windows.stop - windows.start).sum()) + around * len(windows)
    tokens = None if total is None else round(tokens_of_sample / len(sample) * total)
    num_rows = None if total is None else round(len(windows) / len(sample) * total)
    if is_layer_free and num_rows:
        args = default_epochs(args, num_rows)
    rows = tokenize(loaded.tokenizer, sample, truncation=True, max_length=length)["input_ids"]

    if args.train_sampling_strategy == "group_by_length":
        rows.sort(key=len)

    batch_seconds = _time_batches(loaded, student, rows, size)

    # Steps, room and time.
    batches = None if num_rows is None else -(-num_rows // size)
    steps: int | None = args.max_steps
    if args.max_steps <= 0:
        per_epoch = batches and max(1, batches // args.gradient_accumulation_steps)
        steps = per_epoch and math.ceil(per_epoch * args.num_train_epochs)  # as Trainer rounds
    weights = _bytes(parameter for parameter in student.parameters() if parameter.requires_grad)
    saved = _bytes(student.state_dict().values())
    checkpoints = 0 if args.save_strategy == "no" else (args.save_total_limit or 1) + 1
    trained = steps and steps * args.gradient_accumulation_steps
    # The teacher runs once, or at every step.
    runs_once = is_layer_free or args.keeps_vectors or not args.needs_vectors
    taught = batches if runs_once else trained
    return {
        "texts": total,
        "tokens, about": tokens,
        "teacher, parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "student, parameters": sum(parameter.numel() for parameter in student.parameters()),
        "steps": steps,
        "student, MB": round(saved / 1e6, 1),
        "disk with checkpoints, MB": round((saved + checkpoints * (saved + 2 * weights)) / 1e6, 1),
        "memory of both models, MB": round(
            (_bytes(loaded.model.state_dict().values()) + saved + (COPIES - 1) * weights) / 1e6, 1
        ),
        "teacher, seconds": taught and round(taught * batch_seconds["teacher"], 1),
        "training, seconds": trained and round(trained * batch_seconds["student"], 1),
    }


def _time_batches(teacher: Teacher, student: PreTrainedModel, rows: list[list[int]], size: int) -> dict[str, float]:
    """Return the seconds that `teacher` and `student` take for a batch, the student with its backward pass.

    The batches are from the middle of each third of the rows. The first one, to warm up, is left out.
    """
    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for number in range(TIMED_BATCHES + 1):
        middle = (2 * max(0, number - 1) + 1) * len(rows) // (2 * TIMED_BATCHES)
        first = max(0, middle - size // 2)
        some = (rows[first:] + rows)[:size]
        ids, mask = (part.to(teacher.device) for part in pad_batch(some, teacher.pad_token_id))
        begin = time.perf_counter()
        with torch.no_grad():
            teacher.last_hidden_state(ids, mask).sum().item()
        seconds["teacher"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        student(ids, mask).student_hidden_state.square().mean().backward()
        student.zero_grad()
        seconds["student"].append(time.perf_counter() - begin)
    return {name: sum(each[1:]) / TIMED_BATCHES for name, each in seconds.items()}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
