"""What the files beside a model's weights say about how it is run: adapters of PEFT, LLM2Vec and sentence-transformers."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import cached_file, logging

from .prompts import Prompt

logger = logging.get_logger(__name__)
# Of a version of it by these names; earlier ones write pooling_mode_cls_token, pooling_mode_weightedmean_tokens and so on.
SENTENCE_TRANSFORMERS_POOLINGS = {"weightedmean": "weighted_mean", "lasttoken": "last"}
LLM2VEC_POOLINGS = {"bos_token": "cls", "eos_token": "last", "last_token": "last"}
# LLM2Vec wraps texts for these models, known by name.
LLM2VEC_TEMPLATES = {
    "Meta-Llama-3-8B-Instruct": "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
    "Mistral-7B-Instruct-v0.2": "[INST] {text} [/INST]",
    "Llama-2-7b-chat-hf": "[INST] {text} [/INST]",
    "gemma-2-9b-it": "<bos><start_of_turn>user\n{text}<end_of_turn>",
    "Qwen2-1.5B-Instruct": "<|im_start|>user\n{text}<|im_end|>",
    "Qwen2-7B-Instruct": "<|im_start|>user\n{text}<|im_end|>",
}
# What its pooling eos_token looks at, written behind the text.
LLM2VEC_ENDS = {"llama": " </s>", "mistral": " </s>", "gemma": "<eos>", "qwen2": "<|endoftext|>"}
LLM2VEC_OWN_END = {"Meta-Llama-3-8B": "<|end_of_text|>"}


@dataclass
class Checkpoint:
    """How a model is put together and run, as far as its files say.

    Attributes:
        base: name or folder of the weights. adapters: those on top of them, in the order in which they are merged.
        tokenizer: where it is: beside the adapter, or else beside the base model.
        is_llm2vec: whether it is run as in LLM2Vec, with these settings. pooling, max_seq_length: None where nothing is said. prompt:
            around texts.
    """

    base: str
    adapters: list[str] = field(default_factory=list)
    tokenizer: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    is_llm2vec: bool = False
    pooling: str | None = None
    max_seq_length: int | None = None
    prompt: Prompt | None = None


def read_checkpoint(
    source: str, adapters: list[str], revision: str | None = None, pooling: str | None = None
) -> Checkpoint:
    """Reads the small files of a repository or folder, and of adapters that are put on top of it.

    Args:
        revision: of `source`. pooling: in the place of what the files say.

    Raises:
        ValueError: an adapter is missing or does not say what it belongs to, or was trained on top of another one.
    """
    config = read_json(source, "config.json", revision) or {}
    own = read_json(source, "adapter_config.json", revision)
    settings = read_json(source, "llm2vec_config.json", revision)
    if own is not None and not config and settings is not None:
        raise ValueError(
            f"{source} holds an adapter that LLM2Vec trained on top of another one, which it does not name: load that, with this one in "
            f"adapters=, as in load_teacher(MNTP_FOLDER, adapters={source!r})"
        )
    found = Checkpoint(source, tokenizer=source)
    if own is not None:
        found = read_checkpoint(_beside(own.get("base_model_name_or_path"), source), [])
        found.adapters.append(source)
        if any(read_json(source, name, revision) for name in ("tokenizer_config.json", "tokenizer.json")):
            found.tokenizer = source
    found.is_llm2vec |= settings is not None or _names_llm2vec(config) or _names_llm2vec(own or {})
    for adapter in adapters:
        theirs = read_json(adapter, "adapter_config.json")
        if theirs is None:
            raise ValueError(f"adapters: {adapter} holds no adapter of PEFT (adapter_config.json)")
        above = read_json(adapter, "llm2vec_config.json")
        settings = settings if above is None else above
        found.adapters.append(adapter)
        found.is_llm2vec |= above is not None or _names_llm2vec(theirs)
    found.settings |= settings or {}
    if found.is_llm2vec:
        kind = (config or read_json(found.base, "config.json") or {}).get("model_type", "")
        name = config.get("_name_or_path") or (own or {}).get("base_model_name_or_path") or found.base
        mode = pooling or found.settings.get("pooling_mode", "mean")
        found.pooling = LLM2VEC_POOLINGS.get(mode, mode)
        found.max_seq_length = found.settings.get("max_length", 512)
        skip, longest = found.settings.get("skip_instruction", True), found.settings.get("doc_max_length", 400)
        found.prompt = llm2vec_prompt(mode, kind, Path(name).name, skip, longest)
    else:
        _apply_sentence_transformers(found, source, revision)
    return found


def llm2vec_prompt(
    pooling: str = "mean", kind: str = "", name: str = "", skip_instruction: bool = True, max_text_length: int = 400
) -> Prompt:
    """What LLM2Vec puts around texts.

    Args:
        pooling: in its words. kind: `model_type` of the model. name: of the model that it was made of, without its owner.
        max_text_length: in tokens, without instruction.
    """
    template = LLM2VEC_TEMPLATES.get(name, "{text}")
    if pooling == "eos_token" and template != LLM2VEC_TEMPLATES["Meta-Llama-3-8B-Instruct"]:
        template += LLM2VEC_OWN_END.get(name) or LLM2VEC_ENDS.get(kind, "")
    return Prompt(template, pooled="text_and_tail" if skip_instruction else "all", max_text_length=max_text_length)


def _apply_sentence_transformers(found: Checkpoint, source: str, revision: str | None) -> None:
    """Pooling, maximum length and default prompt of a sentence-transformers model; nothing for any other."""
    modules = read_json(source, "modules.json", revision) or []
    pools_prompt = True
    for module in modules:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind == "Pooling":
            modes = read_json(source, f"{path}/config.json", revision) or {}
            active = [name for name, on in modes.items() if name.startswith("pooling_mode") and on]
            if "pooling_mode" in modes:
                active = [modes["pooling_mode"]]
            names = [re.sub("^pooling_mode_|_tokens?$", "", name) for name in active]
            found.pooling = "+".join(SENTENCE_TRANSFORMERS_POOLINGS.get(name, name) for name in names)
            pools_prompt = modes.get("include_prompt", True)
        elif kind == "Transformer":
            settings = read_json(source, f"{path}/sentence_bert_config.json".lstrip("/"), revision) or {}
            found.max_seq_length = settings.get("max_seq_length")
        elif kind != "Normalize":
            logger.warning(
                f"the sentence vectors of {source} also go through {module['type']}, which `encode` leaves out"
            )
    settings = (modules and read_json(source, "config_sentence_transformers.json", revision)) or {}
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name") or "")
    if prompt:
        found.prompt = Prompt(prompt + "{text}", pooled="all" if pools_prompt else "text")


def _names_llm2vec(config: dict[str, Any]) -> bool:
    """Whether a config of a model or of an adapter is of a class of LLM2Vec, or of the code in its repositories."""
    mapping, architectures = config.get("auto_mapping") or {}, config.get("architectures") or []
    remote = (config.get("auto_map") or {}).get("AutoModel", "")
    return (
        str(mapping.get("parent_library", "")).startswith("llm2vec")
        or any(name.endswith(("BiModel", "BiForMNTP")) for name in architectures)
        or remote.endswith("EncoderModel")
        and remote.split("--")[-1].split(".")[0].endswith("_encoder")
    )


def _beside(name: str | None, adapter: str) -> str:
    """The base model of an adapter: by its name, or, if that is no folder here, in a folder of that name beside the adapter's own."""
    if not name:
        raise ValueError(
            f"{adapter} does not say what it is an adapter of (base_model_name_or_path): load that, with it in adapters="
        )
    own = Path(adapter).resolve()
    beside = own.parent / Path(name).name
    return str(beside) if not Path(name).is_dir() and own.is_dir() and beside.is_dir() and beside != own else name


def read_json(source: str, name: str, revision: str | None = None) -> Any:
    """The content of a .json file of a repository or folder; None if there is no such file."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(source, name, revision=revision, **quiet)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None
