"""The subcommand `evaluate`: score the frozen embeddings of a model on a task."""

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..data import read_dataset
from ..evaluation.checks import check_relevant
from ..evaluation.language import evaluate_language_modeling
from ..evaluation.scores import score_ranking
from ..evaluation.tasks import TASKS, Encode, EncodeWords, EvaluationTask
from ..models.arguments import check_device
from ..models.attaching import attach_senses
from ..models.checkpoints import read_json
from ..models.configuration_sense_embedding import check_residual
from ..models.encoding import LEARNED
from ..models.head_transfer import load_with_head
from ..models.loading import load_senses
from ..models.matching import check_teacher
from ..models.modeling_layer_free import Int8Table
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from ..retrieval.encoding import load_encoder
from ..retrieval.index import SenseIndex
from .card import read_card, scored_model, write_scores
from .teacher import is_plain, loading

LANGUAGE_MODELING = "language_modeling"


@dataclass
class Encoder:
    """A model to evaluate, with the functions that encode texts and words.

    Attributes:
        model: The model, whose parameters are counted.
        encode: Makes vectors `[texts, hidden]` of texts.
        encode_words: Makes vectors `[words, hidden]` of each list of words.
        assignment: How its senses are assigned. None: it has no senses.
        residual: Share of its own vectors in what it returns. None: it has no senses.
    """

    model: nn.Module
    encode: Encode
    encode_words: EncodeWords
    assignment: str | None = None
    residual: float | None = None


def evaluate(options: argparse.Namespace) -> None:
    """Score a model on a task, print the scores as a table, and write them to `--output` if it is given."""
    if options.output:  # a folder that cannot be made should not be found out after the work
        if Path(options.output).is_dir():
            raise ValueError(f"--output {options.output} is a folder: give the file that the scores go to")
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    if options.card:  # a card that cannot be read should not be found out then, either
        read_card(scored_model(options), options.trust_remote_code)
    check_columns(options)
    if options.index:
        evaluate_index(options)
        return
    if not options.model:
        raise ValueError("give --model, or --index with --task retrieval")
    if options.task == LANGUAGE_MODELING:
        evaluate_language(options)
        return
    task = read_task(options)
    encoder = make_encoder(options)
    query_model = _load_query_model(options) if options.query_model else None
    begin = time.perf_counter()
    if query_model is None:
        vectors = task.encode(encoder.encode, encoder.encode_words)
    else:
        queries, documents = task.inputs
        vectors = [query_model.encode(queries, batch_size=options.batch_size), encoder.encode(documents)]
    speed = sum(map(len, task.inputs)) / (time.perf_counter() - begin)
    scores = task.metric(*vectors)

    # The table has one row: what was evaluated, the scores, and the cost.
    cells = {name: f"{score:.4f}" for name, score in scores.items()}
    if options.task == "classification":
        few_shot = f"{cells['few_shot']} ± {cells['few_shot_std']}"
        cells = {"few-shot (8 a label, 10 draws)": few_shot, f"all {len(task.inputs[0]):,} labels": cells["full"]}
    output = encoder.assignment or "none"
    if encoder.residual and output != "none":
        output += f", residual {encoder.residual:g}"
    costs = {"parameters": f"{parameters(encoder.model):,}", "texts/s": f"{speed:.0f}"}
    name = f"{options.query_model} on {options.model}" if query_model else options.model
    cells = {"model": name, "output": output.replace("none", "raw"), **cells, **costs}
    used = {"task": options.task, "model": options.model, "senses": options.senses}
    used |= {"query_model": options.query_model} if query_model else {}
    used |= {"assignment": encoder.assignment, "residual": encoder.residual}
    write_output(options, {**scores, **used})
    if options.card:
        write_scores(options, scores, speed)
    print_row(cells)


def check_columns(options: argparse.Namespace) -> None:
    """Raise a ValueError for the name of a column that the task does not read."""
    tasks = {"text": ("classification", LANGUAGE_MODELING), "label": ("classification",)}
    for kind, names in tasks.items():
        given = getattr(options, f"{kind}_column")
        if given != kind and options.task not in names:
            raise ValueError(f"--{kind}-column {given} is for --task {' or '.join(names)}: leave it out")


def write_output(options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write scores to `--output` if it is given. This comes before all else, as printing may fail."""
    if options.output:
        Path(options.output).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def print_row(cells: dict[str, str]) -> None:
    """Print a table of one row, in Markdown."""
    print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n| {' | '.join(cells.values())} |")


def evaluate_index(options: argparse.Namespace) -> None:
    """Score what a sense index finds, print the scores as a table, and write them to `--output` if it is given.

    Raises:
        ValueError: An option is missing or not for an index, or a relevant document is not in the index.
    """
    unused = [name for name in ("model", "senses", "assignment", "residual") if getattr(options, name) is not None]
    unused += [name for name in ("train", "test", "corpus") if getattr(options, name)]
    if options.device is not None and not options.query_model:
        unused.append("device")
    if options.task != "retrieval" or not options.queries or unused or not is_plain(options):
        raise ValueError("--index needs --task retrieval and --queries, and takes only --query-model with them")
    queries = read_files(options, {"queries": ("text", "relevant")})["queries"]
    check_relevant(queries["relevant"])
    encoder = _load_query_model(options) if options.query_model else None
    index = SenseIndex.load(options.index, encoder, trust_remote_code=options.trust_remote_code)
    # As strings: a .csv file has strings where a .jsonl file may have numbers.
    numbers = {str(name): number for number, name in enumerate(index.ids)}
    unknown = [name for names in queries["relevant"] for name in names if str(name) not in numbers]
    if unknown:
        raise ValueError(f"the index has no document {unknown[0]!r}, which is relevant to a query: use the same ids")
    begin = time.perf_counter()
    found, _ = index.search(queries["text"], 10, batch_size=options.batch_size)
    speed = len(found) / (time.perf_counter() - begin)
    relevant = [[numbers[str(name)] for name in names] for names in queries["relevant"]]
    scores = score_ranking([[numbers[str(name)] for name in best] for best in found], relevant)
    cells = {name: f"{score:.4f}" for name, score in scores.items()}
    used = {"task": "retrieval", "index": options.index, "query_model": options.query_model}
    write_output(options, {**scores, **used})
    print_row({"index": options.index, "documents": f"{len(index):,}", **cells, "queries/s": f"{speed:.0f}"})


def evaluate_language(options: argparse.Namespace) -> None:
    """Score how well a language model predicts texts, as :func:`evaluate`.

    Raises:
        ValueError: The task has no such option, the model has no head, or the dictionary is of another teacher.
    """
    if options.query_model or options.train or options.corpus or options.queries or not options.test:
        raise ValueError(f"--task {LANGUAGE_MODELING} needs --test, and no other files or models")
    if options.trust_remote_code or not is_plain(options):
        raise ValueError(f"--task {LANGUAGE_MODELING} runs a model as it was trained: leave out how to load it")
    if not options.senses and (options.assignment or options.residual is not None):
        raise ValueError(f"--task {LANGUAGE_MODELING}: --assignment and --residual need --senses")
    texts = read_dataset(options.test, split="test")
    device = check_device("device", options.device) or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_with_head(options.model, AutoModelForCausalLM)
    model.to(device)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
    tokenizer, output = AutoTokenizer.from_pretrained(options.model), "raw"
    if options.senses:
        senses = load_senses(options.senses).to(device)  # type: ignore[arg-type]
        changes = {"assignment": options.assignment, "residual": options.residual}
        attach_senses(model, senses, tokenizer=tokenizer, **changes)
        output = f"{options.assignment or senses.config.assignment}, key {senses.config.key}"
    settings = {"tokenizer": tokenizer, "text_column": options.text_column, "batch_size": options.batch_size}
    begin = time.perf_counter()
    scores = evaluate_language_modeling(model, texts, **settings)
    speed = scores["tokens"] / (time.perf_counter() - begin)
    cells = {"model": options.model, "output": output, "perplexity": f"{scores['perplexity']:.2f}"}
    cells |= {"next-token accuracy": f"{scores['token_accuracy']:.4f}", "tokens": f"{scores['tokens']:,}"}
    used = {name: getattr(options, name) for name in ("task", "model", "senses", "assignment", "residual")}
    write_output(options, {**scores, **used})
    if options.card:
        write_scores(options, scores, len(texts) * speed / scores["tokens"])
    print_row(cells | {"parameters": f"{parameters(model):,}", "tokens/s": f"{speed:.0f}"})


def read_task(options: argparse.Namespace) -> EvaluationTask:
    """Read the files of the task.

    Raises:
        ValueError: The task needs other files, has no queries for the model of queries, or a file lacks a column.
    """
    if options.query_model and options.task != "retrieval":
        raise ValueError(f"--task {options.task} has no queries: --query-model needs --task retrieval")
    # The options that give the files of the task, and the columns that each file needs.
    labelled, tagged = (options.text_column, options.label_column), ("tokens", "tags")
    files: dict[str, dict[str, tuple[str, ...]]] = {
        "classification": {"train": labelled, "test": labelled},
        "similarity": {"test": ("sentence1", "sentence2", "score")},
        "retrieval": {"corpus": ("id", "text"), "queries": ("text", "relevant")},
        "tokens": {"train": tagged, "test": tagged},
    }
    needed = files[options.task]
    given = [name for name in ("train", "test", "corpus", "queries") if getattr(options, name)]
    if given != list(needed):
        flags = [" and ".join(f"--{name}" for name in names) for names in (needed, given)]
        raise ValueError(f"--task {options.task} needs {flags[0]}, not {flags[1] or 'nothing'}")

    sets = read_files(options, needed)
    names = {"text": options.text_column, "label": options.label_column} if options.task == "classification" else {}
    return TASKS[options.task](**sets, **names)


def read_files(options: argparse.Namespace, needed: dict[str, tuple[str, ...]]) -> dict[str, dict[str, list[Any]]]:
    """Read files that options name.

    Args:
        options: The options.
        needed: The columns that each file must have, by the name of its option.

    Raises:
        ValueError: A file lacks a column.
    """
    sets = {}
    for name, columns in needed.items():
        data = read_dataset(getattr(options, name), split=name)
        for column in columns:
            if column not in data.column_names:
                raise ValueError(f"--{name} has no column {column!r}, only {', '.join(data.column_names)}")
        sets[name] = data.to_dict()
    return sets


def make_encoder(options: argparse.Namespace) -> Encoder:
    """Load a student, or another model with or without a dictionary.

    Raises:
        ValueError: An option does not fit the model, the dictionary is of another teacher, or the device is not there.
    """
    check_residual(options.residual or 0.0)
    settings: dict[str, Any] = {"batch_size": options.batch_size}
    if (read_json(options.model, "config.json") or {}).get("model_type") == "skd_student":
        if options.senses or not is_plain(options):
            raise ValueError(
                f"{options.model} is a student and has its own senses, pooling and prompt: "
                "leave out --senses and the options for loading a model"
            )
        device = check_device("device", options.device)
        trust = options.trust_remote_code
        student = cast(SKDStudentModel, load_encoder(options.model, device, trust_remote_code=trust))
        if options.residual is not None:
            student.config.residual = options.residual
        assignment, residual = options.assignment or student.config.default_assignment, student.config.default_residual
        if student.config.pooling == LEARNED and options.task != "tokens" and not options.assignment:
            assignment = "none"  # without layers the vectors of texts are made without senses
        if options.residual is not None and assignment == "none":
            raise ValueError(
                f"--residual {options.residual:g} with the student's own vectors: it mixes them with senses; choose "
                "--assignment soft or hard, or leave it out"
            )
        settings["assignment"] = options.assignment
        encoders = partial(student.encode, **settings), partial(student.encode_words, **settings)
        return Encoder(student, *encoders, assignment, None if assignment == "none" else residual)

    teacher = load_teacher(options.model, device=options.device, **loading(options))
    encoders = partial(teacher.encode, **settings), partial(teacher.encode_words, **settings)
    if options.senses:
        senses = load_senses(options.senses, trust_remote_code=options.trust_remote_code)
        check_teacher(senses, teacher)
        assignment = options.assignment or senses.config.assignment
        residual = senses.config.residual if options.residual is None else options.residual
        attach_senses(teacher.model, senses, tokenizer=teacher.tokenizer, assignment=assignment, residual=residual)
        return Encoder(teacher.model, *encoders, assignment, residual)
    if options.assignment or options.residual is not None:
        raise ValueError(f"{options.model} has no senses: --assignment and --residual need --senses")
    return Encoder(teacher.model, *encoders)


def _load_query_model(options: argparse.Namespace) -> Teacher | SKDStudentModel:
    device = check_device("device", options.device)
    return load_encoder(options.query_model, device, trust_remote_code=options.trust_remote_code)


def parameters(model: nn.Module) -> int:
    """Count the weights of a model, trainable or not. Tables in int8 count, the senses of a dictionary do not."""
    own = [parameter for name, parameter in model.named_parameters() if not name.endswith("senses")]
    tables = [module.weight for module in model.modules() if isinstance(module, Int8Table)]
    return sum(weight.numel() for weight in [*own, *tables])
