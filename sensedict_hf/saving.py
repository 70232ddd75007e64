"""What is saved and loaded: folders and repositories that hold all a model needs."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .model_card import model_card

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
                raise ValueError(f"this {type(self).__name__} was made without a tokenizer: assign one to `model.tokenizer`")
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

    def _tables_apart(self) -> list[str]:
        """Names of its own tensors that stay in host memory whatever device it is moved to."""
        return []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but refuses a checkpoint whose senses are missing or of another size, instead of inventing some.

        Raises:
            ValueError: the checkpoint does not hold the dictionary that its config describes.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs)
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
            if part._tables_apart():
                part._apply(lambda tensor: tensor)  # a device_map of several devices has moved tables that are to stay
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """As in transformers, but a `device_map` does not have tables loaded that are to stay in host memory."""
        if load_config.device_map is not None:
            parts = ((prefix, part) for prefix, part in model.named_modules() if isinstance(part, SensePreTrainedModel))
            tables = {f"{prefix}.{name}".lstrip("."): "cpu" for prefix, part in parts for name in part._tables_apart()}
            load_config = replace(load_config, device_map={**load_config.device_map, **tables})
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)

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
            raise ValueError("save_pretrained(push_to_hub=True) uploads before all is saved: call push_to_hub(repo_id) instead")
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
            return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr)
