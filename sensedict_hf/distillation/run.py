"""Distils a student into a folder. The same call continues a run that was interrupted."""

import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from datasets import IterableDataset
from torch import nn
from transformers import AutoModel, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..building.corpus import corpus_digest
from ..data import Texts, dataset_names, with_datasets
from ..models.arguments import check_flags, check_folder, check_kind, check_string
from ..models.loading import check_dictionary
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_base import SKDStudentPreTrainedModel
from ..models.teachers import Teacher
from ..processes import broadcast, locked
from .checks import check_datasets, each
from .layer_free import encode_training_vectors
from .run_folder import RunFolder
from .start import CAUSAL_LM, HEADS, Models, StudentStart, source_name
from .trainer import SKDTrainer
from .training_args import SKDTrainingArguments
from .uploading import create_repository

logger = logging.get_logger(__name__)
# Settings of `Trainer` that do not change the weights, by the beginning of their names.
INDECISIVE = tuple(
    "output_dir eval_ per_device_eval do_ log save_ report_to run_name disable_tqdm hub_ push_to_hub project trackio "
    "dataloader_num_workers dataloader_p ddp_ use_cpu debug".split()
)
# Arguments of `load_teacher` that the state records under their own names.
LOADING = ("bidirectional", "adapters", "pooling", "instruction", "template", "quantization_config")


def distill_student(
    teacher: str | os.PathLike[str] | nn.Module | Teacher,
    senses: str | os.PathLike[str] | SenseEmbeddingModel | None,
    texts: Texts,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    args: SKDTrainingArguments | None = None,
    num_hidden_layers: int | None = None,
    layers: Sequence[int] | None = None,
    backbone: str | os.PathLike[str] | PreTrainedModel | Teacher | None = None,
    adopt_tokenizer: bool = False,
    head: str | None = None,
    assignment: str | None = None,
    residual: float | None = None,
    eval_texts: Texts | dict[str, Texts] | None = None,
    text_column: str = "text",
    teacher_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    recorded: Mapping[str, Any] | None = None,
) -> SKDStudentPreTrainedModel:
    """Distil a student into a folder; continue there if an earlier call was interrupted.

    The folder holds checkpoints and encoded texts while the student is trained, and the student when it is finished.
    The same call then loads the student. A call with other settings or texts is refused. With `args.push_to_hub` the
    finished student is uploaded. `sensedict distill` does the same from the command line. For a single training
    without a folder to continue in, use :class:`SKDTrainer`.

    Args:
        teacher: A name, a folder, a model or a :class:`Teacher`. With `head` a name, a folder or a fine-tuned model.
        senses: The teacher's dictionary: a model, a folder or a name. The dictionary inside a student can be named
            too. None: the student has no layers and needs none, or it generates text, and no senses guide its
            training.
        texts: A list of strings, or a dataset with a text column; :func:`read_dataset` reads files. A streamed data
            set needs `args.max_steps`.
        output_dir: Folder of the student, for a training with the default settings. Give this or `args`.
        args: Settings of the training; its `output_dir` is the folder of the student. Checkpoints are written as its
            `save_strategy` says.
        num_hidden_layers: Number of layers of the teacher that the student starts from: the first ones and the last.
            0 makes a student without layers. Default: 2.
        layers: Indices of the teacher's layers that the student starts from instead.
        backbone: Another model that the student starts from instead: a name, a folder, a model or a :class:`Teacher`.
            It must have the dictionary's tokenizer.
        adopt_tokenizer: Whether the backbone gets the dictionary's tokenizer, see :func:`adopt_tokenizer`.
        head: `sequence_classification` or `token_classification` copies the head of a fine-tuned teacher to the
            student and freezes it. `causal_lm` makes a student that generates text, with the head of its teacher,
            which is trained too.
        assignment: What the student returns: `hard`, `soft` or `none`. Default: by the objective, see
            :class:`SKDStudentConfig`.
        residual: Share of the student's own vectors in what it returns, from 0 to 1. Default: by the objective.
        eval_texts: Texts to evaluate on, when `args.eval_strategy` says.
        text_column: Name of the text column.
        teacher_options: Arguments of :func:`load_teacher` for a teacher that is a name or a folder. `bidirectional`
            and `trust_remote_code` hold for the backbone too, `trust_remote_code` for everything that is loaded.
        overwrite: Whether to replace another student or another unfinished run in the folder.
        recorded: Further settings to record in the folder, as JSON values: a later call with others is refused. Record
            the origin of streamed texts here, as they have no digest.

    Returns:
        The student in evaluation mode; with `head` a task model.

    Raises:
        ValueError: The folder holds another student or a run with other settings, another process works in it,
            arguments exclude each other, or :class:`SKDTrainer` refuses them.

    Example:
        >>> from sensedict_hf import SKDTrainingArguments, distill_student
        >>> args = SKDTrainingArguments("skd", max_steps=2, save_strategy="no", report_to="none", disable_tqdm=True)
        >>> student = distill_student(teacher, senses, texts[:8], args=args)  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> student.encode(texts[:2]).shape
        torch.Size([2, 384])
    """
    # Check what can be checked before anything is loaded.
    if (output_dir is None) == (args is None):
        raise ValueError("give either output_dir, for the default settings, or args, which have an output_dir")
    if args is None:
        check_folder("output_dir", output_dir)
        args = SKDTrainingArguments(os.fspath(cast(str, output_dir)))
    check_kind("args", args, SKDTrainingArguments, "SKDTrainingArguments")
    check_flags(overwrite=overwrite, adopt_tokenizer=adopt_tokenizer)
    check_string("text_column", text_column)
    for name, given in (("teacher_options", teacher_options), ("recorded", recorded)):
        check_kind(name, given, (Mapping, type(None)), "a dictionary, or None")
    if senses is not None and not isinstance(senses, (str, os.PathLike)):
        check_dictionary(senses)
    # The trainer changes its settings: work on a copy, so that the same call can be repeated.
    args = copy.copy(args)
    args.accelerator_config = copy.copy(args.accelerator_config)
    options = dict(teacher_options or {})
    start = StudentStart(num_hidden_layers, layers, backbone, adopt_tokenizer, head, assignment, residual)
    start.check(options, has_senses=senses is not None)
    _check_settings(args, texts, eval_texts)
    state, folder = PartialState(), RunFolder(Path(str(args.output_dir)))
    repository = create_repository(args) if args.push_to_hub and state.is_main_process else None
    args.push_to_hub = False  # the trainer would upload before the student is safe in its folder
    with locked(folder.path):
        # Load the models, which decide what the settings are.
        models = start.load(teacher, senses, options, args.device)
        is_layer_free = start.is_layer_free(models.backbone)
        if head == CAUSAL_LM:
            args = args.for_generation(has_senses=models.senses is not None)
        if is_layer_free:
            args = args.for_layer_free()

        # Begin, or find what an earlier call has done; the first process decides for all.
        def begin(models: Models) -> bool:
            names = {"teacher": source_name(teacher), "senses": source_name(senses), "texts": None}
            settings = {**names, **start.record(), **_record_loading(options), **args.to_dict()}
            settings |= {"text_column": text_column, "streaming": isinstance(texts, IterableDataset)}
            settings = {name: value for name, value in settings.items() if not name.startswith(INDECISIVE)}
            settings |= {"processes": state.num_processes, **(recorded or {})}
            prompt = models.teacher.prompt
            settings |= {"prompt": prompt and asdict(prompt), "teacher_pooling": models.teacher.pooling}
            settings |= {"teacher_fingerprint": models.teacher.fingerprint()}
            settings |= {"senses_fingerprint": models.senses and models.senses.fingerprint()}
            settings |= {"backbone_fingerprint": models.backbone and models.backbone.fingerprint()}
            settings |= {"least_steps": args.least_steps} if is_layer_free else {}
            if args.load_best_model_at_end:  # what is evaluated then decides the weights
                settings["eval_corpus"] = _digests(eval_texts, text_column)
                when = ("eval_strategy", "eval_steps", "save_strategy", "save_steps")
                settings |= {name: getattr(args, name) for name in when}
            settings["corpus"] = None if settings["streaming"] else corpus_digest(texts, text_column)
            return folder.begin(json.loads(json.dumps(settings, default=str)), overwrite)

        if broadcast(partial(begin, models)):
            logger.info(f"{folder.path} holds this student already")
            trust = bool(options.get("trust_remote_code"))
            student = (HEADS[head] if head else AutoModel).from_pretrained(folder.path, trust_remote_code=trust)
            _upload(student, repository, args)
            return student

        # Make the student and encode the texts. The seed comes first, as a projection is random.
        set_seed(args.seed)
        try:
            data: dict[str, Any] = {"train_dataset": texts, "eval_dataset": eval_texts, "text_column": text_column}
            vectors = None
            if models.senses is None and head != CAUSAL_LM:
                check_datasets(args, texts, eval_texts)  # before the teacher runs
                vectors = encode_training_vectors(models.teacher, texts, args, text_column)
                data["train_dataset"] = vectors
            student = start.make(models, vectors)
            if vectors is not None:
                own = student.config.sense_config
                own.card_data = with_datasets(own.card_data, dataset_names(texts))
            taught: dict[str, Any] = {"teacher": models.teacher}
            if head == CAUSAL_LM:
                taught = {"teacher": models.with_head, "senses": models.senses}
            trainer = SKDTrainer(student, args, **taught, **data)
        except ValueError:
            if state.is_main_process:
                folder.forget()
            raise
        del models, taught  # the trainer frees the teacher if it is not needed any more

        # Train.
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder.path)))
        if state.is_main_process:
            folder.finish(student)
            _upload(student, repository, args)
        state.wait_for_everyone()
        return student.eval()


def _digests(texts: Texts | dict[str, Texts] | None, text_column: str) -> dict[str, str]:
    """Return a digest of each of the texts to evaluate on, but for streams, which are read once."""
    parts = texts if isinstance(texts, dict) else {} if texts is None else {"eval": texts}
    return {
        name: corpus_digest(part, text_column) for name, part in parts.items() if not isinstance(part, IterableDataset)
    }


def _upload(student: SKDStudentPreTrainedModel, repository: str | None, args: SKDTrainingArguments) -> None:
    """Upload a finished student, if there is a repository for it."""
    if repository is not None:
        student.push_to_hub(repository, token=args.hub_token, revision=args.hub_revision)


def _check_settings(args: SKDTrainingArguments, texts: Texts, eval_texts: Texts | dict[str, Texts] | None) -> None:
    """Raise a ValueError for settings of the training that do not work here."""
    if args.save_only_model and args.save_strategy != "no":
        raise ValueError(
            "save_only_model=True: an interrupted run could not go on without its optimizer; leave it out"
        )
    if args.resume_from_checkpoint:
        raise ValueError(
            "resume_from_checkpoint is found in the output folder: leave it out, and repeat the same call or command"
        )
    if eval_texts is not None and args.eval_strategy == "no":
        raise ValueError("eval_texts are never read with eval_strategy='no': set eval_strategy to epoch or steps")
    check_kind("texts", texts, Iterable, "a list of strings, or a dataset")
    for name, given in (("texts", texts), *(("eval_texts", part) for part in each(eval_texts))):
        if isinstance(given, Iterator):
            raise ValueError(f"{name} is a {type(given).__name__}, which can be read only once: pass a list")


def _record_loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the state tells of the arguments of :func:`load_teacher`."""
    record = {name: options.get(name) for name in LOADING}
    given, dtype = record["adapters"] or [], options.get("dtype")
    adapters = [given] if isinstance(given, (str, os.PathLike)) else given
    record["adapters"] = [source_name(adapter) for adapter in adapters]
    record["teacher_dtype"] = dtype and str(dtype).removeprefix("torch.")
    return record | {"trust_remote_code": bool(options.get("trust_remote_code"))}
