"""Any encoder or decoder of transformers as a teacher."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .attention import probe_attention, set_bidirectional
from .checkpoints import Checkpoint, read_checkpoint
from .configuration_sense_embedding import SenseEmbeddingConfig
from .encoding import check_pooling, encode_texts, encode_words, padding_id
from .fingerprints import digest_tensors
from .modeling_sense_embedding import SenseEmbeddingModel
from .prompts import Prompt, Prompted
from .tokenizers import model_max_length

logger = logging.get_logger(__name__)


@dataclass
class Teacher:
    """A model in evaluation mode with its tokenizer.

    Attributes:
        model: bare, without a head. name, revision: what is remembered of its origin.
        pooling: how `encode` makes one vector of a text. max_seq_length: where `encode` truncates, in tokens; max_window: the longest
            input that the model takes.
        prompt: what the model reads around a text, if anything. attention: what its tokens attend to, `bidirectional` or `causal`
            (None: not known); see [`probe_attention`].
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None
    pooling: str = "mean"
    max_seq_length: int = 512
    max_window: int = 512
    prompt: Prompt | None = None
    attention: str | None = None

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
        if self.model.training:
            self.model.eval()
        options: dict[str, Any] = {"return_dict": True}
        if layer != -1:
            options["output_hidden_states"] = True
        if getattr(self.model.config, "use_cache", False):
            options["use_cache"] = False
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        if layer == -1:
            return output.last_hidden_state
        if not -len(output.hidden_states) <= layer < len(output.hidden_states):
            raise ValueError(
                f"layer {layer} of {self.name}: choose one of 0 to {len(output.hidden_states) - 1}, or -1 for the last"
            )
        return output.hidden_states[layer]

    def fingerprint(self) -> str:
        """Digests of what hidden states depend on: of the model's class and config, and, behind a dash, of every tensor's name, dtype,
        shape and bytes."""
        config = self.model.config.to_dict()
        for name in ("_name_or_path", "_commit_hash", "transformers_version", "architectures"):
            config.pop(name, None)
        kind = [type(self.model).__name__, self.model.config._attn_implementation, config]
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if not name.startswith("pooler.")}
        return f"{digest_tensors(json.dumps(kind, sort_keys=True, default=str), {})}-{digest_tensors('', tensors)}"

    def last_hidden_state(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`[batch, positions] -> [batch, positions, hidden]`."""
        return self.hidden_states(input_ids, attention_mask)

    def encode(self, texts: Sequence[Prompted], *, batch_size: int = 32, show_progress: bool = True) -> Tensor:
        """One vector per text, or per pair of an instruction and a text, `[texts, hidden]`, float32, not normalized; longer texts are
        truncated to `max_seq_length`."""
        return encode_texts(
            self.last_hidden_state,
            self.tokenizer,
            texts,
            pad_token_id=self.pad_token_id,
            pooling=self.pooling,
            max_length=self.max_seq_length,
            batch_size=batch_size,
            device=self.device,
            prompt=self.prompt,
            show_progress=show_progress,
        )

    def encode_words(
        self, sentences: Sequence[Sequence[str]], *, batch_size: int = 32, show_progress: bool = True
    ) -> list[Tensor]:
        """Vectors of the words of each sentence, read without a prompt, `[words, hidden]`, float32: means over a word's tokens; zeros
        behind `max_seq_length`."""
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
    bidirectional: bool | None = None,
    adapters: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    pooling: str | None = None,
    instruction: str | None = None,
    template: str | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """Makes a [`Teacher`] of a name, a path or a loaded model.

    What the tokens of the model attend to is probed; a model that does not do what it is asked for is refused.

    Args:
        teacher: a repository or folder (of transformers, sentence-transformers or LLM2Vec, or an adapter of PEFT, which is merged into
            its base model), a model with or without a head, which is put into evaluation mode, or a `Teacher`, which can be
            moved to a device but not changed otherwise.
        bidirectional: whether every token of a decoder attends to all others, as in LLM2Vec, or to those before it (the setting is kept
            in the model's config). Default: what its config says; LLM2Vec's checkpoints are run bidirectionally.
        adapters: of PEFT, merged into the model one after the other.
        pooling: `mean`, `weighted_mean` (linearly, the last token most), `cls`, `last` or `max`; default: that of the folder's settings
            of sentence-transformers or LLM2Vec, else `mean`.
        instruction: read before every text that comes without one. template: read around instruction and text, for which it holds
            `{text}`. Neither is pooled, nor do their tokens get senses. Default: what the folder's settings say.
        tokenizer: or its name. Default: the one beside the model's weights.
        device: default: a GPU if there is one; a loaded model stays where it is. device_map, quantization_config: as in
            `from_pretrained`, in the place of `device`.

    Raises:
        ValueError: the checkpoint lacks weights or an adapter does not fit, the model is an encoder-decoder, does not attend as it
            should, or no tokenizer can be found.
    """
    loading = {"dtype": dtype, "device_map": device_map, "quantization_config": quantization_config}
    if isinstance(teacher, Teacher):
        _refuse(
            "a Teacher, which has its own: use dataclasses.replace(teacher, ...)",
            bidirectional=bidirectional,
            adapters=adapters,
            pooling=pooling,
            instruction=instruction,
            template=template,
            tokenizer=tokenizer,
            revision=revision,
            **loading,
        )
        if device is not None:
            _move(teacher.model, device)
        return teacher
    if type(teacher).__module__.split(".")[0] == "llm2vec":
        raise ValueError(
            "teacher is an object of the llm2vec package, whose models are silently causal on padded batches with this version of "
            "transformers: pass the name or folder of the checkpoint instead, load_teacher(path)"
        )
    names = [adapters] if isinstance(adapters, (str, os.PathLike)) else adapters or []
    names = [os.fspath(name) for name in names]
    if isinstance(teacher, PreTrainedModel):
        _refuse("a loaded model: load it with that, or pass its name", **loading)
        model, source = teacher.base_model, teacher.name_or_path
        if names and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ValueError(
                f"{type(model).__name__} has adapters in it already: merge them (merge_and_unload) before others are added"
            )
        checkpoint = read_checkpoint(source, names, revision, pooling) if source else Checkpoint("", names)
        checkpoint.adapters = names  # its own are in it
        if device is not None:
            _move(model, device)
    elif isinstance(teacher, (str, os.PathLike)):
        source = os.fspath(teacher)
        checkpoint = read_checkpoint(source, names, revision, pooling)
        model = _load_model(
            checkpoint.base, revision if checkpoint.base == source else None, trust_remote_code, **loading
        )
        _move(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        raise ValueError(
            f"teacher is {type(teacher).__name__}: pass a name, a path, a model of transformers or a Teacher"
        )
    if model.config.model_type in ("sense_embedding", "skd_student"):
        raise ValueError(f"{source} is a {type(model).__name__}, not a teacher")
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: pass its encoder, model.get_encoder(), with tokenizer="
        )
    if len(checkpoint.adapters) > 1 and getattr(model, "is_quantized", False):
        raise ValueError(
            f"{len(checkpoint.adapters)} adapters on quantized weights: merge them first, and quantize the result"
        )
    for name in checkpoint.adapters:
        model = _merge_adapter(model, name, revision if name == source else None)
    attention = _check_attention(
        model.eval(), True if bidirectional is None and checkpoint.is_llm2vec else bidirectional
    )
    if tokenizer is None:
        if not source:
            raise ValueError("the model does not say where it comes from: pass its tokenizer as tokenizer=")
        tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, str):
        of_source = {"revision": revision} if tokenizer == source else {}
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code, **of_source)
    pooling = pooling or checkpoint.pooling or "mean"
    check_pooling(pooling)
    prompt = checkpoint.prompt
    changes = {"template": template, "instruction": instruction}
    if any(value is not None for value in changes.values()):
        prompt = replace(prompt or Prompt(), **{name: value for name, value in changes.items() if value is not None})
        if template is not None or prompt.pooled == "all":
            prompt = replace(prompt, pooled="text")
    longest = model_max_length(tokenizer, model.config)
    origins = [origin_of(name) for name in (source or type(model).__name__, *names)]
    return Teacher(
        model=model,
        tokenizer=tokenizer,
        name=" + ".join(origins),
        revision=revision or getattr(model.config, "_commit_hash", None),
        pooling=pooling,
        max_seq_length=min(checkpoint.max_seq_length or longest, longest),
        max_window=longest,
        prompt=prompt,
        attention=attention,
    )


def origin_of(name: str) -> str:
    """What is remembered of a repository or folder: of a folder, which means nothing on another machine, its last part."""
    return Path(name).resolve().name if os.path.isdir(name) else name


def _refuse(beside: str, **given: Any) -> None:
    """Raises a ValueError if an argument is given beside something that it has no part in."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ValueError(f"{', '.join(names)} given beside {beside}")


def _load_model(
    name: str, revision: str | None, trust_remote_code: bool, *, dtype: Any, device_map: Any, **options: Any
) -> PreTrainedModel:
    """The bare model of a repository or folder.

    Raises:
        ValueError: weights are missing, or were put where only a forward pass finds them.
    """
    model, info = AutoModel.from_pretrained(
        name,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype or "auto",
        device_map=device_map,
        output_loading_info=True,
        **options,
    )
    # A checkpoint trained without a pooler gets a random one; the hidden states do not depend on it.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{name} lacks weights of {type(model).__name__}, which would be random: {', '.join(missing[:5])}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"device_map={device_map!r} leaves weights of {name} outside the devices: give it devices with room for all"
        )
    return model


def _move(model: PreTrainedModel, device: torch.device | str) -> None:
    """Moves a model, unless it was spread over devices or quantized where it is."""
    if not getattr(model, "hf_device_map", None) and not getattr(model, "is_quantized", False):
        model.to(device)


def _check_attention(model: PreTrainedModel, bidirectional: bool | None) -> str:
    """Makes a model attend as asked for, and proves that it does; None: as it does, with a warning if that depends on padding. Returns
    what [`probe_attention`] finds.

    Raises:
        ValueError: it does not.
    """
    found, wanted = probe_attention(model), {True: "bidirectional", False: "causal", None: None}[bidirectional]
    before = dict(vars(model.config))
    if wanted is not None and found != wanted:
        set_bidirectional(model.config, bidirectional)
        found = probe_attention(model)
    if wanted is None and found not in ("bidirectional", "causal"):
        logger.warning(
            f"{type(model).__name__} is {found} (with no padding/on either side): its vectors depend on how texts are batched"
        )
    if wanted not in (None, found):
        vars(model.config).clear()
        vars(model.config).update(before)  # a model that was passed is as it was
        raise ValueError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention is {found} (with no padding/on either side), not "
            f"{wanted}: load it with another attn_implementation ('eager', 'sdpa') and pass the model, or leave bidirectional out"
        )
    return found


def _merge_adapter(model: PreTrainedModel, folder: str, revision: str | None) -> PreTrainedModel:
    """The model with an adapter merged into its weights; into quantized ones it is not merged but attached.

    Raises:
        ValueError: not all weights of the adapter have a place in the model, or not all of its places a weight.
    """
    config = PeftConfig.from_pretrained(folder, revision=revision)
    config.inference_mode, config.task_type, config.auto_mapping = True, None, None  # the model has no head
    config.base_model_name_or_path = model.name_or_path  # as it may lie elsewhere than where the adapter was trained
    # An adapter of a model with a head has its weights one module deeper.
    pattern = re.compile(r"^base_model\.model\.(?:" + re.escape(model.base_model_prefix) + r"\.)?")
    loaded = load_peft_weights(folder, device="cpu", revision=revision)
    weights = {pattern.sub("base_model.model.", name): tensor for name, tensor in loaded.items()}
    adapted: PeftModel = get_peft_model(model, config)
    wrong = sorted(weights.keys() ^ get_peft_model_state_dict(adapted).keys())
    if wrong:
        raise ValueError(
            f"the adapter in {folder} does not fit {type(model).__name__}: {', '.join(wrong[:5])} are only in one of them"
        )
    set_peft_model_state_dict(adapted, weights)
    return adapted.get_base_model() if getattr(model, "is_quantized", False) else adapted.merge_and_unload()


def check_name(senses: SenseEmbeddingConfig, name: str) -> None:
    """Warns if a dictionary was built from a model of another name."""
    if senses.base_model_name_or_path != name:
        logger.warning_once(
            f"the dictionary was built from {senses.base_model_name_or_path}, the teacher is {name}: if they are not the same model, its "
            "senses mean nothing"
        )


def check_teacher(senses: SenseEmbeddingModel, teacher: Teacher) -> None:
    """Raises a ValueError if a dictionary cannot have been built from a teacher."""
    width, depth = teacher.model.config.hidden_size, teacher.model.config.num_hidden_layers
    if senses.config.hidden_size != width:
        raise ValueError(
            f"the senses are {senses.config.hidden_size} wide, {teacher.name} is {width}: the dictionary was built from "
            f"{senses.config.base_model_name_or_path}; build one from this teacher"
        )
    if not -depth - 1 <= senses.config.layer <= depth:
        raise ValueError(f"the senses are of layer {senses.config.layer}, {teacher.name} has only {depth} layers")
    check_name(senses.config, teacher.name)
    senses.config.check_attention(teacher.name, teacher.attention)
    before, now = senses.config.prompt, teacher.prompt and asdict(teacher.prompt)
    if before != now:
        logger.warning_once(
            f"the dictionary was built with prompt={before}, the teacher has prompt={now}: senses may be less apt"
        )
    senses.config.check_teacher_tokenizer(teacher.tokenizer)
