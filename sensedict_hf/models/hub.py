"""Saving, loading and sharing: folders and repositories that hold everything a model needs."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .model_card import model_card
from .placement import place_model, requested_devices
from .prompts import Prompt

logger = logging.get_logger(__name__)

Model = TypeVar("Model", bound="SensePreTrainedModel")

# Tensors that a checkpoint must hold: random values would be useless.
DICTIONARY_TENSORS = ("senses", "offsets", "usage", "scales")
# Arguments of `from_pretrained` that say where files are.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Arguments of `from_pretrained` that say where tensors go.
PLACEMENT_OPTIONS = ("device_map", "max_memory", "offload_folder", "offload_buffers")

# Names of the poolings in the settings of sentence-transformers, which all its versions read.
SENTENCE_TRANSFORMERS_POOLINGS = {
    "mean": "mean_tokens",
    "weighted_mean": "weightedmean_tokens",
    "cls": "cls_token",
    "last": "lasttoken",
    "max": "max_tokens",
}


class SensePreTrainedModel(PreTrainedModel):
    """The base class of dictionaries and students.

    A saved folder or repository holds all that the model needs, including the tokenizer, and a model card. A
    checkpoint without senses is refused, because they would be random.
    """

    # The senses are looked up, not attended to: any attention implementation of a student's backbone works with them.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _tokenizer: PreTrainedTokenizerBase | None = None
    _tokenizer_source: tuple[str, dict[str, Any]] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose token ids the model takes. It is read from the model's folder at the first access."""
        if self._tokenizer is None:
            if self._tokenizer_source is None:
                raise ValueError(
                    f"this {type(self).__name__} was made without a tokenizer: assign one to `model.tokenizer`"
                )
            source, options = self._tokenizer_source
            self._tokenizer = AutoTokenizer.from_pretrained(source, **options)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for part in self._parts():
            part._tokenizer = tokenizer

    def _parts(self) -> Iterator["SensePreTrainedModel"]:
        """Yield the model itself, and the student and the dictionary inside it."""
        return (module for module in self.modules() if isinstance(module, SensePreTrainedModel))

    def _host_tensors(self) -> list[str]:
        """Return the names of the module's own tensors that stay in host memory when the model is moved."""
        return []

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Model:
        """Load a model as transformers does, but refuse a checkpoint whose senses do not fit its config.

        Args:
            pretrained_model_name_or_path: A folder or a repository of the Hub.
            model_args: As in `PreTrainedModel.from_pretrained`.
            output_loading_info: Whether to return a report of the weights that were missing or did not fit, too.
            kwargs: As in `PreTrainedModel.from_pretrained`: other arguments, and fields of the config such as
                `sense_device="cpu"`.

        Returns:
            The model, in evaluation mode. With `output_loading_info=True` the model and a dictionary.

        Raises:
            ValueError: Tensors of the dictionary are missing, unexpected or of another size.

        Example:
            >>> senses.save_pretrained("senses")
            >>> type(senses).from_pretrained("senses", sense_device="cpu").config.sense_device
            'cpu'
        """
        source = os.fspath(pretrained_model_name_or_path)

        # Tables that stay in host memory must not be loaded onto a device: the rest is moved there afterwards.
        devices = requested_devices(kwargs.get("device_map"))
        placement = None
        if devices is not None and cls._keeps_tables_in_host_memory(source, kwargs):
            placement = {name: kwargs.pop(name) for name in PLACEMENT_OPTIONS if name in kwargs}
            placement["device_map"], kwargs["device_map"] = devices, "cpu"

        loaded: Any = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        model: Model = loaded[0]
        info: dict[str, Any] = loaded[1]

        # Missing senses would be random.
        differing = [*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])]
        wrong = [key for key in differing if key.split(".")[-1] in DICTIONARY_TENSORS]
        if wrong:
            raise ValueError(
                f"{source} and its config do not agree on {', '.join(sorted(wrong))}: tensors of the dictionary are "
                "missing, unexpected or of another size, and senses cannot be initialized; load it with its own "
                "config, or build the dictionary again"
            )

        if placement is not None:
            place_model(model, host_tensors=model._all_host_tensors(), **placement)
        for part in model._parts():
            if part._host_tensors():
                part._apply(lambda tensor: tensor)  # brings back tables that a quantizer, say, has moved
        options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        folder = os.path.abspath(source) if os.path.isdir(source) else source  # the working directory may change
        for part in model._parts():
            part._tokenizer_source = (folder, options)
        return loaded if output_loading_info else model

    @classmethod
    def _keeps_tables_in_host_memory(cls, source: str, kwargs: dict[str, Any]) -> bool:
        """Return whether the config asks for tables in host memory, so that the model must be loaded there first."""
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            options = {name: kwargs[name] for name in (*HUB_OPTIONS, "sense_device") if name in kwargs}
            config_class: Any = cls.config_class
            config = config_class.from_pretrained(config or source, **options)
        is_quantized = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
        return config.sense_device is not None and not is_quantized  # a quantizer must see the devices itself

    def _all_host_tensors(self) -> list[tuple[nn.Module, str]]:
        """Return the modules and names of all tensors that stay in host memory."""
        return [(part, name) for part in self._parts() for name in part._host_tensors()]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *,
        license: str | None = None,
        card_name: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model, as in transformers, with its tokenizer and a model card.

        Args:
            save_directory: The folder to write to; it is created if it does not exist.
            is_main_process: Whether this process is the one that writes, in distributed training.
            license: Licence in the card, as an identifier of the Hub such as `mit`.
            card_name: The repository that the example in the card loads. None: a placeholder.
            push_to_hub: Must be False: the folder would be uploaded before it is complete.
            kwargs: Other arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: `push_to_hub` is True.

        Example:
            >>> senses.save_pretrained("senses", license="mit")
            >>> sorted(os.listdir("senses"))[:3]
            ['README.md', 'config.json', 'model.safetensors']
        """
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) uploads before all is saved: call push_to_hub(repo_id) instead"
            )
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            # The manifest of a build would describe files that have just been replaced.
            Path(save_directory, "manifest.json").unlink(missing_ok=True)
            try:
                self.tokenizer.save_pretrained(save_directory)
            except (ValueError, OSError) as error:  # hours of training must not be lost for it
                logger.warning(f"saved without a tokenizer: {error}")
            model_card(self.config, card_name, license).save(f"{os.fspath(save_directory)}/README.md")

    def push_to_hub(  # type: ignore[override]
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
        """Upload everything that :meth:`save_pretrained` writes. The repository is created if it does not exist.

        Args:
            repo_id: Name of the repository, such as `me/skd-minilm`.
            commit_message: Message of the commit. Default: `Upload` and the name of the class.
            private: Whether a new repository is private. None: the default of the account.
            token: Access token of the Hub. None: the stored one.
            revision: Branch to upload to; it is created if it does not exist. None: the main branch.
            create_pr: Whether to open a pull request instead of committing to the branch.
            max_shard_size: Largest size of a file of weights.
            license: Licence in the card, as an identifier of the Hub such as `mit`.

        Returns:
            The commit.

        Example:
            >>> senses.push_to_hub("me/minilm-senses", license="mit")  # doctest: +SKIP
        """
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


def write_sentence_transformers(
    folder: str | os.PathLike[str],
    hidden_size: int,
    pooling: str,
    max_seq_length: int,
    prompt: Prompt | None = None,
    prompts: Mapping[str, str] | None = None,
    include_prompt: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write the files with which any version of sentence-transformers encodes texts to the same vectors as `encode`.

    If that library has no form for the prompt, the files make it fail.

    Args:
        folder: The folder of a saved student.
        hidden_size: Width of the vectors.
        pooling: `mean`, `weighted_mean`, `cls`, `last` or `max`.
        max_seq_length: Longer texts are truncated to this number of tokens.
        prompt: What `encode` puts around every text.
        prompts: Named prompts: strings to put before a text.
        include_prompt: Whether the tokens of a named prompt are pooled with the text.
        tokenizer: The student's tokenizer. It counts if there are prompts that are not pooled.
    """
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in SENTENCE_TRANSFORMERS_POOLINGS.items()}
    names, default, has_form = dict(prompts or {}), None, True
    if prompt is not None:
        include_prompt = prompt.pooled == "all" if not names else include_prompt
        default = _add_prompt(prompt, names, include_prompt)
        has_form = default is not None
    if not include_prompt and any(names.values()):
        # What these poolings are without a prompt differs between its versions; and it counts the prompt's tokens.
        has_form &= pooling not in ("cls", "weighted_mean")
        has_form &= tokenizer is None or all(_ends_with_a_token(text, tokenizer) for text in names.values())
    kinds = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    if not has_form:
        kinds = [("", "sensedict_hf.SKDStudentModel")]  # no module of sentence-transformers: it says so, and stops
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": kind} for number, (path, kind) in enumerate(kinds)
    ]
    Path(folder, "1_Pooling").mkdir(exist_ok=True)
    for name, content in {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": names, "default_prompt_name": default},
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden_size,
            **modes,
            "include_prompt": include_prompt,
        },
    }.items():
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _add_prompt(prompt: Prompt, names: dict[str, str], include_prompt: bool) -> str | None:
    """Add a prompt to named prompts in the form of sentence-transformers, a string before the text.

    Args:
        prompt: The prompt.
        names: The named prompts, which are changed.
        include_prompt: Whether the tokens of all named prompts are pooled with the text.

    Returns:
        The name of the prompt. None: there is no such form.
    """
    head, _, tail = prompt.parts("")
    has_form = prompt.pooled == ("all" if include_prompt else "text") and not tail and prompt.max_text_length is None
    if not head or not has_form:
        return None
    for name, text in names.items():
        if text == head:
            return name
    for name in ("default", "query", "document"):  # the methods encode_query and encode_document read the last two
        names.setdefault(name, head)
    return "default" if names["default"] == head else None


def _ends_with_a_token(prompt: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether no token covers the end of a prompt and the beginning of the text after it."""
    ids = tokenizer(prompt)["input_ids"]
    length = len(ids) - (ids[-1:] != [] and ids[-1] in tokenizer.all_special_ids)  # as sentence-transformers counts
    return not prompt or length == Prompt(prompt + "{text}").tokenize(tokenizer, ["a"], None)[0].begin
