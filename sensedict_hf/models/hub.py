"""Saving, loading and sharing: folders and repositories that hold everything a model needs."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import check_device_map, check_dtype, check_flag, check_flags, check_folder, check_number, check_string
from .files import check_source, reading, replacing
from .folder_code import auto_map, write_code
from .model_card import model_card
from .placement import place_model, requested_devices
from .saved_tensors import find_misfits, is_head, read_headers
from .sentence_files import GENERAL, is_saved_by_library

logger = logging.get_logger(__name__)

Model = TypeVar("Model", bound="SensePreTrainedModel")

# Arguments of `from_pretrained` that say where files are.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Arguments of `from_pretrained` that say where tensors go.
PLACEMENT_OPTIONS = ("device_map", "max_memory", "offload_folder", "offload_buffers")

# Other arguments of `from_pretrained` that are no fields of a config.
MODEL_OPTIONS = ("config", "dtype", "torch_dtype", "quantization_config", "use_safetensors", "ignore_mismatched_sizes")
OPTIONS = (*HUB_OPTIONS, *PLACEMENT_OPTIONS, *MODEL_OPTIONS, "attn_implementation", "trust_remote_code", "variant")


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
            with reading(source):
                tokenizer = AutoTokenizer.from_pretrained(source, **options)
                check_number("model_max_length", tokenizer.model_max_length, above=0)
                config = getattr(self.config, "sense_config", self.config)
                if config.tokenizer_fingerprint is not None:
                    config.check_tokenizer(tokenizer)
            self._tokenizer = tokenizer
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        config = getattr(self.config, "sense_config", self.config)
        if config.tokenizer_fingerprint is not None:
            config.check_tokenizer(tokenizer)
        for part in self._parts():
            part._tokenizer = tokenizer

    def _parts(self) -> Iterator["SensePreTrainedModel"]:
        """Yield the model itself, and the student and the dictionary inside it."""
        return (module for module in self.modules() if isinstance(module, SensePreTrainedModel))

    def _host_tensors(self) -> list[str]:
        """Return the names of the module's own tensors that stay in host memory when the model is moved."""
        return []

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: transformers would save its own choice of code files, see :meth:`save_pretrained`."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Model:
        """Load a model as transformers does, but refuse a checkpoint that does not fit its config.

        Args:
            pretrained_model_name_or_path: A folder or a repository of the Hub.
            model_args: As in `PreTrainedModel.from_pretrained`.
            output_loading_info: Whether to return a report of the weights that were missing or did not fit, too.
            kwargs: As in `PreTrainedModel.from_pretrained`: other arguments, and fields of the config such as
                `sense_device="cpu"`.

        Returns:
            The model, in evaluation mode. With `output_loading_info=True` the model and a dictionary.

        Raises:
            ValueError: There are no safetensors files, tensors are missing or of another size than the config says,
                or the dictionary is not valid.

        Example:
            >>> senses.save_pretrained("senses")
            >>> type(senses).from_pretrained("senses", sense_device="cpu").config.sense_device
            'cpu'
        """
        source = check_source(pretrained_model_name_or_path)
        check_dtype("dtype", kwargs.get("dtype"))
        check_device_map(kwargs.get("device_map"))
        if kwargs.get("trust_remote_code") is None:
            kwargs["trust_remote_code"] = False  # transformers would ask
        check_flag("trust_remote_code", kwargs["trust_remote_code"])
        if kwargs.get("revision") is not None:
            check_string("revision", kwargs["revision"])
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError("use_safetensors must be True: files of other kinds can run code")
        with reading(source):
            config = cls._read_config(source, kwargs)
        if isinstance(kwargs.get("config"), PreTrainedConfig):  # with a config, transformers takes no fields
            fields = [name for name in kwargs if name not in OPTIONS and name[:1] != "_" and hasattr(config, name)]
            for name in fields:
                setattr(config, name, kwargs.pop(name))
            config.check()
            kwargs["config"] = copy.deepcopy(config)
        has_new_head = cls._has_new_head(config, source)
        is_quantized = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
        if not is_quantized:  # a quantizer changes sizes and names
            with reading(source):
                cls._check_files(config, source, has_new_head, kwargs)

        # Tables that stay in host memory must not be loaded onto a device: the rest is moved there afterwards.
        devices = requested_devices(kwargs.get("device_map"))
        placement = None
        if devices is not None and config.sense_device is not None and not is_quantized:
            placement = {name: kwargs.pop(name) for name in PLACEMENT_OPTIONS if name in kwargs}
            placement["device_map"], kwargs["device_map"] = devices, "cpu"

        with reading(source):
            loaded: Any = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        model: Model = loaded[0]
        info: dict[str, Any] = loaded[1]

        # Missing weights would be random.
        missing = [name for name in sorted(info["missing_keys"]) if not (has_new_head and is_head(model, name))]
        if missing:
            raise _disagreement(source, missing)
        for part in model._parts():
            part._check_structure()

        if placement is not None:
            place_model(model, host_tensors=model._all_host_tensors(), **placement)
        for part in model._parts():
            if part._host_tensors():
                part._apply(lambda tensor: tensor)  # brings back tables that a quantizer, say, has moved
        options = {name: kwargs[name] for name in (*HUB_OPTIONS, "trust_remote_code") if name in kwargs}
        folder = os.path.abspath(source) if os.path.isdir(source) else source  # the working directory may change
        for part in model._parts():
            part._tokenizer_source = (folder, options)
        with reading(source):
            model._finish_loading(source, options)
        return loaded if output_loading_info else model

    @classmethod
    def _read_config(cls, source: str, kwargs: dict[str, Any]) -> Any:
        """Read the config of a model, with the fields that are given to `from_pretrained`."""
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            skipped = (*MODEL_OPTIONS, *PLACEMENT_OPTIONS)
            options = {name: value for name, value in kwargs.items() if name not in skipped}
            config_class: Any = cls.config_class
            config = config_class.from_pretrained(config or source, **options)
        return copy.deepcopy(config)

    @classmethod
    def _check_files(cls, config: Any, source: str, has_new_head: bool, kwargs: dict[str, Any]) -> None:
        """Raise a ValueError if the files of a model do not fit its config, before anything of its size is made."""
        headers = read_headers(
            source, {name: kwargs[name] for name in (*HUB_OPTIONS, "variant") if kwargs.get(name) is not None}
        )
        layers = getattr(config, "num_hidden_layers", 0)
        if layers > len(headers):
            raise _disagreement(source, [f"num_hidden_layers ({layers})"])
        learn_senses = getattr(config, "sense_config", config).learn_senses
        with torch.device("meta"):
            model = cls(config)
        ignored = kwargs.get("ignore_mismatched_sizes") and not getattr(config, "freeze_head", False)
        wrong = find_misfits(model, headers, learn_senses=learn_senses, ignore_head=has_new_head or bool(ignored))
        if wrong:
            raise _disagreement(source, wrong)

    @classmethod
    def _has_new_head(cls, config: Any, source: str) -> bool:
        """Return whether the head of this class may be missing in a checkpoint."""
        return False

    def _check_structure(self) -> None:
        """Raise a ValueError if tensors of the module itself do not fit together."""

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
        with_code: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model, as in transformers, with its tokenizer, its code and a model card.

        In the folder of a student there are also the files with which sentence-transformers encodes texts to the same
        vectors. With a template around the text, or LLM2Vec's prompt, that library would pool otherwise: there the
        files make it raise an error.

        Args:
            save_directory: The folder to write to; it is created if it does not exist.
            is_main_process: Whether this process is the one that writes, in distributed training.
            license: Licence in the card, as an identifier of the Hub such as `mit`.
            card_name: The repository that the example in the card loads. None: a placeholder.
            with_code: Whether to save the code of the model, too, so that it loads without this package, with
                `trust_remote_code=True`. If not, loading it needs the package.
            push_to_hub: Must be False: the folder would be uploaded before it is complete.
            kwargs: Other arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: `push_to_hub` is True, a weight is NaN or infinite, or the dictionary is not valid.

        Example:
            >>> senses.save_pretrained("senses", license="mit")
            >>> {"README.md", "config.json", "model.safetensors"} <= set(os.listdir("senses"))
            True
        """
        check_folder("save_directory", save_directory)
        check_flags(is_main_process=is_main_process, with_code=with_code)
        for name, value in (("license", license), ("card_name", card_name)):
            if value is not None:
                check_string(name, value)
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) uploads before all is saved: call push_to_hub(repo_id) instead"
            )
        self.config.auto_map = auto_map(self.config.model_type)
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, **kwargs)
            return
        self._check_numbers(kwargs.get("state_dict"))
        with replacing(Path(save_directory)) as ready:
            super().save_pretrained(ready, **kwargs)
            write_code(ready, self.config.model_type, with_code)
            self._write_other_files(ready)
            if is_saved_by_library(save_directory, kwargs):
                (ready / GENERAL).unlink(missing_ok=True)
            try:
                self.tokenizer.save_pretrained(ready)
            except (ValueError, OSError) as error:  # hours of training must not be lost for it
                logger.warning(f"saved without a tokenizer: {error}")
            card = model_card(self.config, ready, name=card_name, license=license)
            data: Any = card.data
            data.tags += [tag for tag in self.model_tags or () if tag not in data.tags]
            card.save(ready / "README.md")

    def _write_other_files(self, folder: str | os.PathLike[str]) -> None:
        """Write what other libraries read in the folder of a model."""

    def _finish_loading(self, source: str, options: dict[str, Any]) -> None:
        """Do what is left to do once the weights are loaded.

        Args:
            source: The folder or repository.
            options: Arguments of `from_pretrained` that say where files are.
        """

    def _check_numbers(self, state_dict: Mapping[str, Tensor] | None) -> None:
        """Raise a ValueError if a number is NaN or infinite, or the dictionary not valid.

        Args:
            state_dict: The tensors to save. None: all.
        """
        for part in self._parts():
            part._check_structure()
        for name, tensor in (state_dict or self.state_dict()).items():
            if not tensor.is_meta and not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"{name} is NaN or infinite, so the model is not saved: train it with a lower learning rate, or "
                    "make it again"
                )

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
        with_code: bool = True,
        commit_description: str | None = None,
        tags: str | list[str] | None = None,
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
            with_code: Whether to upload the code of the model, too.
            commit_description: What the commit says below its message.
            tags: Tags in the card, with those that `add_model_tags` has added.

        Returns:
            The commit.

        Example:
            >>> senses.push_to_hub("me/minilm-senses", license="mit")  # doctest: +SKIP
        """
        if tags:
            self.add_model_tags(tags)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(
                folder, max_shard_size=max_shard_size, license=license, card_name=repo_id, with_code=with_code
            )
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )


def _disagreement(source: str, names: Sequence[str]) -> ValueError:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return ValueError(
        f"{source} and its config do not agree on {shown}: tensors are missing, unexpected, or of another size or "
        "dtype, and none can be made up; load it with its own config, or make it again; with "
        "ignore_mismatched_sizes=True a head for other labels begins anew (with freeze_head=False too, if it was "
        "copied from a teacher)"
    )
