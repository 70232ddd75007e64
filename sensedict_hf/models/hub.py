"""What is saved and loaded: folders and repositories that hold all a model needs."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)
DICTIONARY_TENSORS = ("senses", "offsets", "usage", "scales")


class SensePreTrainedModel(PreTrainedModel):
    """What dictionaries and students share: a folder or repository that holds all they need, tokenizer and model card included, and
    that is never completed with invented senses."""

    # The senses are looked up, not attended to: any attention implementation of a student's backbone is fine with them.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _tokenizer: PreTrainedTokenizerBase | None = None
    _tokenizer_source: tuple[str, dict[str, Any]] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids the model takes, read from where the model was loaded when it is first asked for."""
        if self._tokenizer is None:
            if self._tokenizer_source is None:
                raise ValueError(
                    f"this {type(self).__name__} was made without a tokenizer: assign one to `model.tokenizer`"
                )
            path, options = self._tokenizer_source
            self._tokenizer = AutoTokenizer.from_pretrained(path, **options)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for part in self._parts():
            part._tokenizer = tokenizer

    def _parts(self) -> Iterator["SensePreTrainedModel"]:
        """Itself, and the student and the dictionary inside it."""
        return (module for module in self.modules() if isinstance(module, SensePreTrainedModel))

    def _host_tensors(self) -> list[str]:
        """Names of its own tensors that stay in host memory whatever device it is moved to."""
        return []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but refuses a checkpoint whose senses are missing or of another size, instead of inventing some.

        Raises:
            ValueError: the checkpoint does not hold the dictionary that its config describes.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        differing = [*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])]
        wrong = [key for key in differing if key.split(".")[-1] in DICTIONARY_TENSORS]
        if wrong:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {', '.join(sorted(wrong))}, or has more of it than its config says, or another "
                "size: senses cannot be initialized; load it with its own config, or build the dictionary again"
            )
        options = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        source = pretrained_model_name_or_path
        if os.path.isdir(source):
            source = os.path.abspath(source)  # the working directory may be another when it is read
        for part in model._parts():
            part._tokenizer_source = (source, {name: kwargs[name] for name in options if name in kwargs})
            if part._host_tensors():
                part._apply(lambda tensor: tensor)  # a device_map of several devices has moved tables that are to stay
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """As in transformers, but a `device_map` does not have tables loaded that are to stay in host memory."""
        if load_config.device_map is not None:
            parts = (
                (prefix, part) for prefix, part in model.named_modules() if isinstance(part, SensePreTrainedModel)
            )
            tables = {f"{prefix}.{name}".lstrip("."): "cpu" for prefix, part in parts for name in part._host_tensors()}
            load_config = replace(load_config, device_map={**load_config.device_map, **tables})
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        *,
        license: str | None = None,
        card_name: str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """As in transformers; also saves the tokenizer and a model card.

        Args:
            license: of the card, an identifier of the Hub. card_name: what the card says to load.

        Raises:
            ValueError: `push_to_hub` is set: the folder would be uploaded before it is complete.
        """
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) uploads before all is saved: call push_to_hub(repo_id) instead"
            )
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            Path(save_directory, "manifest.json").unlink(missing_ok=True)  # of a build whose files these have replaced
            try:
                self.tokenizer.save_pretrained(save_directory)
            except (ValueError, OSError) as error:  # hours of training must not be lost for it
                logger.warning(f"saved without a tokenizer: {error}")
            model_card(self.config, card_name, license).save(f"{save_directory}/README.md")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        license: str | None = None,
    ) -> CommitInfo:
        """Uploads what `save_pretrained` writes, the model card included."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, license=license, card_name=repo_id)
            message = commit_message or f"Upload {type(self).__name__}"
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr
            )


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
        "placed by": senses.method
        and (f"{senses.method} = {senses.method_value:,}" if senses.method_value else senses.method),
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
        rows |= {
            "pooling": config.pooling,
            "maximum length in tokens": config.max_seq_length,
            "assignment": config.default_assignment,
        }
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
        rows |= {
            f"prompt: {name.replace('_', ' ')}": repr(value).replace("|", "\\|")
            for name, value in prompt.items()
            if value
        }
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


EARLIER_NAMES = dict(
    mean="mean_tokens", weighted_mean="weightedmean_tokens", cls="cls_token", last="lasttoken", max="max_tokens"
)


def write_sentence_transformers(
    folder: str | os.PathLike, hidden_size: int, pooling: str, max_seq_length: int
) -> None:
    """Leaves beside a model what any version of sentence-transformers needs to make the same vectors of texts as `encode`."""
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in EARLIER_NAMES.items()}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    Path(folder, "1_Pooling").mkdir(exist_ok=True)
    for name, content in {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": hidden_size, **modes},
    }.items():
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
