"""Build a sense dictionary: plan which occurrences to sample, gather their vectors, and fit the senses.

Every stage leaves its results in a folder. So any number of processes can take part, and a killed build continues
where it stopped.
"""

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import Texts, dataset_names, with_datasets
from ..models.arguments import check_device, check_flag, check_folder, check_integer, check_string
from ..models.configuration_sense_embedding import SAMPLE_DTYPES, SENSES_DTYPES, SenseEmbeddingConfig
from ..models.files import check_source
from ..models.folder_code import auto_map, write_code
from ..models.loading import load_tokenizer
from ..models.model_card import model_card
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.teachers import Teacher, load_teacher
from ..models.tokenization import check_max_length
from ..processes import broadcast, common_folder, process_state
from .corpus import open_corpus, read_progress
from .fitting import fit_senses, write_senses
from .gathering import gather_samples, open_windows
from .planning import check_key, plan_build, total_senses
from .sampling import open_plan
from .settings import BuildSettings, Source
from .tensor_files import Tensors
from .workspace import BuildFolder, differences

# An update needs these settings of the earlier dictionary: with others, new samples would not fit the old ones.
SAME_SAMPLES = (
    "tokenizer",
    "teacher_tokenizer",
    "teacher_fingerprint",
    "layer",
    "key",
    "max_length",
    "truncation",
    "max_samples_per_token",
    "sample_dtype",
    "prompt",
    "prompt_senses",
)


class Earlier(NamedTuple):
    """The dictionary that is updated.

    Attributes:
        samples: Its samples.
        config: Its config.
        sha256: SHA-256 of the file of samples.
        generation: How many updates led to it; 0 if it was built without `update`.
    """

    samples: Tensors
    config: SenseEmbeddingConfig
    sha256: str
    generation: int


def build_sense_dictionary(
    teacher: str | os.PathLike[str] | torch.nn.Module | Teacher,
    texts: Texts,
    *,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    keep_samples: bool = False,
    update: str | os.PathLike[str] | None = None,
    method: str | None = None,
    senses_per_token: int | None = None,
    budget: int | None = None,
    max_samples_per_token: int = 1000,
    similarity: str = "l2",
    layer: int = -1,
    key: str = "input",
    max_length: int | None = None,
    truncation: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    text_column: str = "text",
    sample_dtype: str = "float16",
    senses_dtype: str = "float16",
    prompt_senses: bool = False,
    trust_remote_code: bool = False,
) -> SenseEmbeddingModel:
    """Build a sense dictionary: run the teacher over texts and cluster the vectors of each token.

    Under `accelerate launch` or `torchrun` all processes must call it with the same arguments; they share the work.
    Only the first process reads the texts. The number of processes does not change the result; the batch size, the
    kind of device and the number of threads may.

    Args:
        teacher: A name, a path, a loaded model of transformers, or a :class:`Teacher`.
        texts: A list or iterable of strings, or a dataset with a column of texts.
        tokenizer: Tokenizer whose tokens get senses, or its name or path. Default: the teacher's. The vector of
            another tokenizer's token is the mean over the teacher's tokens that share a character with it (white space
            does not count). Special tokens around a text get the vectors of the teacher's special tokens. Both
            tokenizers must be fast ones. With a loaded model that has no name this is its own tokenizer. To give both,
            load the model with :func:`load_teacher`.
        output_dir: Folder for the dictionary. The same call continues an interrupted build there, and loads a finished
            one. Default: a temporary folder; the dictionary is held in memory.
        overwrite: Whether to replace another dictionary, an unfinished build or other files in `output_dir`.
        keep_samples: Whether to leave the samples in `output_dir`, so that texts can be added later.
        update: Folder of a dictionary that was built with `keep_samples`. The new dictionary is built from its texts
            and the new ones: samples are drawn uniformly from both.
        method: How the number of senses is set: `budget`, `senses_per_token`, or `mcl`, the rule of the paper, which
            counts the Markov clusters of each token and is slow. Default: the one whose number is given, else
            `budget`.
        senses_per_token: Senses for every token. A token with fewer distinct samples gets fewer.
        budget: Senses in all. They are given to the tokens where they lower the squared distance most. Default: one
            sense for every token in the texts, and one more for every four further samples, at most six times the
            number of tokens.
        max_samples_per_token: The most occurrences of a token that are sampled, uniformly from all.
        similarity: How a vector is compared with a sense: `l2`, `cosine` or `dot`, see :func:`assign_senses`.
        layer: Index into the teacher's hidden states; -1 is the last.
        key: Which token a hidden state belongs to: `input`, the token at its position, or `next`, the token after it,
            which the state predicts. `next` needs a causal teacher, and texts of two tokens or more.
        max_length: Longest input of the teacher in tokens. Longer texts are cut into overlapping windows. Default:
            what the teacher takes, at most 512.
        truncation: Whether longer texts are cut off instead.
        batch_size: Windows of text in a forward pass of the teacher.
        seed: Seed of the sample, at least 0 and below 2**32.
        device: Device of the teacher. Default: a GPU if there is one; a loaded model stays where it is.
        text_column: Column that holds the texts, if `texts` is a dataset.
        sample_dtype: How samples are stored while building: `float16` or `float32`.
        senses_dtype: How the senses are stored in the dictionary: `float16`, `bfloat16`, `float32`, or `int8` with a
            scale for every sense.
        prompt_senses: Whether the tokens of the teacher's instruction and template get senses too. They do not count
            in the vector of a text.
        trust_remote_code: Whether to run code from the folders or repositories of teacher and tokenizer.

    Returns:
        The dictionary.

    Raises:
        ValueError: An argument is out of range, or two arguments contradict each other.
        ValueError: The corpus is empty, or the budget is below one sense for each token in it.
        ValueError: `key="next"` with a teacher that is not causal, or for the tokens of another tokenizer.
        ValueError: A tokenizer does not belong to its model, or hardly any of its tokens align with the teacher's.
        ValueError: The teacher yields vectors that are not finite, or too large for the dtypes.
        ValueError: There is not enough room on the disk or in memory.
        ValueError: `output_dir` holds something else, or another process is working in it.

    Example:
        >>> from sensedict_hf import build_sense_dictionary
        >>> dictionary = build_sense_dictionary(teacher, texts[:20], senses_per_token=2, output_dir="senses")
        >>> len(dictionary.senses_of("the"))
        2
    """
    # Check what can be checked before the teacher is loaded.
    settings = BuildSettings(
        method=method,
        senses_per_token=senses_per_token,
        budget=budget,
        max_samples_per_token=max_samples_per_token,
        batch_size=batch_size,
        similarity=similarity,
        layer=layer,
        key=key,
        seed=seed,
        sample_dtype=sample_dtype,
        senses_dtype=senses_dtype,
        keep_samples=keep_samples,
        prompt_senses=prompt_senses,
    )
    if max_length is not None:
        max_length = check_integer("max_length", max_length, 1)
    truncation, overwrite = check_flag("truncation", truncation), check_flag("overwrite", overwrite)
    check_string("text_column", text_column)
    device = check_device("device", device)
    for name, path in (("output_dir", output_dir), ("update", update)):
        if path is not None:
            check_folder(name, path)
    state = process_state()
    if common_folder(output_dir) is None and settings.keep_samples:
        raise ValueError("give output_dir: samples are kept there")
    if update is not None and output_dir is not None and Path(update).resolve() == Path(output_dir).resolve():
        raise ValueError(
            f"update and output_dir are both {output_dir}: give the updated dictionary a folder of its own"
        )

    # Load the teacher, on each process' own device, and the tokenizer.
    if state.num_processes > 1 and (device is None or device == torch.device(state.device.type)):
        device = state.device
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer(check_source(tokenizer), "", None, trust_remote_code)
    is_nameless = isinstance(teacher, PreTrainedModel) and not teacher.name_or_path
    teacher = load_teacher(
        teacher, tokenizer=tokenizer if is_nameless else None, device=device, trust_remote_code=trust_remote_code
    )
    source = Source.of(
        teacher,
        tokenizer,
        max_length=check_max_length(max_length, teacher.max_window),
        truncation=truncation,
        prompt_senses=settings.prompt_senses,
    )

    check_key(settings.key, source)

    # Open the dictionary that is updated.
    earlier = None
    if update is not None:
        earlier = _open_earlier(Path(update), settings, source)
        origin = replace(source.origin, earlier=earlier.sha256, generation=earlier.generation + 1)
        source = replace(source, origin=origin)

    # Build, in a temporary folder if none was given.
    with TemporaryDirectory(prefix="sensedict-") if output_dir is None else nullcontext(output_dir) as path:
        folder = BuildFolder(Path(path), settings={**settings.record(), **source.origin.record()}, overwrite=overwrite)
        samples = None if earlier is None else earlier.samples
        with folder.locked():
            if broadcast(lambda: plan_build(folder, source, settings, texts, text_column, samples)):
                _gather_and_fit(folder.stages, source, settings, samples)
                if state.is_main_process:
                    _finish(folder, source, settings, dataset_names(texts), earlier)
            state.wait_for_everyone()
        senses = SenseEmbeddingModel.from_pretrained(path, trust_remote_code=trust_remote_code)
        if output_dir is None:
            senses._apply(torch.clone)  # the tables are mapped from files that are about to be removed
    senses.tokenizer = source.tokenizer
    return senses


def _open_earlier(folder: Path, settings: BuildSettings, source: Source) -> Earlier:
    """Open the dictionary that is updated.

    Raises:
        ValueError: The folder holds no dictionary with its samples, or one that was built with other settings.
    """
    is_main_process = PartialState().is_main_process
    manifest = BuildFolder(folder).manifest(check=is_main_process)
    if manifest is None or "samples.safetensors" not in manifest.files:
        raise ValueError(
            f"{folder} holds no dictionary with its samples: only one that was built with keep_samples can be updated"
        )
    if is_main_process:
        records = manifest.settings, {**settings.record(), **source.origin.record()}
        changed = differences(*({name: record.get(name) for name in SAME_SAMPLES} for record in records))
        if changed:
            raise ValueError(
                f"{folder} was built with other settings: {changed}; new samples would not fit the old ones"
            )
    return Earlier(
        samples=load_file(folder / "samples.safetensors"),
        config=SenseEmbeddingConfig.from_pretrained(folder),
        sha256=manifest.files["samples.safetensors"]["sha256"],
        generation=check_integer("generation", manifest.settings.get("generation"), 0),
    )


def _gather_and_fit(stages: Path, source: Source, settings: BuildSettings, earlier: Tensors | None) -> None:
    """Run the stages that all processes share: gather the teacher's vectors, then fit the senses."""
    teacher, plan = source.teacher, open_plan(stages / "plan.safetensors")
    sample_dtype = SAMPLE_DTYPES[settings.sample_dtype]
    # A value must fit the samples and the finished table; int8 has a scale for every sense, so any value fits.
    dtypes = [dtype for dtype in (sample_dtype, SENSES_DTYPES[settings.senses_dtype]) if dtype.is_floating_point]
    corpus = open_corpus(stages / "corpus", source.tokenizer, source.teacher_tokenizer, teacher.prompt)
    gather_samples(
        teacher,
        corpus.keyed_by(settings.key),
        plan,
        open_windows(stages),
        stages,
        layer=settings.layer,
        batch_size=settings.batch_size,
        dtype=sample_dtype,
        largest=min(torch.finfo(dtype).max for dtype in dtypes),
        earlier=earlier,
    )
    fit_senses(
        load_file(stages / "samples.safetensors"),
        stages,
        senses_per_token=settings.senses_per_token,
        budget=total_senses(settings, plan.counts),
        similarity=settings.similarity,
        device=teacher.device,
    )


def _finish(
    folder: BuildFolder, source: Source, settings: BuildSettings, datasets: list[str], earlier: Earlier | None
) -> None:
    """Run the last stage: write the dictionary with config, tokenizer and card, and move them into the folder.

    Args:
        folder: The folder of the build.
        source: The teacher and the tokenizer.
        settings: The settings of the build.
        datasets: Names of the datasets on the Hub that the texts come from.
        earlier: The dictionary that is updated, if any.
    """
    stages, ready, origin = folder.stages, folder.ready, source.origin
    shutil.rmtree(ready, ignore_errors=True)  # of an earlier attempt
    ready.mkdir()

    # The table of senses.
    samples = stages / "samples.safetensors"
    store, plan = load_file(samples), open_plan(stages / "plan.safetensors")
    dtype = SENSES_DTYPES[settings.senses_dtype]
    num_senses, distortion = write_senses(stages, store, ready / "model.safetensors", dtype)

    # The config, the tokenizer and the card.
    progress = read_progress(stages / "corpus")
    budget = total_senses(settings, plan.counts)
    before = None if earlier is None else earlier.config.card_data
    config = SenseEmbeddingConfig(
        architectures=["SenseEmbeddingModel"],
        vocab_size=len(plan.counts),
        hidden_size=store["samples"].shape[1],
        num_senses=num_senses,
        senses_dtype=settings.senses_dtype,
        similarity=settings.similarity,
        distortion=distortion,
        base_model_name_or_path=origin.teacher,
        base_model_revision=origin.teacher_revision,
        base_model_fingerprint=origin.teacher_fingerprint,
        layer=settings.layer,
        key=settings.key,
        tokenizer_fingerprint=origin.tokenizer,
        teacher_tokenizer_fingerprint=origin.teacher_tokenizer,
        method=settings.method,
        method_value=settings.senses_per_token or budget,
        max_samples_per_token=settings.max_samples_per_token,
        window_length=origin.max_length,
        prompt=origin.prompt,
        attention="causal" if settings.key == "next" else source.teacher.attention,
        seed=settings.seed,
        num_texts=progress.texts + (0 if earlier is None else earlier.config.num_texts or 0),
        num_tokens=int(plan.counts.sum()),
        sensedict_version=origin.versions["sensedict_hf"],
        card_data=with_datasets(source.teacher.card_data | (before or {}), datasets),
    )
    config.dtype = dtype if dtype.is_floating_point else torch.float32  # an int8 table has the dtype of its scales
    config.auto_map = auto_map(config.model_type)
    config.save_pretrained(ready)
    write_code(ready, config.model_type)
    source.tokenizer.save_pretrained(ready)
    model_card(config, ready).save(ready / "README.md")

    # The samples, if they are kept.
    if settings.keep_samples:
        try:
            os.link(samples, ready / samples.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(samples, ready / samples.name)
    folder.publish(progress.sha256)
