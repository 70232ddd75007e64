"""The subcommands that make, change, check and show dictionaries: build, convert, merge, verify and inspect."""

import argparse
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..building.build import build_sense_dictionary
from ..building.dry_run import estimate_build
from ..building.inspection import check_has_senses, check_image, find_occurrences, plot_senses, report_senses
from ..building.manifest import read_manifest
from ..building.merging import merge_sense_dictionaries
from ..building.settings import BuildSettings
from ..data import read_dataset
from ..models.arguments import check_integer
from ..models.checkpoints import read_json
from ..models.configuration_layer_free import TABLE_DTYPES
from ..models.files import check_source, is_unfinished, reading
from ..models.hub import SensePreTrainedModel
from ..models.loading import load_senses, load_tokenizer
from ..models.model_card import describe
from ..models.modeling_layer_free import LayerFreeModel
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_causal_lm import SKDStudentForCausalLM
from ..models.modeling_skd_heads import SKDStudentForSequenceClassification, SKDStudentForTokenClassification
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import load_teacher
from ..models.validation import check_finite
from ..processes import process_state
from ..retrieval.index import SenseIndex
from ..retrieval.index_files import KIND
from .teacher import is_plain, loading


def build(options: argparse.Namespace) -> None:
    """Build a dictionary, in one process or in all those that a launcher started, and print its size."""
    if options.dry_run:
        _estimate(options)
        return
    state = process_state()
    # A wrong name or token is found out before the work.
    repository = None
    if options.push_to_hub and state.is_main_process:
        repository = HfApi().create_repo(options.push_to_hub, exist_ok=True).repo_id
    if not state.is_main_process:
        logging.getLogger("sensedict_hf").setLevel(logging.WARNING)
    settings = _settings(options)
    BuildSettings(**settings)  # a wrong number is found out before texts are read and the teacher is loaded
    # Only the main process reads the texts.
    texts = read_dataset(options.texts, streaming=options.streaming) if state.is_main_process else []
    device = state.device if state.num_processes > 1 else options.device
    senses = build_sense_dictionary(
        load_teacher(options.teacher, device=device, **loading(options)),
        texts,
        tokenizer=options.tokenizer,
        output_dir=options.output,
        overwrite=options.overwrite,
        keep_samples=options.keep_samples,
        update=options.update,
        max_length=options.max_length,
        truncation=options.truncation,
        device=options.device,
        text_column=options.text_column,
        trust_remote_code=options.trust_remote_code,
        **settings,
    )
    if state.is_main_process:
        config, seen = senses.config, int((senses.offsets.diff() > 0).sum())
        print(
            f"{config.num_senses:,} senses of {seen:,} tokens, "
            f"from {config.num_texts:,} texts with {config.num_tokens:,} tokens"
        )
        print(
            f"{megabytes(senses):.1f} MB, mean squared distortion {config.distortion:.4g}: saved in {options.output}"
        )
        if repository is not None:
            print(f"uploaded: {senses.push_to_hub(repository).commit_url}")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of :class:`BuildSettings` that the options give."""
    names = "method senses_per_token budget max_samples_per_token batch_size similarity layer key seed sample_dtype"
    given = {name: getattr(options, name) for name in (*names.split(), "prompt_senses")}
    return given | {"senses_dtype": options.dtype}


def _estimate(options: argparse.Namespace) -> None:
    """Print what a build would read, run and write.

    Raises:
        ValueError: The build would be refused, or updates a dictionary.
    """
    if options.update:
        raise ValueError("--dry-run does not know the samples of an earlier dictionary: leave out --update")
    settings = BuildSettings(**_settings(options))
    texts = read_dataset(options.texts, streaming=options.streaming)
    tokenizer = None
    if options.tokenizer:
        tokenizer = load_tokenizer(check_source(options.tokenizer), "", None, options.trust_remote_code)
    facts = estimate_build(
        load_teacher(options.teacher, device=options.device, **loading(options)),
        texts,
        Path(options.output),
        settings,
        tokenizer=tokenizer,
        text_column=options.text_column,
        max_length=options.max_length,
        truncation=options.truncation,
    )
    print_facts({"teacher": options.teacher, **facts, "output": options.output})


def convert(options: argparse.Namespace) -> None:
    """Store a dictionary, or a student's dictionary, in another dtype; the tables too of a student without layers."""
    trust = options.trust_remote_code
    with reading(check_source(options.senses)):
        config = AutoConfig.from_pretrained(options.senses, trust_remote_code=trust)
    if config.model_type == "skd_student" and config.text_config.model_type == "layer_free":
        _convert_tables(options)
        return
    before, dtype = load_senses(options.senses, trust_remote_code=trust), options.dtype
    if not before.config.num_senses:
        raise ValueError(f"{options.senses} has no dictionary: there is nothing to convert")
    converted = _rewrite([options.senses], options.output, trust, lambda senses: senses[0].to_dtype(dtype), dtype)
    print(
        f"{megabytes(before):.1f} MB in {before.config.senses_dtype}, "
        f"{megabytes(converted):.1f} MB in {options.dtype}: {options.output}"
    )


def _convert_tables(options: argparse.Namespace) -> None:
    """Store the tables and the dictionary of a student without layers in another dtype."""
    check_is_new(options.output)
    student = load_whole(options.senses, options.trust_remote_code)
    model = cast(SKDStudentModel, student.base_model)
    backbone = cast(LayerFreeModel, model.backbone)
    before, size = backbone.config.table_dtype, megabytes(backbone) + megabytes(model.senses)
    if options.dtype in TABLE_DTYPES:
        backbone.convert_tables(options.dtype)
    elif not model.senses.config.num_senses:
        raise ValueError(
            f"--dtype {options.dtype}: the tables of a student without layers are in {' or '.join(TABLE_DTYPES)}, and "
            "it has no dictionary; choose --dtype int8"
        )
    model.replace_senses(model.senses.to_dtype(options.dtype))
    student.save_pretrained(options.output)
    after = megabytes(backbone) + megabytes(model.senses)
    now = backbone.config.table_dtype
    print(f"{size:.1f} MB with tables in {before}, {after:.1f} MB with tables in {now}: {options.output}")


def merge(options: argparse.Namespace) -> None:
    """Merge several dictionaries, or make one dictionary or one student smaller."""
    merged = _rewrite(
        options.senses,
        options.output,
        options.trust_remote_code,
        lambda senses: merge_sense_dictionaries(senses, options.budget),
    )
    config = merged.config
    error = f"mean squared distortion {config.distortion:.4g} at most"
    print(f"{config.num_senses:,} senses, {error}: saved in {options.output}")


def _rewrite(
    sources: Sequence[str],
    output: str,
    trust_remote_code: bool,
    change: Callable[[list[SenseEmbeddingModel]], SenseEmbeddingModel],
    dtype: str | None = None,
) -> SenseEmbeddingModel:
    """Load dictionaries, change them and save the result. A single student is saved with its changed dictionary.

    Args:
        sources: Folders of dictionaries or students.
        output: A new or empty folder.
        trust_remote_code: Whether to run code from the sources.
        change: Makes one dictionary from the loaded ones.
        dtype: Dtype of the new one. None: as it was.

    Returns:
        The new dictionary.

    Raises:
        ValueError: The folder `output` is not empty, or a source holds no dictionary.
    """
    check_is_new(output)
    senses = change([load_senses(path, trust_remote_code=trust_remote_code) for path in sources])
    model = senses if len(sources) > 1 else load_whole(sources[0], trust_remote_code)
    if isinstance(model, SenseEmbeddingModel):
        senses.save_pretrained(output)
        return senses
    student = cast(SKDStudentModel, model.base_model)
    # Learned senses are in float32. In another dtype they are constants.
    student.config.learn_senses &= dtype in (None, "float32")
    student.replace_senses(senses)
    model.save_pretrained(output)
    return senses


def check_is_new(output: str) -> None:
    """Raise a ValueError if a folder for a result is not empty."""
    if os.path.isdir(output) and os.listdir(output) and not is_unfinished(Path(output)):
        raise ValueError(f"the folder {output} is not empty: choose another folder for the result")


def load_whole(source: str, trust_remote_code: bool) -> SensePreTrainedModel:
    """Load a dictionary, or a student with its head if it has one."""
    senses = load_senses(source, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if config.model_type == "sense_embedding":
        return senses
    # AutoModel would drop the head. The config names the class with the head.
    classes = (SKDStudentForCausalLM, SKDStudentForSequenceClassification, SKDStudentForTokenClassification)
    heads = {head.__name__: head for head in classes}
    student_class: Any = heads.get(next(iter(config.architectures or []), ""), AutoModel)
    return cast(SensePreTrainedModel, student_class.from_pretrained(source, trust_remote_code=trust_remote_code))


def info(options: argparse.Namespace) -> None:
    """Print what a folder or repository holds, as its config says; nothing else is loaded."""
    folder = Path(options.folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no model (there is no config.json): give the folder of a dictionary or student"
        )
    if (read_json(options.folder, "config.json") or {}).get("kind") == KIND:
        raise ValueError(f"{folder} holds a sense index: sensedict verify tells about it")
    with reading(options.folder):
        config = AutoConfig.from_pretrained(options.folder, trust_remote_code=options.trust_remote_code)
    if config.model_type not in ("sense_embedding", "skd_student"):
        raise ValueError(f"{options.folder} holds a {config.model_type} model: give a dictionary or a student")
    facts = {"kind": next(iter(config.architectures or []), config.model_type), **describe(config)}
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print_facts(facts)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one fact a line, in two columns. Numbers get commas; what is None is left out."""
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is not None:
            print(f"{name:{width}}  {f'{value:,}' if isinstance(value, (int, float)) else value}")


def verify(options: argparse.Namespace) -> None:
    """Check all numbers in a folder, its tokenizer and its manifest, and print what was checked.

    Raises:
        ValueError: Something is not valid.
    """
    folder = Path(options.folder)
    if (folder / "senses").is_dir():
        documents = len(SenseIndex.load(folder))
        print(f"an index of {documents:,} texts, with this dictionary:")
        folder /= "senses"
    model = load_whole(str(folder), options.trust_remote_code)
    numbers = 0
    for name, tensor in model.state_dict().items():
        numbers += tensor.shape.numel()
        try:
            check_finite(tensor)
        except ValueError as error:
            raise ValueError(f"{folder}: {name}: {error}") from error
    senses = next(part for part in model.modules() if isinstance(part, SenseEmbeddingModel))
    senses.config.check_tokenizer(model.tokenizer)
    manifest = read_manifest(folder)
    if manifest and (changed := manifest.changed_file(folder)):
        raise ValueError(f"{changed} is not the file that the build has written")
    files = f", {len(manifest.files)} files as the manifest tells" if manifest else ""
    print(f"{type(model).__name__}: {numbers:,} finite numbers, the tokenizer that it was made for{files}: {folder}")


def inspect(options: argparse.Namespace) -> None:
    """Print the senses of a token, and the contexts nearest to each sense if there are texts.

    Raises:
        ValueError: A picture is to be drawn without texts, or the teacher of the dictionary is not known.
    """
    if not options.texts:
        if options.plot:
            raise ValueError("--plot draws occurrences: give texts that have them with --texts")
        if options.teacher or not is_plain(options):
            raise ValueError("the teacher reads texts: give them with --texts, or leave out --teacher and its options")
    if options.plot:
        check_image(options.plot)
    check_integer("max_contexts", options.max_contexts, 0)
    senses = load_senses(options.senses, trust_remote_code=options.trust_remote_code)
    check_has_senses(senses, options.token)
    occurrences = None
    looked_at = " in the texts"
    if options.texts:
        # The texts are read again by the given teacher, or by the one that the dictionary names, in the same revision.
        name = options.teacher or senses.config.base_model_name_or_path or ""
        if not options.teacher and name.count("/") != 1:
            raise ValueError(
                f"the dictionary was built from {name!r}, which is no name on the Hub: give its folder with --teacher"
            )
        revision = None if options.teacher else senses.config.base_model_revision
        teacher = load_teacher(name, revision=revision, device=options.device, **loading(options))
        texts, settings = read_dataset(options.texts), {"text_column": options.text_column}
        settings["batch_size"] = options.batch_size
        occurrences = find_occurrences(senses, teacher, options.token, texts, **settings)
        if occurrences.total > len(occurrences.contexts):
            looked_at = f" in {len(occurrences.contexts):,} of {occurrences.total:,} places"
    if options.plot and occurrences:
        plot_senses(senses, {options.token: occurrences}, options.plot)
    reports = report_senses(senses, options.token, occurrences, max_contexts=options.max_contexts)
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2, ensure_ascii=False))
        return
    for report in reports:
        found = f", found {report.found} times{looked_at}" if occurrences else ""
        print(
            f"sense {report.sense_id}: {report.share:.1%} of {options.token!r} ({report.usage:,} occurrences){found}"
        )
        for context in report.contexts:
            print(f"    {context}")


def megabytes(model: PreTrainedModel) -> float:
    """Return the size of a model's parameters and buffers in MB."""
    return sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
