"""Options that several subcommands share, and how an option is declared."""

import argparse
from typing import Any

import shtab

# Choices of options. The package defines them too, but importing it would import torch. A test compares both.
ASSIGNMENTS = ("hard", "soft", "none")
HEADS = ("causal_lm", "sequence_classification", "token_classification")
KEYS = ("input", "next")
METHODS = ("budget", "senses_per_token", "mcl")
POOLINGS = ("mean", "weighted_mean", "cls", "last", "max")
SAMPLE_DTYPES = ("float16", "float32")
SENSES_DTYPES = ("float16", "bfloat16", "float32", "int8")
SIMILARITIES = ("l2", "cosine", "dot")
TASKS = ("classification", "similarity", "retrieval", "tokens", "language_modeling")
TEACHER_DTYPES = ("float32", "bfloat16", "float16")

# What a shell completes, by the placeholder that help shows for a value.
COMPLETIONS = {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE, "MODEL": shtab.DIRECTORY, "STUDENT": shtab.DIRECTORY}
RETURNED = "its best sense (hard), the average of its senses by probability (soft) or its own hidden state (none)"
FILES = (
    "files ending in .jsonl, .json, .csv, .txt (one text a line), compressed (.gz, .zst) or not, .parquet or .arrow, "
    "all of the same kind; folders of such files, or quoted patterns; a folder written by Dataset.save_to_disk; a "
    "dataset on the Hub, as NAME, NAME:CONFIG or NAME:CONFIG:SPLIT; or - for lines of standard input"
)


def add(container: argparse._ActionsContainer, name: str, metavar: str, help: str, **settings: Any) -> None:
    """Add an argument. Its help names the default, if there is one; a shell can complete files and folders."""
    if settings.get("default") is not None:
        help += " (default: %(default)s)"
        settings.setdefault("type", type(settings["default"]))
    action = container.add_argument(name, metavar=metavar or None, help=help, **settings)
    if metavar in COMPLETIONS:
        action.complete = COMPLETIONS[metavar]  # type: ignore[attr-defined]  # read by shtab


def add_flag(container: argparse._ActionsContainer, name: str, help: str) -> None:
    """Add an option that is off by default: `--name` or, as argument files write it, `--name=true`."""
    container.add_argument(name, metavar="true|false", help=help, type=boolean, nargs="?", const=True, default=False)


def add_quiet(sub: argparse.ArgumentParser) -> None:
    add_flag(sub, "--quiet", "print results, warnings and errors only: no progress")


def add_dry_run(sub: argparse.ArgumentParser) -> None:
    add_flag(sub, "--dry-run", "only say what would be read, run and written, with disk, memory and time")


def boolean(text: str) -> bool:
    """Read `true` or `false`, or another spelling that transformers accepts."""
    word = text.lower()
    if word not in ("true", "t", "yes", "y", "1", "false", "f", "no", "n", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return word[0] in "ty1"


def add_texts(sub: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    add(sub, "--texts", "FILE", help, nargs="+", required=required)
    add(sub, "--text-column", "NAME", "column of the texts in a dataset", default="text")


def add_push(sub: argparse.ArgumentParser, what: str, **settings: Any) -> None:
    about = f"also upload {what}, with its card, to this repository on the Hub"
    add(sub, "--push-to-hub", "NAME", about, **settings)
    sub.set_defaults(push_to_hub=False)  # as in transformers


def add_teacher(sub: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that say how a teacher, or a model to evaluate, is loaded; return their group."""
    group = sub.add_argument_group("loading the model")
    about = (
        "whether a decoder's tokens attend to all tokens (true) or to earlier ones only (default: as it was trained)"
    )
    add(group, "--bidirectional", "true|false", about, type=boolean)
    add(group, "--adapters", "MODEL", "PEFT adapters to merge into the model, in this order", nargs="+")
    about = "how the hidden states of a text become one vector (default: as stored with the model, else mean)"
    add(group, "--pooling", "", about, choices=POOLINGS)
    add(group, "--instruction", "TEXT", "text put before every input; its tokens are not pooled")
    about = "text around instruction and input; {text} stands for them, \\n for a new line"
    add(group, "--template", "TEXT", about)
    add(group, "--teacher-dtype", "", "dtype of the model's weights (default: as stored)", choices=TEACHER_DTYPES)
    add(group, "--device-map", "MAP", "how to spread a large model over devices, for example auto")
    about = """settings of quantization, as JSON: '{"quant_method": "bitsandbytes", "load_in_4bit": true}'"""
    add(group, "--quantization-config", "JSON", about)
    add_trust(group)
    return group


def add_trust(container: argparse._ActionsContainer) -> None:
    add_flag(container, "--trust-remote-code", "run Python code from the folders and repositories that are loaded")


def add_device(group: argparse._ArgumentGroup) -> None:
    add(group, "--batch-size", "N", "texts in a forward pass", default=32)
    add(group, "--device", "DEVICE", "device to run on, such as cpu or cuda:1 (default: a GPU if there is one)")
