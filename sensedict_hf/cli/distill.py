"""`sensedict distill`: teacher, dictionary and texts -> a student in a folder; goes on where it was stopped."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoModel, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..building.corpus import corpus_digest
from ..building.workspace import differences, locked
from ..data import FILES_HELP, read_dataset
from ..distillation.trainer import SKDTrainer
from ..distillation.training_args import SKDTrainingArguments
from ..models.configuration_sense_embedding import ASSIGNMENTS
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from ..models.modeling_skd_student import SKDStudentModel, SKDStudentPreTrainedModel, load_senses
from ..models.teachers import Teacher, load_teacher
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
# Options of earlier versions, and why they are gone.
REMOVED = {
    "frequency_power": "weighing positions by the frequency of their token made students worse",
    "dropout": "dropout while distilling made students worse; there is none now",
}
STATE = "_distilling.json"  # settings of the run in its folder, and whether it is finished


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
