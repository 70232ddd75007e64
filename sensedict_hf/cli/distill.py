"""`sensedict distill`: teacher, dictionary and texts -> a student in a folder; goes on where it was stopped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..data import FILES_HELP, read_dataset
from ..distillation.run import HEADS, distill_student
from ..distillation.training_args import SKDTrainingArguments
from ..models.configuration_sense_embedding import ASSIGNMENTS
from ..models.modeling_skd_student import SKDStudentPreTrainedModel
from .teacher import TeacherArguments

# Options of earlier versions, and why they are gone.
REMOVED = {
    "frequency_power": "weighing positions by the frequency of their token made students worse",
    "dropout": "dropout while distilling made students worse; there is none now",
}


@dataclass(kw_only=True)
class DistillArguments(TeacherArguments):
    """What is distilled into what; how, the settings of [`SKDTrainingArguments`] tell."""

    teacher: str = field(metadata={"help": "name or folder of an encoder or decoder"})
    senses: str = field(metadata={"help": "folder or name of the teacher's dictionary"})
    texts: list[str] = field(metadata={"help": FILES_HELP})
    eval_texts: list[str] | None = field(
        default=None, metadata={"help": "the same, to evaluate on while training (--eval-strategy)"}
    )
    text_column: str = field(default="text", metadata={"help": "where the texts are"})
    streaming: bool = field(
        default=False, metadata={"help": "encode the texts as they come, without a copy; needs --max-steps"}
    )
    num_hidden_layers: int = field(default=2, metadata={"help": "first layers of the teacher to start from"})
    layers: list[int] | None = field(
        default=None, metadata={"help": "or: the layers of the teacher to start from, from 0"}
    )
    backbone: str | None = field(
        default=None, metadata={"help": "or: another model with the dictionary's tokenizer to start from"}
    )
    assignment: str | None = field(
        default=None,
        metadata={"help": "what the student returns (default: as its objective suggests)", "choices": [*ASSIGNMENTS]},
    )
    residual: float | None = field(
        default=None,
        metadata={"help": "share of its own vectors beside the senses (0 to 1; default: as its objective suggests)"},
    )
    head: str | None = field(
        default=None,
        metadata={"help": "copy this head of a fine-tuned teacher too, frozen, on the student", "choices": [*HEADS]},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace another student or unfinished run in the output folder"}
    )


def read_argument_file(arguments: Sequence[str]) -> list[str]:
    """Puts in the place of a .yaml or .json file, if one comes first, what is written in it; arguments behind it win.

    Raises:
        ValueError: the file holds something else than names and values.
    """
    if not arguments or Path(arguments[0]).suffix not in (".yaml", ".yml", ".json"):
        _refuse_removed(arguments)
        return list(arguments)
    try:
        values = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{arguments[0]} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{arguments[0]} holds no names with values: write lines like 'num_train_epochs: 2'")
    written: list[str] = []
    for name, value in values.items():
        if value is not None:
            if value is False and name.replace("-", "_").endswith("_strategy"):
                value = "no"  # which YAML reads as false
            if isinstance(value, list):
                written += [f"--{name}", *map(str, value)]
            else:  # in one piece, as a negative number could be taken for an argument
                written.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    _refuse_removed(written + list(arguments[1:]))
    return written + list(arguments[1:])


def _refuse_removed(arguments: Sequence[str]) -> None:
    """Raise a ValueError for an option of an earlier version."""
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in REMOVED:
            raise ValueError(f"{name} is no longer an option ({REMOVED[name]}): leave it out")


def distill(options: DistillArguments, args: SKDTrainingArguments) -> SKDStudentPreTrainedModel:
    """Distil a student into `args.output_dir`, as :func:`distill_student` does."""
    eval_texts = None if options.eval_texts is None else read_dataset(options.eval_texts, split="validation")
    names = ("text_column", "num_hidden_layers", "layers", "backbone", "assignment", "residual", "head", "overwrite")
    return distill_student(
        options.teacher,
        options.senses,
        read_dataset(options.texts, streaming=options.streaming),
        args=args,
        eval_texts=eval_texts,
        teacher_options=options.loading(),
        # Recorded as they were typed: earlier versions did, and a stream is known by its files alone.
        recorded={
            "template": options.template,
            "quantization_config": options.quantization_config,
            "texts": [Path(path).name for path in options.texts],
        },
        **{name: getattr(options, name) for name in names},
    )
