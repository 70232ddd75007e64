"""`sensedict evaluate`: a model and a task -> scores."""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModel

from ..data import read_dataset
from ..evaluation import TASKS, Encode, EncodeWords, EvaluationTask
from ..models.attaching import attach_senses
from ..models.checkpoints import read_json
from ..models.configuration_sense_embedding import check_residual
from ..models.modeling_skd_student import load_senses
from ..models.teachers import check_teacher
from .teacher import TeacherArguments


def evaluate(options: argparse.Namespace) -> None:
    """Scores a model on a task; prints a table and writes the scores to `--output`."""
    task = read_task(options)
    model, encode, encode_words = load_encoder(options)
    begin = time.perf_counter()
    vectors = task.encode(encode, encode_words)
    speed = sum(map(len, task.inputs)) / (time.perf_counter() - begin)
    scores = task.metric(*vectors)
    cells = {name: f"{score:.4f}" for name, score in scores.items()}
    if options.task == "classification":
        few_shot = f"{cells['few_shot']} ± {cells['few_shot_std']}"
        cells = {"few-shot (8 a label, 10 draws)": few_shot, f"all {len(task.inputs[0]):,} labels": cells["full"]}
    output = options.assignment or "none"
    if options.residual and output != "none":
        output += f", residual {options.residual:g}"
    costs = {"parameters": f"{parameters(model):,}", "texts/s": f"{speed:.0f}"}
    cells = {"model": options.model, "output": output.replace("none", "raw"), **cells, **costs}
    print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n| {' | '.join(cells.values())} |")
    if options.output:
        used = {name: getattr(options, name) for name in ("task", "model", "senses", "assignment", "residual")}
        Path(options.output).write_text(json.dumps({**scores, **used}, indent=2) + "\n")


def read_task(options: argparse.Namespace) -> EvaluationTask:
    """The task to evaluate on, of its files."""
    labelled, tagged = (options.text_column, options.label_column), ("tokens", "tags")
    needed: dict[str, tuple[str, ...]] = {
        "classification": {"train": labelled, "test": labelled},
        "similarity": {"test": ("sentence1", "sentence2", "score")},
        "retrieval": {"corpus": ("id", "text"), "queries": ("text", "relevant")},
        "tokens": {"train": tagged, "test": tagged},
    }[options.task]
    given = [name for name in ("train", "test", "corpus", "queries") if getattr(options, name)]
    if given != list(needed):
        flags = [" and ".join(f"--{name}" for name in names) for names in (needed, given)]
        raise ValueError(f"--task {options.task} needs {flags[0]}, not {flags[1] or 'nothing'}")
    sets = {}
    for name, columns in needed.items():
        data = read_dataset(getattr(options, name), split=name)
        for column in columns:
            if column not in data.column_names:
                raise ValueError(f"--{name} has no column {column!r}, only {', '.join(data.column_names)}")
        sets[name] = data.to_dict()
    names = {"text": options.text_column, "label": options.label_column} if options.task == "classification" else {}
    return TASKS[options.task](**sets, **names)


def load_encoder(options: argparse.Namespace) -> tuple[torch.nn.Module, Encode, EncodeWords]:
    """The model to evaluate, and what makes vectors of texts and of words."""
    check_residual(options.residual or 0.0)
    if (read_json(options.model, "config.json") or {}).get("model_type") == "skd_student":
        if options.senses or TeacherArguments.of(options) != TeacherArguments():
            raise ValueError(
                f"{options.model} is a student, with its own senses, pooling and prompt: leave out --senses and such options"
            )
        student = AutoModel.from_pretrained(options.model).to(
            options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        if options.residual is not None:
            student.config.residual = options.residual
        options.assignment, options.residual = (
            options.assignment or student.config.default_assignment,
            student.config.default_residual,
        )
        settings = {"assignment": options.assignment, "batch_size": options.batch_size}
        return student, partial(student.encode, **settings), partial(student.encode_words, **settings)
    teacher = TeacherArguments.of(options).load(options.model, options.device)
    if options.senses:
        senses = load_senses(options.senses)
        check_teacher(senses, teacher)
        options.assignment = options.assignment or senses.config.assignment
        options.residual = senses.config.residual if options.residual is None else options.residual
        given = {"assignment": options.assignment, "residual": options.residual}
        attach_senses(teacher.model, senses, tokenizer=teacher.tokenizer, **given)
    elif options.assignment or options.residual is not None:
        raise ValueError(f"--assignment or --residual needs --senses, as {options.model} has none")
    settings = {"batch_size": options.batch_size}
    return teacher.model, partial(teacher.encode, **settings), partial(teacher.encode_words, **settings)


def parameters(model: torch.nn.Module) -> int:
    """Trainable or not, without the senses."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not name.endswith("senses"))
