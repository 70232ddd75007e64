"""The card of a saved model: the README.md that the Hub shows."""

import re
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

# The code that a model card shows, by `model_type` or by the name of a class with a head.
USAGE = {
    "sense_embedding": """\
import sensedict_hf  # registers the classes
from transformers import AutoModel

senses = AutoModel.from_pretrained("{name}")
senses.senses_of("the")  # one row per sense""",
    "skd_student": """\
import sensedict_hf  # registers the classes
from transformers import AutoModel

student = AutoModel.from_pretrained("{name}")
vectors = student.encode(["a sentence", "another one"])""",
    "SKDStudentForCausalLM": """\
import sensedict_hf  # registers the classes
from transformers import pipeline

write = pipeline("text-generation", model="{name}")
write("Once upon a time")""",
    "SKDStudentForSequenceClassification": """\
import sensedict_hf  # registers the classes
from transformers import pipeline

classify = pipeline("text-classification", model="{name}")
classify("a sentence")""",
    "SKDStudentForTokenClassification": """\
import sensedict_hf  # registers the classes
from transformers import pipeline

tag = pipeline("token-classification", model="{name}")
tag("a sentence")""",
}
PIPELINE_TAGS = {
    "skd_student": "feature-extraction",
    "SKDStudentForCausalLM": "text-generation",
    "SKDStudentForSequenceClassification": "text-classification",
    "SKDStudentForTokenClassification": "token-classification",
}
NEEDS_PACKAGE = "Needs the package `sensedict_hf`: `pip install sensedict_hf`."
WITH_CODE = " Without it, leave out the import and pass `trust_remote_code=True`, which runs the code in these files."
# What a student returns for each token, by assignment.
RETURNED = {
    "none": "its own vectors",
    "hard": "the best of the teacher's senses for each token",
    "soft": "for each token the mean of the teacher's senses, weighted by their probabilities",
}
TERMS = "this is derived from the teacher's weights and from the texts it was built on; their terms apply to it."
MAX_LABELS = 20
BAR = "\\|"  # in a table of Markdown


def model_card(
    config: PreTrainedConfig, name: str | None = None, license: str | None = None, with_code: bool = True
) -> ModelCard:
    """Make a model card from a config. What the config does not know is left out.

    Args:
        config: Config of a :class:`SenseEmbeddingModel` or a student.
        name: The repository that the example in the card loads. None: a placeholder.
        license: Licence, as an identifier of the Hub such as `mit`. None: the card points to the terms of the teacher
            and of the texts.
        with_code: Whether the code of the model is saved with it.

    Returns:
        The card, with the metadata that the Hub reads.
    """
    any_config: Any = config  # dictionaries and students have different fields
    is_student = config.model_type == "skd_student"
    senses = any_config.sense_config if is_student else any_config
    head = _head(config)
    kind = head or config.model_type

    # Metadata, which the Hub reads: a teacher that does not look like a repository cannot be linked.
    teacher = senses.base_model_name_or_path
    data = ModelCardData(
        license=license or "other",
        license_name=None if license else "see-teacher",
        base_model=teacher if teacher and re.fullmatch(r"[\w.-]+/[\w.-]+", teacher) else None,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(kind),
        tags=["sensedict", "sense-embeddings"] + (["knowledge-distillation"] if is_student else []),
    )

    # What it is, in one sentence, and everything else that is known, in a table.
    if is_student:
        title, summary = "Sense-distilled student", _summarize_student(any_config, teacher, head)
    else:
        title = "Sense dictionary"
        summary = (
            "A sense dictionary: for every token a few vectors that stand for all contextual vectors "
            f"{teacher} gives it."
        )
    table = "\n".join(f"| {key} | {str(value).replace('|', BAR)} |" for key, value in describe(config).items())

    usage = USAGE[kind].format(name=name or "path/or/repository")
    terms = f"{license}." if license else TERMS
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{summary}\n\n```python\n{usage}\n```\n\n"
        f"{NEEDS_PACKAGE}{WITH_CODE if with_code else ''}\n\n| | |\n|---|---|\n{table}\n\nLicence: {terms}\n"
    )


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
        rows = _dictionary_rows(any_config.sense_config) | _student_rows(any_config, has_head=bool(_head(config)))
    else:
        rows = _dictionary_rows(any_config)
    prompt = {
        f"prompt: {name.replace('_', ' ')}": repr(value) for name, value in (any_config.prompt or {}).items() if value
    }
    return {name: value for name, value in (rows | prompt).items() if value is not None}


def _head(config: PreTrainedConfig) -> str | None:
    """Return the class of a student with a head; None for other models."""
    return next((name for name in config.architectures or [] if name in PIPELINE_TAGS), None)


def _summarize_student(config: Any, teacher: str | None, head: str | None) -> str:
    """Return a description of a student in two or three sentences."""
    backbone = config.text_config
    made = f"A student with {backbone.num_hidden_layers} layers ({backbone.model_type}), distilled from {teacher}."
    if head == "SKDStudentForCausalLM":
        return f"{made} It generates text, and needs no dictionary of senses for that."
    returned = RETURNED[config.default_assignment]
    if config.default_assignment != "none" and config.default_residual:
        returned += f", and {config.default_residual:.0%} of its own vectors in each"
    return f"{made} It returns {returned}. The dictionary of senses is part of it."


def _dictionary_rows(config: Any) -> dict[str, Any]:
    """Return the rows of the card's table that describe a dictionary; None for what is not known."""
    method = config.method
    if method and config.method_value:
        method = f"{method} = {config.method_value:,}"
    return {
        "teacher": config.base_model_name_or_path,
        "revision": config.base_model_revision,
        "layer": config.layer,
        "senses of": "the next token" if config.key == "next" else None,
        "attention": config.attention,
        "senses": f"{config.num_senses:,} of width {config.hidden_size}, {config.senses_dtype}",
        "senses learned": "yes" if config.learn_senses else None,
        "similarity": config.similarity,
        "placed by": method,
        "corpus": config.num_texts and f"{config.num_texts:,} texts, {config.num_tokens:,} tokens",
        "samples per token": config.max_samples_per_token,
        "mean squared distortion": f"{config.distortion:.4g}",
        "seed": config.seed,
        "tokenizer": config.tokenizer_fingerprint,
        "the teacher's tokenizer": config.teacher_tokenizer_fingerprint,
        "sensedict_hf": config.sensedict_version,
    }


def _student_rows(config: Any, has_head: bool) -> dict[str, Any]:
    """Return the rows of the card's table that describe a student; None for what is not known."""
    rows = {
        "pooling": config.pooling,
        "maximum length in tokens": config.max_seq_length,
        "assignment": config.default_assignment,
        "residual": config.default_residual,
        "objective": config.objective,
        "tables": getattr(config.text_config, "table_dtype", None),
    }
    settings = dict(config.distillation or {})
    if settings:  # steps and epochs exclude each other: leave out the one that was not used
        del settings["num_train_epochs" if settings.get("max_steps", -1) > 0 else "max_steps"]
    rows |= {f"distilled with {name.replace('_', ' ')}": value for name, value in settings.items()}
    if has_head:
        labels = [str(config.id2label[number]) for number in range(min(config.num_labels, MAX_LABELS))]
        if config.num_labels > MAX_LABELS:
            labels.append("...")
        rows["labels"] = f"{config.num_labels}: {', '.join(labels)}"
        rows["head"] = "copied from the teacher" if config.freeze_head else None
    return rows
