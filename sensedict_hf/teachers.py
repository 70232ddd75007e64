"""Any encoder or decoder of transformers as a teacher."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from .corpus import model_max_length
from .encoding import POOLINGS, encode_texts, encode_words, padding_id
from .tensor_files import digest_tensors

logger = logging.get_logger(__name__)

# sentence-transformers' names of poolings that exist here
SENTENCE_TRANSFORMERS_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


@dataclass
class Teacher:
    """A model in evaluation mode with its tokenizer.

    Attributes:
        model: bare, without a head. name, revision: what is remembered of its origin.
        pooling: how `encode` makes one vector of a text. max_seq_length: where `encode` truncates, in tokens; max_window: the longest
            input that the model takes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None
    pooling: str = "mean"
    max_seq_length: int = 512
    max_window: int = 512

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def pad_token_id(self) -> int:
        return padding_id(self.tokenizer, self.model)

    @torch.inference_mode()
    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None, layer: int = -1) -> Tensor:
        """`[batch, positions] -> [batch, positions, hidden]`: the hidden states of a layer (-1: the last, after any final norm).

        Raises:
            ValueError: there is no such layer.
        """
        options: dict[str, Any] = {} if layer == -1 else {"output_hidden_states": True}
        if getattr(self.model.config, "use_cache", False):
            options["use_cache"] = False
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        if layer == -1:
            return output.last_hidden_state
        if not -len(output.hidden_states) <= layer < len(output.hidden_states):
            raise ValueError(f"layer {layer} of {self.name}: choose one of 0 to {len(output.hidden_states) - 1}, or -1 for the last")
        return output.hidden_states[layer]

    def fingerprint(self) -> str:
        """A digest of what hidden states depend on: the class of the model, its config, and of every tensor its name, dtype, shape and
        bytes."""
        config = self.model.config.to_dict()
        for name in ("_name_or_path", "_commit_hash", "transformers_version", "architectures"):
            config.pop(name, None)
        kind = [type(self.model).__name__, self.model.config._attn_implementation, config]
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if not name.startswith("pooler.")}
        return digest_tensors(json.dumps(kind, sort_keys=True, default=str), tensors)

    def last_hidden_state(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`[batch, positions] -> [batch, positions, hidden]`."""
        return self.hidden_states(input_ids, attention_mask)

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, show_progress: bool = True) -> Tensor:
        """One vector per text, `[texts, hidden]`, float32, not normalized; longer texts are truncated to `max_seq_length`."""
        return encode_texts(
            self.last_hidden_state,
            self.tokenizer,
            texts,
            pad_token_id=self.pad_token_id,
            pooling=self.pooling,
            max_length=self.max_seq_length,
            batch_size=batch_size,
            device=self.device,
            show_progress=show_progress,
        )

    def encode_words(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 32, show_progress: bool = True) -> list[Tensor]:
        """Vectors of the words of each sentence, `[words, hidden]`, float32: means over a word's tokens; zeros behind `max_seq_length`."""
        return encode_words(
            self.last_hidden_state,
            self.tokenizer,
            sentences,
            pad_token_id=self.pad_token_id,
            max_length=self.max_seq_length,
            batch_size=batch_size,
            device=self.device,
            show_progress=show_progress,
        )


def load_teacher(
    teacher: str | os.PathLike | PreTrainedModel | Teacher,
    *,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    pooling: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """Makes a [`Teacher`] of a name, a path or a loaded model.

    Args:
        teacher: a repository or folder (of transformers or sentence-transformers), a model with or without a head, which is put into
            evaluation mode, or a `Teacher`, which can be moved to a device but not changed otherwise.
        tokenizer: or its name. Default: the one beside the model's weights.
        pooling: `mean`, `cls`, `last` or `max`; default: that of the sentence-transformers folder, else `mean`.
        device: default: a GPU if there is one; a loaded model stays where it is.

    Raises:
        ValueError: the checkpoint lacks weights, the model is an encoder-decoder, or no tokenizer can be found.
    """
    if isinstance(teacher, Teacher):
        given = {"tokenizer": tokenizer, "pooling": pooling, "revision": revision, "dtype": dtype}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            raise ValueError(f"{', '.join(given)} given beside a Teacher, which has its own: use dataclasses.replace(teacher, ...)")
        if device is not None:
            teacher.model.to(device)
        return teacher
    if isinstance(teacher, PreTrainedModel):
        model, source = teacher.base_model, teacher.name_or_path
        if device is not None:
            model.to(device)
    elif isinstance(teacher, (str, os.PathLike)):
        source = os.fspath(teacher)
        model, info = AutoModel.from_pretrained(
            source, revision=revision, dtype=dtype or "auto", trust_remote_code=trust_remote_code, output_loading_info=True
        )
        # A checkpoint trained without a pooler gets a random one; the hidden states do not depend on it.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(f"{source} lacks weights of {type(model).__name__}, which would be random: {', '.join(missing[:5])}")
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        raise ValueError(f"teacher is {type(teacher).__name__}: pass a name, a path, a model of transformers or a Teacher")
    if model.config.model_type in ("sense_embedding", "skd_student"):
        raise ValueError(f"{source} is a {type(model).__name__}, not a teacher")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder: pass its encoder, model.get_encoder(), with tokenizer=")
    if tokenizer is None:
        if not source:
            raise ValueError("the model does not say where it comes from: pass its tokenizer as tokenizer=")
        tokenizer = source
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, revision=revision, trust_remote_code=trust_remote_code)
    settings = _sentence_transformers_settings(source, revision) if source else {}
    pooling = pooling or settings.get("pooling", "mean")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is not supported: choose one of {', '.join(POOLINGS)} with pooling=")
    longest = model_max_length(tokenizer, model.config)
    return Teacher(
        model=model.eval(),
        tokenizer=tokenizer,
        # A folder of one machine means nothing on another, so only its last part is remembered.
        name=Path(source).resolve().name if os.path.isdir(source) else source or type(model).__name__,
        revision=revision or getattr(model.config, "_commit_hash", None),
        pooling=pooling,
        max_seq_length=min(settings.get("max_seq_length") or longest, longest),
        max_window=longest,
    )


def _sentence_transformers_settings(source: str, revision: str | None) -> dict[str, Any]:
    """Pooling and maximum length of a sentence-transformers model; nothing for any other."""

    def read(name: str) -> Any:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        path = cached_file(source, name, revision=revision, **quiet)
        return json.loads(Path(path).read_text()) if path else None

    settings: dict[str, Any] = {}
    for module in read("modules.json") or []:
        if module["type"].endswith(".Pooling"):
            modes = read(f"{module['path']}/config.json") or {}
            active = [name for name, on in modes.items() if name.startswith("pooling_mode") and on]
            if "pooling_mode" in modes:
                active = [modes["pooling_mode"]]
            settings["pooling"] = "+".join(SENTENCE_TRANSFORMERS_POOLINGS.get(name, str(name)) for name in active)
        elif module["type"].endswith(".Transformer"):
            settings["max_seq_length"] = (read(f"{module['path']}/sentence_bert_config.json".lstrip("/")) or {}).get("max_seq_length")
    return settings
