"""The model card that is saved beside every dictionary and student."""

import re

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

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
RETURNED = {  # by assignment
    "none": "its own vectors",
    "hard": "for each token the best of the senses that its teacher has for it",
    "soft": "for each token the mean of the senses that its teacher has for it, weighted by their probabilities",
}
PIPELINE_TAGS = {
    "skd_student": "feature-extraction",
    "SKDStudentForSequenceClassification": "text-classification",
    "SKDStudentForTokenClassification": "token-classification",
}


def model_card(config: PreTrainedConfig, name: str | None = None, license: str | None = None) -> ModelCard:
    """A card made from the config alone, so that it says nothing that was not measured or set.

    Args:
        config: of a [`SenseEmbeddingModel`] or a student. name: what `from_pretrained` takes, if it is known.
        license: an identifier of the Hub; without one the card says that the teacher's terms and those of the texts decide.
    """
    senses = getattr(config, "sense_config", config)
    teacher = senses.base_model_name_or_path
    is_student = config.model_type == "skd_student"
    head = next((name for name in config.architectures or [] if name in PIPELINE_TAGS), None)
    kind = head or config.model_type
    # Only what looks like a repository may stand in the metadata: the Hub resolves it.
    repository = teacher if teacher and re.fullmatch(r"[\w.-]+/[\w.-]+", teacher) else None
    data = ModelCardData(
        license=license or "other",
        license_name=None if license else "see-teacher",
        base_model=repository,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(kind),
        tags=["sensedict", "sense-embeddings"] + (["knowledge-distillation"] if is_student else []),
    )
    rows = {
        "teacher": teacher,
        "revision": senses.base_model_revision,
        "layer": senses.layer,
        "attention": senses.attention,
        "senses": f"{senses.num_senses:,} of width {senses.hidden_size}, {senses.senses_dtype}",
        "senses learned": "yes" if senses.learn_senses else None,
        "similarity": senses.similarity,
        "placed by": senses.method and (f"{senses.method} = {senses.method_value:,}" if senses.method_value else senses.method),
        "corpus": senses.num_texts and f"{senses.num_texts:,} texts, {senses.num_tokens:,} tokens",
        "samples per token": senses.max_samples_per_token,
        "mean squared distortion": f"{senses.distortion:.4g}",
        "seed": senses.seed,
        "tokenizer": senses.tokenizer_fingerprint,
        "the teacher's tokenizer": senses.teacher_tokenizer_fingerprint,
        "sensedict_hf": senses.sensedict_version,
    }
    if is_student:
        returned = RETURNED[config.default_assignment]
        if config.default_assignment != "none" and config.default_residual:
            returned += f", and {config.default_residual:.0%} of its own vectors in each"
        layers = f"{config.text_config.num_hidden_layers} layers ({config.text_config.model_type})"
        what = f"A student with {layers} distilled from {teacher}. It returns {returned}. The dictionary of senses is inside."
        rows |= {"pooling": config.pooling, "maximum length in tokens": config.max_seq_length, "assignment": config.default_assignment}
        rows |= {"residual": config.default_residual, "objective": config.objective}
        settings = dict(config.distillation or {})
        if settings:
            del settings["num_train_epochs" if settings.get("max_steps", -1) > 0 else "max_steps"]
        rows |= {f"distilled with {name.replace('_', ' ')}": value for name, value in settings.items()}
        if head:
            labels = ", ".join(str(config.id2label[number]) for number in range(min(config.num_labels, 20)))
            rows["labels"] = f"{config.num_labels}: {labels}" + (", ..." if config.num_labels > 20 else "")
            rows["head"] = "copied from the teacher" if config.freeze_head else None
    else:
        what = f"A sense dictionary: for every token a few vectors that stand for all contextual vectors {teacher} gives it."
    if prompt := (config if is_student else senses).prompt:
        rows |= {f"prompt: {name.replace('_', ' ')}": repr(value).replace("|", "\\|") for name, value in prompt.items() if value}
    usage = USAGE[kind].format(name=name or "path/or/repository")
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    title = "Sense-distilled student" if is_student else "Sense dictionary"
    licence = (
        f"Licence: {license}."
        if license
        else "Licence: this is derived from the teacher's weights and from the texts it was built on; their terms apply to it."
    )
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{what}\n\n```python\n{usage}\n```\n\n"
        f"Needs the package `sensedict_hf`.\n\n| | |\n|---|---|\n{table}\n\n{licence}\n"
    )
