"""`sensedict distill`: teacher, dictionary and texts -> a student in a folder; goes on where it was stopped."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import AutoModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .build_folder import differences
from .configuration_sense_embedding import ASSIGNMENTS
from .corpus import FILES_HELP, read_dataset
from .modeling_skd_student import SKDStudentModel, load_senses
from .teachers import load_teacher
from .trainer import REMEMBERED, SKDTrainer
from .training_args import SKDTrainingArguments

logger = logging.get_logger(__name__)

# What else decides the weights.
DECISIVE = (
    *REMEMBERED,
    "objective",
    "max_length",
    "gradient_accumulation_steps",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "train_sampling_strategy",
)


@dataclass
class DistillArguments:
    """What is distilled into what; how, the settings of [`SKDTrainingArguments`] tell."""

    teacher: str = field(metadata={"help": "name or folder of an encoder or decoder"})
    senses: str = field(metadata={"help": "folder or name of the teacher's dictionary"})
    texts: list[str] = field(metadata={"help": FILES_HELP})
    eval_texts: list[str] | None = field(default=None, metadata={"help": "the same, to evaluate on while training (--eval-strategy)"})
    text_column: str = field(default="text", metadata={"help": "where the texts are"})
    streaming: bool = field(default=False, metadata={"help": "encode the texts as they come, without a copy; needs --max-steps"})
    num_hidden_layers: int = field(default=2, metadata={"help": "first layers of the teacher to start from"})
    layers: list[int] | None = field(default=None, metadata={"help": "or: the layers of the teacher to start from, from 0"})
    backbone: str | None = field(default=None, metadata={"help": "or: another model with the dictionary's tokenizer to start from"})
    assignment: str | None = field(
        default=None, metadata={"help": "what the student returns (default: as its objective suggests)", "choices": [*ASSIGNMENTS]}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace another student or unfinished run in the output folder"})


def read_argument_file(arguments: Sequence[str]) -> list[str]:
    """Puts in the place of a .yaml or .json file, if one comes first, what is written in it; arguments behind it win.

    Raises:
        ValueError: the file holds something else than names and values.
    """
    if not arguments or Path(arguments[0]).suffix not in (".yaml", ".yml", ".json"):
        return list(arguments)
    values = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{arguments[0]} holds no names with values: write lines like 'num_train_epochs: 2'")
    written: list[str] = []
    for name, value in values.items():
        if value is not None:
            items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            written += [f"--{name}", *map(str, items)]
    return written + list(arguments[1:])


def distill(options: DistillArguments, args: SKDTrainingArguments) -> SKDStudentModel:
    """Distils a student into `args.output_dir`.

    Raises:
        ValueError: the folder holds another student or a run with other settings, and `overwrite` is not set; and see [`SKDTrainer`].
    """
    folder = Path(args.output_dir)
    settings = {**asdict(options), **{name: getattr(args, name) for name in DECISIVE}}
    del settings["overwrite"]
    settings = json.loads(json.dumps(settings, default=str))
    state = PartialState()
    if state.is_main_process:
        _begin(folder, settings, options.overwrite)
    state.wait_for_everyone()
    if (folder / "config.json").is_file():
        logger.info(f"{folder} holds this student already")
        return AutoModel.from_pretrained(folder)
    # The seed is set before weights (a projection) are drawn.
    set_seed(args.seed)
    teacher, senses = load_teacher(options.teacher, device=args.device), load_senses(options.senses)
    if options.backbone:
        student = SKDStudentModel.from_backbone(options.backbone, senses, assignment=options.assignment)
    else:
        layers = options.layers or options.num_hidden_layers
        student = SKDStudentModel.from_teacher(teacher, senses, layers, assignment=options.assignment)
    texts = read_dataset(options.texts, streaming=options.streaming)
    eval_texts = None if options.eval_texts is None else read_dataset(options.eval_texts, split="validation")
    trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts, eval_dataset=eval_texts, text_column=options.text_column)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    if state.is_main_process:
        ready = folder / "_student"
        student.save_pretrained(ready)
        for path in sorted(ready.iterdir(), key=lambda path: path.name == "config.json"):  # without that nothing loads
            path.replace(folder / path.name)
        ready.rmdir()
        _clear(folder)
    state.wait_for_everyone()
    return student


def _clear(folder: Path) -> None:
    """Removes what is there only to go on from: checkpoints, and the texts' token ids, which have no place in what is published."""
    for path in (folder / "_encoded", *folder.glob("checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)


def _begin(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Notes the settings in the folder, or compares them with those that are there."""
    path = folder / "_distilling.json"
    begun = json.loads(path.read_text()) if path.is_file() else None
    there = (folder / "config.json").is_file()
    changed = differences(begun, settings) if begun else ""
    if (changed or there and begun is None) and not overwrite:
        what = f"a run with other settings: {changed}" if begun else "a model that no sensedict distill has put there"
        raise ValueError(f"{folder} holds {what}; give the same, another folder, or --overwrite")
    if begun and not changed:
        return
    (folder / "config.json").unlink(missing_ok=True)
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2))
