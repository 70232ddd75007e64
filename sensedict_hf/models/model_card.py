"""The card of a saved model: the README.md that the Hub shows."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .card_template import (
    BIAS,
    CODE,
    CUT,
    CUT_ALWAYS,
    KINDS,
    NO_FORM,
    PACKAGE,
    SENTENCE_TRANSFORMER,
    SENTENCES,
    TEMPLATE,
    Kind,
)
from .checkpoints import CARD_FIELDS
from .configuration_sense_embedding import SenseEmbeddingConfig
from .configuration_skd_student import SKDStudentConfig
from .encoding import LEARNED
from .folder_code import has_code
from .sentence_files import opens_in_sentence_transformers

# What a student returns for each token, by assignment.
RETURNED = {
    "none": "its own vectors",
    "hard": "the best of the teacher's senses for each token",
    "soft": "for each token the mean of the teacher's senses, weighted by their probabilities",
}
GENERATOR = "SKDStudentForCausalLM"
TAKEN_OVER = (*CARD_FIELDS, "datasets")
MAX_LABELS = 20


def model_card(
    config: PreTrainedConfig,
    folder: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Make a model card from a config. What the config does not know is left out.

    Args:
        config: Config of a :class:`SenseEmbeddingModel` or a student.
        folder: Where the model is saved. The card says how large it is, and how it loads from there. None: it is saved
            with its code, and sentence-transformers opens it if it returns vectors of texts.
        name: The repository that the examples in the card load. None: a placeholder.
        license: Licence, as an identifier of the Hub such as `mit`. None: that of the teacher, if it is known.

    Returns:
        The card, with the metadata that the Hub reads.
    """
    any_config: Any = config  # dictionaries and students have different fields
    is_student = config.model_type == "skd_student"
    senses = any_config.sense_config if is_student else any_config
    head, teacher = _head(config), senses.base_model_name_or_path
    kind, encodes = KINDS[head or config.model_type], is_student and head is None
    opens = encodes and (folder is None or opens_in_sentence_transformers(folder))

    # What it is in a sentence, everything else that is known in a table, and what it cannot do.
    summary = f"A sense dictionary: for every token a few vectors that stand for all those that {teacher} gives it."
    if is_student:
        summary = _summarize_student(any_config, teacher, head)
    facts = describe(config)
    if folder is not None:
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        facts["size"] = f"{size / 1e6:,.1f} MB of weights"
    limits = [*kind.limits, BIAS]
    if encodes:
        cut = CUT_ALWAYS if any_config.pooling == LEARNED else CUT
        limits += [cut.format(any_config.max_seq_length)] + ([] if opens else [NO_FORM])

    # Metadata, which the Hub reads, with what is taken over from the teacher's card. A teacher that does not look like
    # a repository cannot be linked.
    known: dict[str, Any] = {name: value for name, value in (senses.card_data or {}).items() if name in TAKEN_OVER}
    terms = _terms(known, license)
    repository = teacher if teacher and re.fullmatch(r"[\w.-]+/[\w.-]+", teacher) else None
    link = known.get("license_link")
    if link and "://" not in link:  # a file next to the teacher's card
        known["license_link"] = f"https://huggingface.co/{repository}/blob/main/{link}" if repository else None
    if license is not None or "license" not in known:
        known |= {"license": license or "unknown", "license_name": None, "license_link": None}
    data = ModelCardData(
        **known,
        base_model=repository,
        library_name="transformers",  # another one, and `pipeline` would not load it by its name alone
        pipeline_tag=kind.pipeline_tag,
        tags=["sensedict_hf", "sense-embeddings", *kind.tags, *(["sentence-transformers"] if opens else [])],
    )
    usage = _ways_to_load(kind, name or "path/or/repository", folder is None or has_code(folder), opens)
    parts = {"title": kind.title, "summary": summary, "usage": usage, "facts": facts, "limits": limits, "terms": terms}
    card: ModelCard = ModelCard.from_template(data, template_str=TEMPLATE, **parts)  # type: ignore[arg-type]
    return card


def _terms(card_data: dict[str, Any], license: str | None) -> str:
    """Return whose terms hold: those of a given licence, of the teacher's, or unknown ones."""
    if license is not None:
        return f"`{license}`. The terms of the teacher and of the texts apply too."
    if "license" not in card_data:
        return "Not known: the teacher's card names none. The terms of the teacher and of the texts apply."
    stated = card_data.get("license_name") or card_data["license"]
    return f"`{stated}`, as the teacher's card says. The terms of the texts apply too."


def _ways_to_load(kind: Kind, name: str, with_code: bool, opens: bool) -> list[tuple[str, str]]:
    """Return the ways to load a model: what holds for each, and the code.

    Args:
        kind: The kind of model.
        name: Its repository.
        with_code: Whether its code is saved with it.
        opens: Whether sentence-transformers opens it.
    """
    fields = {**kind.example, "name": name}
    ways = [(PACKAGE, kind.code.format(imported="import sensedict_hf  # registers the classes\n", trust="", **fields))]
    if with_code:
        ways.append((CODE, kind.code.format(imported="", trust=", trust_remote_code=True", **fields)))
    if opens:
        ways.append((SENTENCES, SENTENCE_TRANSFORMER.format(name=name)))
    return ways


def describe(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config knows about a dictionary or a student, in words.

    Args:
        config: Config of a :class:`SenseEmbeddingModel` or a student.

    Returns:
        The facts by their names, such as `{"teacher": "all-MiniLM-L6-v2", "pooling": "mean"}`.

    Example:
        >>> describe(student.config)["pooling"]
        'mean'
    """
    any_config: Any = config
    if config.model_type == "skd_student":
        rows = _dictionary_rows(any_config.sense_config) | _student_rows(any_config, _head(config))
    else:
        rows = _dictionary_rows(any_config)
    prompt = {
        f"prompt: {name.replace('_', ' ')}": repr(value) for name, value in (any_config.prompt or {}).items() if value
    }
    return {name: value for name, value in (rows | prompt).items() if value is not None}


def _head(config: PreTrainedConfig) -> str | None:
    """Return the class of a student with a head; None for other models."""
    return next(
        (name for name in config.architectures or [] if name in KINDS and name.startswith("SKDStudentFor")), None
    )


def _summarize_student(config: SKDStudentConfig, teacher: str | None, head: str | None) -> str:
    """Return a description of a student in two or three sentences."""
    backbone = config.text_config
    made = f"A student with {backbone.num_hidden_layers} layers ({backbone.model_type}), distilled from {teacher}."
    if head == GENERATOR:
        return f"{made} It generates text, and needs no dictionary of senses for that."
    returned = RETURNED[config.default_assignment]
    if config.default_assignment != "none" and config.default_residual:
        returned += f", and {config.default_residual:.0%} of its own vectors in each"
    dictionary = " The dictionary of senses is part of it." * bool(config.sense_config.num_senses)
    return f"{made} It returns {returned}.{dictionary}"


def _dictionary_rows(config: SenseEmbeddingConfig) -> dict[str, Any]:
    """Return the rows of the card's table that describe a dictionary; None for what is not known."""
    has_senses, method = config.num_senses > 0, config.method
    texts = f"{config.num_texts:,} texts, " if config.num_texts else ""
    if method and config.method_value:
        method = f"{method} = {config.method_value:,}"
    return {
        "teacher": config.base_model_name_or_path,
        "revision": config.base_model_revision,
        "layer": config.layer,
        "senses of": "the next token" if config.key == "next" else None,
        "attention": config.attention,
        "senses": f"{config.num_senses:,} of width {config.hidden_size}, {config.senses_dtype}"
        if has_senses
        else None,
        "senses learned": "yes" if config.learn_senses else None,
        "similarity": config.similarity if has_senses else None,
        "number of senses set by": method,
        "datasets": ", ".join((config.card_data or {}).get("datasets", [])) or None,
        "corpus": config.num_tokens and f"{texts}{config.num_tokens:,} tokens",
        "samples per token": config.max_samples_per_token,
        "mean squared distortion": f"{config.distortion:.4g}" if has_senses else None,
        "seed": config.seed,
        "tokenizer": config.tokenizer_fingerprint,
        "the teacher's tokenizer": config.teacher_tokenizer_fingerprint,
        "sensedict_hf": config.sensedict_version,
    }


def _student_rows(config: SKDStudentConfig, head: str | None) -> dict[str, Any]:
    """Return the rows of the card's table that describe a student; None for what is not known."""
    rows: dict[str, Any] = {"maximum length in tokens": config.max_seq_length, "objective": config.objective}
    if head != GENERATOR:
        rows |= {
            "pooling": config.pooling,
            "assignment": config.default_assignment,
            "residual": config.default_residual,
            "tables": getattr(config.text_config, "table_dtype", None),
        }
    settings = dict(config.distillation or {})
    if settings:  # steps and epochs exclude each other: leave out the one that was not used
        del settings["num_train_epochs" if settings.get("max_steps", -1) > 0 else "max_steps"]
    rows |= {f"distilled with {name.replace('_', ' ')}": value for name, value in settings.items()}
    if head not in (None, GENERATOR):
        labels = [str(label) for _, label in sorted((config.id2label or {}).items())]
        more = ["..."] if len(labels) > MAX_LABELS else []
        rows["labels"] = f"{len(labels)}: {', '.join(labels[:MAX_LABELS] + more)}"
        rows["head"] = "copied from the teacher" if config.freeze_head else None
    return rows
