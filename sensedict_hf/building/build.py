"""Text and a teacher -> a sense dictionary: plan which occurrences to sample, gather their vectors, fit the senses.

Every stage leaves its results in a folder, so that any number of processes can take part and a killed build goes on where it was.
"""

import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..data import Texts
from ..models.configuration_sense_embedding import (
    METHODS,
    SAMPLE_DTYPES,
    SENSES_DTYPES,
    SIMILARITIES,
    SenseEmbeddingConfig,
)
from ..models.fingerprints import tokenizer_fingerprint
from ..models.hub import model_card
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.teachers import Teacher, load_teacher
from ..models.tokenizers import check_max_length, check_offsets
from .corpus import open_corpus, read_progress
from .fitting import fit_senses, write_senses
from .gathering import gather_samples, open_windows
from .planning import default_budget, plan_build
from .sampling import SamplingPlan, open_plan
from .tensor_files import TensorFile
from .workspace import differences, finished_build, locked, publish

# The first process may tokenize or plan for long while the others wait.
TIMEOUT = timedelta(days=1)


def process_state() -> PartialState:
    """The processes started by `accelerate launch` or `torchrun`, or this one alone."""
    # Without an accelerator, torchrun's processes are told apart only on request.
    cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=TIMEOUT)


def build_sense_dictionary(
    teacher: str | os.PathLike | PreTrainedModel | Teacher,
    texts: Texts,
    *,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    output_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    keep_samples: bool = False,
    update: str | os.PathLike | None = None,
    method: str | None = None,
    num_senses: int | None = None,
    budget: int | None = None,
    max_samples_per_token: int = 1000,
    similarity: str = "l2",
    layer: int = -1,
    max_length: int | None = None,
    truncation: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    text_column: str = "text",
    sample_dtype: str = "float16",
    senses_dtype: str = "float16",
    prompt_senses: bool = False,
) -> SenseEmbeddingModel:
    """Builds a sense dictionary: runs the teacher over text and clusters the vectors of each token.

    Under `accelerate launch` or `torchrun` all processes call it with the same arguments and share the work; only the first one reads
    the texts. The result is the same for any number of processes, at one batch size, kind of device and number of threads.

    Args:
        teacher: a name, a path, a model or a [`Teacher`]. texts: a list or iterable of strings, or a data set with a text column.
        tokenizer: whose tokens the dictionary is for, or its name; default: the teacher's. A token of another tokenizer has the mean of
            the vectors of the teacher's tokens that cover one of its characters, white space apart; special tokens before and behind a
            text have those of the teacher's. Both must be fast. (For a model that does not say where it comes from, this is taken for
            its own; else use [`load_teacher`].)
        output_dir: where the dictionary is saved. The same call goes on with a build that was interrupted there, and loads one that is
            finished. Default: a folder where the system keeps temporary files, and the dictionary is held in memory.
        overwrite: replaces another dictionary, another unfinished build or other files in `output_dir`.
        keep_samples: leaves the samples in `output_dir`, so that texts can be added later.
        update: a folder of a dictionary built with `keep_samples`: its samples and those of the new texts are drawn from together.
        method: `budget`, `num_senses` or `mcl`; default: by which of the two numbers is given, else `budget`. `mcl` is the rule of the
            paper, from the number of Markov clusters of each token; slow.
        num_senses: senses for every token (fewer where it has fewer distinct samples).
        budget: senses in all, placed over the tokens where they lower the squared distance most. Default: one sense for every token in
            the texts and one more for every four samples beyond that, but not more than six times the number of tokens.
        max_samples_per_token: occurrences of a token that are looked at, drawn uniformly from all.
        similarity: `l2`, `cosine` or `dot`; see [`assign_senses`].
        layer: index into the teacher's hidden states; -1: the last.
        max_length: longest input of the teacher in tokens. Longer texts are cut into overlapping windows, or,
            with `truncation`, cut off. Default: what the teacher takes, at most 512.
        batch_size: texts in a forward pass. seed: of the sample. device: default: a GPU if there is one.
        sample_dtype: `float16` or `float32`, how samples are held on disk while building. senses_dtype: `float16`, `bfloat16`,
            `float32` or `int8` (with a scale for every sense), of the finished table.
        prompt_senses: whether the tokens of the teacher's instruction and template, which have no part in a text's vector, get senses.

    Raises:
        ValueError: see the messages: bad settings, an empty corpus, a budget below one sense for each token in the texts, a
            tokenizer that does not belong to the model or hardly aligns with the teacher's, teacher vectors that are not finite, samples
            that the disk has no room for, or an output folder where something else was begun or is being built.
    """
    settings = {
        "method": _check_settings(method, num_senses, budget, similarity, sample_dtype, senses_dtype, seed),
        "num_senses": num_senses,
        "budget": budget,
        "max_samples_per_token": max_samples_per_token,
        "batch_size": batch_size,
        "similarity": similarity,
        "layer": layer,
        "seed": seed,
        "sample_dtype": sample_dtype,
        "senses_dtype": senses_dtype,
        "keep_samples": keep_samples,
        "prompt_senses": prompt_senses,
    }
    for name in ("num_senses", "budget", "max_samples_per_token", "batch_size"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"{name}={settings[name]}: it must be at least 1")
    state = process_state()
    if output_dir is None and (keep_samples or state.num_processes > 1):
        raise ValueError(
            "give output_dir: "
            + ("samples are kept there" if keep_samples else "several processes need a common folder")
        )
    if state.num_processes > 1 and (device is None or torch.device(device) == torch.device(state.device.type)):
        device = state.device  # each process has its own
    if update is not None and output_dir is not None and Path(update).resolve() == Path(output_dir).resolve():
        raise ValueError(
            f"update and output_dir are both {output_dir}: give the updated dictionary a folder of its own"
        )
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    is_nameless = isinstance(teacher, PreTrainedModel) and not teacher.name_or_path
    teacher = load_teacher(teacher, tokenizer=tokenizer if is_nameless else None, device=device)
    settings |= origin(
        teacher, tokenizer or teacher.tokenizer, check_max_length(max_length, teacher.max_window), truncation
    )
    if prompt_senses and teacher.prompt is not None:
        teacher = replace(teacher, prompt=replace(teacher.prompt, pooled="all"))
    if settings["teacher_tokenizer"] is None:
        tokenizer = teacher.tokenizer
    else:
        check_offsets(tokenizer, teacher.tokenizer)
    earlier = None if update is None else _open_earlier(Path(update), settings)

    with TemporaryDirectory(prefix="sensedict-") if output_dir is None else nullcontext(output_dir) as path:
        folder = Path(path)
        with locked(folder):
            begun = [None]
            if state.is_main_process:
                begun = [
                    plan_build(
                        folder, teacher, tokenizer, texts, text_column, settings, earlier and earlier[0], overwrite
                    )
                ]
            if broadcast_object_list(begun)[0]:
                _gather_and_fit(folder / "building", teacher, tokenizer, settings, earlier)
                if state.is_main_process:
                    _finish(folder, teacher, tokenizer, settings, earlier)
            state.wait_for_everyone()
        senses = SenseEmbeddingModel.from_pretrained(folder)
        if output_dir is None:
            senses._apply(torch.clone)  # else the tables are mapped from files that are about to go
    senses.tokenizer = tokenizer
    return senses


def _check_settings(
    method: str | None,
    num_senses: int | None,
    budget: int | None,
    similarity: str,
    sample_dtype: str,
    senses_dtype: str,
    seed: int,
) -> str:
    """The method, by its name or by the number that is given."""
    if num_senses is not None and budget is not None:
        raise ValueError(f"num_senses={num_senses} and budget={budget}: give one of them")
    implied = "num_senses" if num_senses is not None else "budget"
    for name, value, allowed in [
        ("method", method or implied, METHODS),
        ("similarity", similarity, SIMILARITIES),
        ("sample_dtype", sample_dtype, SAMPLE_DTYPES),
        ("senses_dtype", senses_dtype, SENSES_DTYPES),
    ]:
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")
    if (
        (method or implied) != implied
        and (num_senses or budget) is not None
        or method == "num_senses"
        and num_senses is None
    ):
        raise ValueError(
            f"method={method!r} with num_senses={num_senses}, budget={budget}: these do not belong together"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: it must be at least 0 and below 2**32")
    return method or implied


def origin(teacher: Teacher, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: bool) -> dict[str, Any]:
    """What, beside settings, decides what a teacher makes of texts. `teacher_tokenizer` is None if it is the dictionary's."""
    own, theirs = tokenizer_fingerprint(tokenizer), tokenizer_fingerprint(teacher.tokenizer)
    return {
        "prompt": teacher.prompt and asdict(teacher.prompt),
        "tokenizer": own,
        "teacher_tokenizer": None if theirs == own else theirs,
        "max_length": max_length,
        "truncation": truncation,
        "teacher": teacher.name,
        "teacher_revision": teacher.revision,
        "teacher_fingerprint": teacher.fingerprint() if PartialState().is_main_process else None,
        "device": teacher.device.type,
        "earlier": None,
        "generation": 0,
        **{package: version(package) for package in ("sensedict_hf", "tokenizers", "torch", "transformers")},
    }


def _open_earlier(folder: Path, settings: dict[str, Any]) -> tuple[TensorFile, SenseEmbeddingConfig]:
    """The samples and the config of the dictionary that is updated; notes it in the settings."""
    manifest = finished_build(folder, check=PartialState().is_main_process)
    if manifest is None or "samples.safetensors" not in manifest["files"]:
        raise ValueError(
            f"{folder} holds no dictionary with its samples: only one that was built with keep_samples can be updated"
        )
    names = ("tokenizer", "teacher_tokenizer", "teacher_fingerprint", "layer", "max_length", "truncation")
    names += ("max_samples_per_token", "sample_dtype", "prompt", "prompt_senses")
    if PartialState().is_main_process:
        changed = differences(
            *({name: values.get(name) for name in names} for values in (manifest["settings"], settings))
        )
        if changed:
            raise ValueError(
                f"{folder} was built with other settings: {changed}; new samples would not fit the old ones"
            )
    settings["earlier"] = manifest["files"]["samples.safetensors"]["sha256"]
    settings["generation"] = manifest["settings"]["generation"] + 1
    return TensorFile(folder / "samples.safetensors"), SenseEmbeddingConfig.from_pretrained(folder)


def _gather_and_fit(
    stages: Path,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    earlier: tuple[TensorFile, SenseEmbeddingConfig] | None,
) -> None:
    """The stages that all processes share."""
    plan = open_plan(stages / "plan.safetensors")
    dtype = SAMPLE_DTYPES[settings["sample_dtype"]]
    limits = [
        torch.finfo(kind).max for kind in (dtype, SENSES_DTYPES[settings["senses_dtype"]]) if kind.is_floating_point
    ]
    gather_samples(
        teacher,
        open_corpus(
            stages / "corpus", tokenizer, teacher.tokenizer if settings["teacher_tokenizer"] else None, teacher.prompt
        ),
        plan,
        open_windows(stages),
        stages,
        layer=settings["layer"],
        batch_size=settings["batch_size"],
        dtype=dtype,
        largest=min(limits),
        earlier=earlier and earlier[0],
    )
    fit_senses(
        TensorFile(stages / "samples.safetensors"),
        stages,
        senses_per_token=settings["num_senses"],
        budget=_budget(plan, settings),
        similarity=settings["similarity"],
        device=teacher.device,
    )


def _budget(plan: SamplingPlan, settings: dict[str, Any]) -> int | None:
    """The number of senses in all; None if the method is another."""
    if settings["method"] != "budget" or settings["budget"] is not None:
        return settings["budget"]
    return default_budget(int((plan.counts > 0).sum()), len(plan.positions))


def _finish(
    folder: Path,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    earlier: tuple[TensorFile, SenseEmbeddingConfig] | None,
) -> None:
    """The last stage: the dictionary with all that belongs to it, put in its place at once."""
    stages = folder / "building"
    ready = stages / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    samples, plan, progress = (
        stages / "samples.safetensors",
        open_plan(stages / "plan.safetensors"),
        read_progress(stages / "corpus"),
    )
    store = TensorFile(samples)
    dtype = SENSES_DTYPES[settings["senses_dtype"]]
    num_senses, distortion = write_senses(stages, store, ready / "model.safetensors", dtype)
    budget = _budget(plan, settings)
    config = SenseEmbeddingConfig(
        architectures=["SenseEmbeddingModel"],
        vocab_size=len(plan.counts),
        hidden_size=store["samples"].shape[1],
        num_senses=num_senses,
        senses_dtype=settings["senses_dtype"],
        similarity=settings["similarity"],
        distortion=distortion,
        base_model_name_or_path=teacher.name,
        base_model_revision=teacher.revision,
        base_model_fingerprint=settings["teacher_fingerprint"],
        layer=settings["layer"],
        tokenizer_fingerprint=settings["tokenizer"],
        teacher_tokenizer_fingerprint=settings["teacher_tokenizer"],
        method=settings["method"],
        method_value=settings["num_senses"] or budget,
        max_samples_per_token=settings["max_samples_per_token"],
        window_length=settings["max_length"],
        prompt=settings["prompt"],
        attention=teacher.attention,
        seed=settings["seed"],
        num_texts=progress.texts + (earlier[1].num_texts if earlier else 0),
        num_tokens=int(plan.counts.sum()),
        sensedict_version=settings["sensedict_hf"],
    )
    config.dtype = dtype if dtype.is_floating_point else torch.float32  # as of the scales
    config.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    model_card(config).save(ready / "README.md")
    if settings["keep_samples"]:
        try:
            os.link(samples, ready / samples.name)
        except OSError:  # a file system without links
            shutil.copyfile(samples, ready / samples.name)
    publish(folder, {**settings, "corpus": progress.sha256})
