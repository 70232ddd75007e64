"""The subcommand `distill`: distil a student into a folder, and continue where an earlier run was interrupted."""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoModel, HfArgumentParser, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from sensedict_cli import SUBCOMMANDS

from ..building.corpus import corpus_digest
from ..building.workspace import differences, locked
from ..data import read_dataset
from ..distillation.trainer import SKDTrainer
from ..distillation.training_args import SKDTrainingArguments
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from ..models.modeling_skd_student import SKDStudentModel, SKDStudentPreTrainedModel, load_senses
from ..models.teachers import Teacher, load_teacher
from .dictionaries import megabytes
from .evaluate import parameters
from .teacher import TeacherArguments

logger = logging.get_logger(__name__)
# Of Trainer's arguments those that do not decide the weights, by how their names begin.
INDECISIVE = tuple(
    "output_dir eval_ per_device_eval do_ log save_ report_to run_name disable_tqdm hub_ push_to_hub project trackio "
    "dataloader_num_workers dataloader_p ddp_ use_cpu debug".split()
)
HEADS = {
    "sequence_classification": SKDStudentForSequenceClassification,
    "token_classification": SKDStudentForTokenClassification,
}
STATE = "_distilling.json"  # settings of the run in its folder, and whether it is finished


@dataclass(kw_only=True)
class DistillArguments(TeacherArguments):
    """The options of `sensedict distill` that are not in :class:`SKDTrainingArguments`; `sensedict_cli` declares them.

    Attributes:
        teacher: Name or folder of the model to learn from.
        senses: Name or folder of the teacher's dictionary.
        texts: Files, a folder or a dataset, see :func:`read_dataset`.
        eval_texts: Texts to evaluate on during training.
        text_column: Column of the texts.
        streaming: Whether texts are read as they are needed, without a copy on disk.
        num_hidden_layers: Number of first layers of the teacher to start from.
        layers: Layers of the teacher to start from instead, counted from 0.
        backbone: Name or folder of another model to start from instead.
        assignment: What the student returns, `hard`, `soft` or `none`. Default: depends on the objective.
        residual: Share of its own hidden states that is mixed with the senses. Default: depends on the objective.
        head: Kind of head to copy from a fine-tuned teacher.
        overwrite: Whether another student or run in the output folder is replaced.
    """

    teacher: str
    senses: str
    texts: list[str]
    eval_texts: list[str] | None = None
    text_column: str = "text"
    streaming: bool = False
    num_hidden_layers: int = 2
    layers: list[int] | None = None
    backbone: str | None = None
    assignment: str | None = None
    residual: float | None = None
    head: str | None = None
    overwrite: bool = False


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
    options = _TrainerParser().parse_args(options.trainer_arguments, options)
    values = vars(options)
    student = distill_student(
        DistillArguments(**{field.name: values[field.name] for field in fields(DistillArguments)}),
        SKDTrainingArguments(
            **{field.name: values[field.name] for field in fields(SKDTrainingArguments) if field.init}
        ),
    )
    size = megabytes(cast(SKDStudentModel, student.base_model).senses)
    print(f"{parameters(student):,} parameters and {size:.1f} MB of senses: saved in {options.output_dir}")


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
        if names[0].removeprefix("--").replace("-", "_") in SKDTrainingArguments.__annotations__:
            settings["help"] = argparse.SUPPRESS  # shown by sensedict_cli, or not to be changed
        elif settings.get("default") is not None and settings["default"] is not False:
            settings["help"] = settings.get("help", "") + " (default: %(default)s)"
        return super().add_argument(*names, **settings)


def distill_student(options: DistillArguments, args: SKDTrainingArguments) -> SKDStudentPreTrainedModel:
    """Distils a student into `args.output_dir`.

    Raises:
        ValueError: the folder holds another student or a run with other settings, and `overwrite` is not set, or another process works
            in it; and see [`SKDTrainer`].
    """
    if args.push_to_hub:
        raise ValueError(
            "push_to_hub would upload unfinished students: load the finished one, and call its push_to_hub"
        )
    if args.resume_from_checkpoint:
        raise ValueError("resume_from_checkpoint is found in the output folder: give the same command again")
    if options.backbone and options.layers:
        raise ValueError("--layers are the teacher's, --backbone is another model: give one of them")
    if options.head and options.adapters:
        raise ValueError(
            f"head={options.head!r} is copied from the teacher's folder, not from adapters: merge them into that model first"
        )
    if options.eval_texts and args.eval_strategy == "no":
        raise ValueError("eval_texts are read when eval_strategy says: give --eval-strategy epoch or steps")
    with locked(Path(args.output_dir)):
        return _distill(options, args)


def _distill(options: DistillArguments, args: SKDTrainingArguments) -> SKDStudentPreTrainedModel:
    folder, state = Path(args.output_dir), PartialState()
    classifier = options.head and HEADS[options.head].load_classifier(options.teacher)
    teacher, senses = options.load(options.teacher, args.device), load_senses(options.senses)
    backbone = options.backbone and load_teacher(
        options.backbone, bidirectional=options.bidirectional, trust_remote_code=options.trust_remote_code
    )
    texts = read_dataset(options.texts, streaming=options.streaming)
    begun: list[Any] = [None]
    if state.is_main_process:
        settings = {**asdict(options), **args.to_dict(), "processes": state.num_processes}
        for name in [name for name in settings if name.startswith(INDECISIVE) or name in ("overwrite", "device_map")]:
            del settings[name]
        for name in ("teacher", "senses", "backbone"):  # where they lie on this machine is nobody's business
            settings[name] = settings[name] and Path(settings[name]).name
        settings["adapters"] = [Path(adapter).name for adapter in options.adapters or []]
        settings["prompt"] = teacher.prompt and asdict(teacher.prompt)
        settings["texts"] = [Path(path).name for path in options.texts]
        settings |= {"teacher_fingerprint": teacher.fingerprint(), "senses_fingerprint": senses.fingerprint()}
        settings["backbone_fingerprint"] = backbone and backbone.fingerprint()
        settings["corpus"] = None if options.streaming else corpus_digest(texts, options.text_column)
        begun = [_begin(folder, json.loads(json.dumps(settings, default=str)), options.overwrite)]
    if broadcast_object_list(begun)[0]:
        logger.info(f"{folder} holds this student already")
        return HEADS.get(options.head, AutoModel).from_pretrained(folder)
    set_seed(args.seed)  # before weights (a projection) are drawn
    try:
        student = _student(options, teacher, senses, backbone, classifier)
        eval_texts = None if options.eval_texts is None else read_dataset(options.eval_texts, split="validation")
        trainer = SKDTrainer(
            student,
            args,
            teacher=teacher,
            train_dataset=texts,
            eval_dataset=eval_texts,
            text_column=options.text_column,
        )
    except ValueError:
        if state.is_main_process and not (folder / "_encoded").exists() and not list(folder.glob("checkpoint-*")):
            (folder / STATE).unlink()  # nothing was begun: the next command may have other settings
        raise
    del teacher  # so that the trainer can let it go
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    if state.is_main_process:
        ready = folder / "_student"
        student.save_pretrained(ready)
        files = [path.relative_to(ready) for path in ready.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "config.json"):  # that of the model last
            (folder / path).parent.mkdir(exist_ok=True)
            (ready / path).replace(folder / path)
        _write(folder, {**json.loads((folder / STATE).read_text()), "finished": True})
        _clear(folder)
    state.wait_for_everyone()
    return student


def _student(
    options: DistillArguments,
    teacher: Teacher,
    senses: SenseEmbeddingModel,
    backbone: Teacher | None,
    classifier: PreTrainedModel | None,
) -> SKDStudentPreTrainedModel:
    """What the arguments say to start from."""
    output = {"assignment": options.assignment, "residual": options.residual}
    if backbone:
        student = SKDStudentModel.from_backbone(backbone, senses, pooling=teacher.pooling, **output)
    else:
        student = SKDStudentModel.from_teacher(teacher, senses, options.layers or options.num_hidden_layers, **output)
    return HEADS[options.head].from_student(student, classifier) if options.head else student


def _begin(folder: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Notes the settings in the folder, or compares them with those that are there; whether the student is finished."""
    path = folder / STATE
    begun = json.loads(path.read_text()) if path.is_file() else None
    changed = (
        differences({name: value for name, value in begun.items() if name != "finished"}, settings) if begun else ""
    )
    if (changed or (folder / "config.json").is_file() and begun is None) and not overwrite:
        what = f"a run with other settings: {changed}" if begun else "a model that no sensedict distill has put there"
        raise ValueError(f"{folder} holds {what}; give the same, another folder, or --overwrite")
    if begun and not changed:
        # A checkpoint whose writing was interrupted lacks its last file.
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / "trainer_state.json").is_file():
                shutil.rmtree(checkpoint)
        if begun.get("finished"):
            _clear(folder)
        return bool(begun.get("finished"))
    path.unlink(missing_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, settings)
    return False


def _write(folder: Path, settings: dict[str, Any]) -> None:
    partial = folder / f"{STATE}.partial"
    partial.write_text(json.dumps(settings, indent=2))
    partial.replace(folder / STATE)  # whole or not at all


def _clear(folder: Path) -> None:
    """Removes what is there only to go on from: checkpoints, and the texts' token ids, which have no place in what is published."""
    for path in (folder / "_encoded", folder / "_student", *folder.glob("checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)
