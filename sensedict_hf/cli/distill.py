"""The subcommand `distill`: distil a student into a folder, and continue where an earlier run was interrupted."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import HfArgumentParser

from sensedict_cli.common import boolean
from sensedict_cli.options import SUBCOMMANDS

from ..data import read_dataset
from ..distillation.dry_run import estimate_distillation
from ..distillation.run import distill_student
from ..distillation.start import StudentStart
from ..distillation.training_args import SKDTrainingArguments
from ..models.modeling_skd_student import SKDStudentModel
from .dictionaries import megabytes, print_facts
from .evaluate import parameters
from .teacher import loading


def read_argument_file(path: str) -> list[str]:
    """Read command-line arguments from a YAML or JSON file.

    Args:
        path: A file that maps the names of options to their values.

    Returns:
        The arguments, as they would be typed.

    Raises:
        ValueError: The file is not valid, or is not a mapping of names to values.
        OSError: The file cannot be read.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML too
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not map names to values: write lines such as 'num_train_epochs: 2'")
    arguments: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        if value is False and name.replace("-", "_").endswith("_strategy"):
            value = "no"  # YAML reads an unquoted no as false
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        else:
            # Name and value in one piece: alone, a negative number such as -1e-3 could be taken for an option.
            arguments.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return arguments


def distill(options: argparse.Namespace) -> None:
    """Distil a student, or continue an interrupted run, and print the student's size.

    Args:
        options: The options that `sensedict_cli` declares, and `trainer_arguments`: the other command-line arguments,
            which transformers parses.

    Raises:
        ValueError: See :func:`distill_student`.
    """
    if are_progress_bars_disabled():  # transformers' Trainer does not ask this switch; a given --disable-tqdm wins
        options.trainer_arguments.insert(0, "--disable-tqdm=true")
    options = _TrainerParser().parse_args(options.trainer_arguments, options)
    values = vars(options) | read_push(options.push_to_hub)
    names = "text_column num_hidden_layers layers backbone adopt_tokenizer assignment residual head overwrite".split()
    args = SKDTrainingArguments(**{item.name: values[item.name] for item in fields(SKDTrainingArguments) if item.init})
    if options.dry_run:
        _estimate(values, args, loading(options))
        return
    # Trainer prints its losses to standard output, which is for results.
    with redirect_stdout(StringIO() if options.quiet else sys.stderr):
        student = distill_student(
            options.teacher,
            options.senses,
            read_dataset(options.texts, streaming=options.streaming),
            args=args,
            eval_texts=None if options.eval_texts is None else read_dataset(options.eval_texts, split="validation"),
            teacher_options=loading(options),
            # Recorded as typed. A stream is known by its files alone.
            recorded={
                "template": options.template,
                "quantization_config": options.quantization_config,
                "texts": [Path(path).name for path in options.texts],
            },
            **{name: values[name] for name in names},
        )
    senses = cast(SKDStudentModel, student.base_model).senses
    size = f" and {megabytes(senses):.1f} MB of senses" if len(senses.table) else ""
    print(f"{parameters(student):,} parameters{size}: saved in {options.output_dir}")


def read_push(given: str | bool | None) -> dict[str, Any]:
    """Return the settings that `--push-to-hub` stands for: with a name, or `true` or `false` as in transformers."""
    try:
        return {"push_to_hub": boolean(str(given or "false"))}
    except argparse.ArgumentTypeError:
        return {"push_to_hub": True, "hub_model_id": given}


def _estimate(values: dict[str, Any], args: SKDTrainingArguments, teacher_options: dict[str, Any]) -> None:
    """Print what a run would read, run and write.

    Raises:
        ValueError: The student cannot be made, or has a head.
    """
    facts = estimate_distillation(
        values["teacher"],
        values["senses"],
        read_dataset(values["texts"], streaming=values["streaming"]),
        args,
        StudentStart(**{field.name: values[field.name] for field in fields(StudentStart)}),
        text_column=values["text_column"],
        teacher_options=teacher_options,
    )
    print_facts({"teacher": values["teacher"], **facts, "output": values["output_dir"]})


def trainer_help() -> str:
    """Describe the options of `sensedict distill` that come from transformers."""
    return _TrainerParser(usage=argparse.SUPPRESS).format_help()


class _TrainerParser(HfArgumentParser):
    """Parses the options of `TrainingArguments` that `sensedict_cli` does not declare."""

    def __init__(self, usage: str = f"sensedict distill {SUBCOMMANDS['distill'][1]}") -> None:
        super().__init__(
            SKDTrainingArguments,  # type: ignore[arg-type]  # annotated as a type of its own
            prog="sensedict distill",
            usage=usage,
            description="Options of transformers' TrainingArguments:",
            formatter_class=argparse.HelpFormatter,
            add_help=False,
            allow_abbrev=False,  # an option added later must not change what an argument file means
        )

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an option with hyphens only, as all arguments are spelled with them here, and show a default once."""
        names = tuple(dict.fromkeys(name.replace("_", "-") for name in names))
        own = {*SKDTrainingArguments.__annotations__, "output_dir", "push_to_hub"} - {"ddp_timeout"}
        if names[0].removeprefix("--").replace("-", "_") in own:
            settings["help"] = argparse.SUPPRESS  # shown by sensedict_cli, or not to be changed
        elif settings.get("default") is not None and settings["default"] is not False:
            settings["help"] = settings.get("help", "") + " (default: %(default)s)"
        return super().add_argument(*names, **settings)
