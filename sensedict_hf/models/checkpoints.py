"""The small files next to a model's weights: PEFT, LLM2Vec and sentence-transformers say there how it is run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers.utils import logging

from .arguments import check_kind, is_text
from .files import find_file, is_unknown, read_json_file
from .prompts import Prompt

logger = logging.get_logger(__name__)
# Names of poolings in sentence-transformers that differ from ours. Its older versions write pooling_mode_cls_token,
# pooling_mode_weightedmean_tokens and so on.
SENTENCE_TRANSFORMERS_POOLINGS = {"weightedmean": "weighted_mean", "lasttoken": "last"}
# The settings of its module Transformer, in the order in which it looks for them: older versions named them by model.
SENTENCE_TRANSFORMERS_SETTINGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Those among them that change the vectors, and that are not read here. Older versions wrote `args`.
OTHER_SETTINGS = re.compile("(model|config|tokenizer|processor|processing)_(args|kwargs)|tokenizer_name_or_path")
HARMLESS_ARGUMENTS = {"attn_implementation", "dtype", "torch_dtype", "trust_remote_code"}
# What is taken over from a model's card.
CARD_FIELDS = ("license", "license_name", "license_link", "language")
LLM2VEC_POOLINGS = {"bos_token": "cls", "eos_token": "last", "last_token": "last"}
# LLM2Vec puts a template around the texts of these models.
LLM2VEC_TEMPLATES = {
    "Meta-Llama-3-8B-Instruct": "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
    "Mistral-7B-Instruct-v0.2": "[INST] {text} [/INST]",
    "Llama-2-7b-chat-hf": "[INST] {text} [/INST]",
    "gemma-2-9b-it": "<bos><start_of_turn>user\n{text}<end_of_turn>",
    "Qwen2-1.5B-Instruct": "<|im_start|>user\n{text}<|im_end|>",
    "Qwen2-7B-Instruct": "<|im_start|>user\n{text}<|im_end|>",
}
# LLM2Vec's pooling eos_token needs an end token after the text: by model type, and by name of the model.
LLM2VEC_ENDS = {"llama": " </s>", "mistral": " </s>", "gemma": "<eos>", "qwen2": "<|endoftext|>"}
LLM2VEC_OWN_END = {"Meta-Llama-3-8B": "<|end_of_text|>"}


@dataclass
class Checkpoint:
    """How a model is put together and run, as its files say.

    Attributes:
        base: Name or folder of the weights.
        adapters: Names or folders of the adapters of PEFT, in the order in which they are merged.
        tokenizer: Name or folder of the tokenizer: the adapter if it has one, else the base model.
        settings: The content of `llm2vec_config.json`.
        is_llm2vec: Whether the model is run as in LLM2Vec.
        pooling: How a text gets one vector. None: the files do not say.
        max_seq_length: Length in tokens at which texts are truncated. None: the files do not say.
        prompt: What the model reads around each text.
        prompts: Named prompts of sentence-transformers: strings to put before a text.
        include_prompt: Whether the tokens of a named prompt are pooled with the text.
        sentence_head: The modules after the pooling, as in :func:`make_sentence_head`.
        sentence_head_folders: The folder of each of these modules.
        similarity_fn_name: How sentence-transformers compares vectors. None: the files do not say.
        lower_case: Whether texts are lower-cased whatever the tokenizer does.
        card_data: Licence and language, as the card says.
    """

    base: str
    adapters: list[str] = field(default_factory=list)
    tokenizer: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    is_llm2vec: bool = False
    pooling: str | None = None
    max_seq_length: int | None = None
    prompt: Prompt | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    include_prompt: bool = True
    sentence_head: list[dict[str, Any]] = field(default_factory=list)
    sentence_head_folders: list[str] = field(default_factory=list)
    similarity_fn_name: str | None = None
    lower_case: bool = False
    card_data: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(
    source: str, adapters: list[str], revision: str | None = None, pooling: str | None = None
) -> Checkpoint:
    """Read the small files of a repository or folder, and of the adapters to merge into it.

    Args:
        source: Name or folder of a model or an adapter.
        adapters: Names or folders of further adapters.
        revision: Revision of the repository `source`.
        pooling: Overrides the pooling that the files name. LLM2Vec's prompt depends on it.

    Returns:
        What the files say.

    Raises:
        ValueError: An adapter is missing, does not name its base model, or was trained on top of another adapter. Or
            sentence-transformers makes other vectors from these files than are made here, and `pooling` is None.
    """
    config = read_json(source, "config.json", revision) or {}
    own = read_json(source, "adapter_config.json", revision)
    settings = read_json(source, "llm2vec_config.json", revision)
    if own is not None and not config and settings is not None:
        raise ValueError(
            f"{source} holds an adapter that LLM2Vec trained on top of another adapter, which it does not name: load "
            f"the other one first, as in load_teacher(MNTP_FOLDER, adapters={source!r})"
        )
    # A source that is an adapter goes on top of its base model, with the settings of both.
    found = Checkpoint(source, tokenizer=source)
    if own is not None:
        found = read_checkpoint(_find_base_model(own.get("base_model_name_or_path"), source), [])
        found.adapters.append(source)
        if any(read_json(source, name, revision) for name in ("tokenizer_config.json", "tokenizer.json")):
            found.tokenizer = source
    found.card_data |= read_card(source, revision)
    found.is_llm2vec |= settings is not None or _is_llm2vec(config) or _is_llm2vec(own or {})
    # Further adapters; the settings of the last one count.
    for adapter in adapters:
        theirs = read_json(adapter, "adapter_config.json")
        if theirs is None:
            raise ValueError(f"adapters: {adapter} holds no adapter of PEFT, as it has no adapter_config.json")
        above = read_json(adapter, "llm2vec_config.json")
        settings = settings if above is None else above
        found.adapters.append(adapter)
        found.is_llm2vec |= above is not None or _is_llm2vec(theirs)
    found.settings |= settings or {}
    if found.is_llm2vec:
        model_type = (config or read_json(found.base, "config.json") or {}).get("model_type", "")
        name = config.get("_name_or_path") or (own or {}).get("base_model_name_or_path") or found.base
        _apply_llm2vec(found, model_type, Path(name).name, pooling)
    else:
        apply_sentence_transformers(found, lambda name: read_json(source, name, revision), source, pooling)
        if pooling is None and is_unknown(source, "modules.json", revision):
            logger.warning(
                f"whether {source} has files of sentence-transformers is not known without a connection, so it runs "
                "without its pooling and prompts: load it once with a connection, or pass pooling="
            )
    return found


def llm2vec_prompt(
    pooling: str = "mean",
    model_type: str = "",
    name: str = "",
    skip_instruction: bool = True,
    max_text_length: int = 400,
) -> Prompt:
    """Return the prompt that LLM2Vec puts around texts.

    Args:
        pooling: Pooling by its name in LLM2Vec, such as `eos_token`.
        model_type: The `model_type` of the model.
        name: Name of the original model, without its owner.
        skip_instruction: Whether the instruction is left out of the pooling.
        max_text_length: Longest text in tokens, without the instruction.
    """
    template = LLM2VEC_TEMPLATES.get(name, "{text}")
    if pooling == "eos_token" and template != LLM2VEC_TEMPLATES["Meta-Llama-3-8B-Instruct"]:
        template += LLM2VEC_OWN_END.get(name) or LLM2VEC_ENDS.get(model_type, "")
    return Prompt(template, pooled="text_and_tail" if skip_instruction else "all", max_text_length=max_text_length)


def _apply_llm2vec(found: Checkpoint, model_type: str, name: str, pooling: str | None) -> None:
    """Set pooling, maximum length and prompt to what LLM2Vec's settings say, or to LLM2Vec's defaults."""
    mode = pooling or found.settings.get("pooling_mode", "mean")
    found.pooling = LLM2VEC_POOLINGS.get(mode, mode)
    found.max_seq_length = found.settings.get("max_length", 512)
    skip, longest = found.settings.get("skip_instruction", True), found.settings.get("doc_max_length", 400)
    found.prompt = llm2vec_prompt(mode, model_type, name, skip, longest)


def apply_sentence_transformers(
    found: Checkpoint, read: Callable[[str], Any], source: str, pooling: str | None = None
) -> None:
    """Set how texts are encoded to what the files of sentence-transformers say, if there are any.

    Args:
        found: What is known so far, which is changed.
        read: Returns the content of a file, or None.
        source: Name of the model, for messages.
        pooling: Overrides the pooling that the files name.

    Raises:
        ValueError: The files name what is not supported, and `pooling` is None.
    """
    modules = read("modules.json")
    if not modules:
        return
    not_read: list[str] = []
    for module in modules:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind == "Pooling":
            modes = read(f"{path}/config.json") or {}
            if not modes and pooling is None:
                raise ValueError(
                    f"{source} has no {path}/config.json, which says how it pools: download it again, or pass pooling="
                )
            found.pooling = read_pooling(modes)
            found.include_prompt = modes.get("include_prompt", True)
        elif kind == "Transformer":
            if path and read(f"{path}/config.json"):
                raise ValueError(
                    f"the weights of {source} are in its folder {path}, as old versions of sentence-transformers "
                    "stored them: save it anew, SentenceTransformer(name).save(folder), and give that folder"
                )
            files = (f"{path}/{name}".lstrip("/") for name in SENTENCE_TRANSFORMERS_SETTINGS)
            settings: dict[str, Any] = next(filter(None, (read(file) for file in files)), {})
            found.max_seq_length = settings.get("max_seq_length")
            found.lower_case = bool(settings.get("do_lower_case"))
            not_read += [name for name, value in settings.items() if OTHER_SETTINGS.fullmatch(name) and _counts(value)]
        elif kind == "StaticEmbedding":
            continue
        elif step := read_step(kind, read(f"{path}/config.json") or {}):
            found.sentence_head.append(step)
            found.sentence_head_folders.append(path)
        else:
            not_read.append(module["type"])
    general = read("config_sentence_transformers.json") or {}
    prompts = general.get("prompts") or {}
    check_kind("prompts of sentence-transformers", prompts, dict, "a dictionary of strings")
    found.prompts |= prompts
    found.similarity_fn_name = general.get("similarity_fn_name")
    if general.get("truncate_dim"):
        found.sentence_head.append({"kind": "truncate", "dim": general["truncate_dim"]})
        found.sentence_head_folders.append("")
    if not found.include_prompt and found.pooling in ("cls", "weighted_mean") and any(found.prompts.values()):
        not_read.append(f"pooling {found.pooling} without the prompt")
    if not_read:
        message = f"sentence-transformers makes other vectors from {source}, by {', '.join(not_read)}"
        if pooling is None:
            raise ValueError(f"{message}, which is not supported: pass pooling=, such as 'mean', to leave it out")
        logger.warning(f"{message}, which is left out")

    # Prompts are strings that stand before a text; one of them may be the default.
    default = general.get("default_prompt_name")
    if default and default not in found.prompts:
        raise ValueError(
            f"config_sentence_transformers.json of {source} has no prompt {default!r}, its default: correct the file"
        )
    prompt = found.prompts.get(default or "")
    if prompt:
        found.prompt = Prompt(prompt + "{text}", pooled="all" if found.include_prompt else "text")


def read_pooling(modes: Mapping[str, Any]) -> str:
    """Return the pooling in a file of sentence-transformers; several are joined by `+`."""
    active = [name for name, on in modes.items() if name.startswith("pooling_mode") and on]
    if "pooling_mode" in modes:
        mode = modes["pooling_mode"]
        active = [mode] if isinstance(mode, str) else list(mode)
    names = [re.sub("^pooling_mode_|_tokens?$", "", name) for name in active]
    return "+".join(SENTENCE_TRANSFORMERS_POOLINGS.get(name, name) for name in names)


def _counts(value: Any) -> bool:
    """Return whether a setting of sentence-transformers may change the vectors."""
    return bool(value.keys() - HARMLESS_ARGUMENTS) if isinstance(value, dict) else bool(value)


def read_step(kind: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return a module of sentence-transformers as a step of :func:`make_sentence_head`; None if it is another one.

    Args:
        kind: Name of its class.
        settings: Content of its file `config.json`.
    """
    if settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        return None
    if kind == "Normalize":
        return {"kind": "normalize"}
    if kind != "Dense" or settings.get("use_residual") or not {"in_features", "out_features"} <= settings.keys():
        return None
    activation = settings.get("activation_function", "Tanh").rsplit(".", 1)[-1]
    sizes = {name: settings[name] for name in ("in_features", "out_features")}
    return {"kind": "dense", **sizes, "bias": settings.get("bias", True), "activation": activation}


def _is_llm2vec(config: dict[str, Any]) -> bool:
    """Return whether the config of a model or an adapter names a class or a code file of LLM2Vec."""
    mapping, architectures = config.get("auto_mapping") or {}, config.get("architectures") or []
    remote = (config.get("auto_map") or {}).get("AutoModel", "")
    has_remote_code = remote.endswith("EncoderModel") and remote.split("--")[-1].split(".")[0].endswith("_encoder")
    return (
        str(mapping.get("parent_library", "")).startswith("llm2vec")
        or any(name.endswith(("BiModel", "BiForMNTP")) for name in architectures)
        or has_remote_code
    )


def _find_base_model(name: str | None, adapter: str) -> str:
    """Return the name or folder of an adapter's base model.

    Args:
        name: The base model that the adapter names.
        adapter: Name or folder of the adapter. If `name` is not a folder on this machine, a folder of the base model's
            name next to the adapter is taken.

    Raises:
        ValueError: The adapter does not name its base model.
    """
    if not name:
        raise ValueError(
            f"{adapter} does not name its base model (base_model_name_or_path): load that model, with this adapter in "
            "adapters="
        )
    own = Path(adapter).resolve()
    sibling = own.parent / Path(name).name
    is_here = not Path(name).is_dir() and own.is_dir() and sibling.is_dir() and sibling != own
    return str(sibling) if is_here else name


def read_json(source: str, name: str, revision: str | None = None) -> Any:
    """Return the content of a .json file in a repository or folder, or None if there is no such file.

    Args:
        source: Name of the repository, or the folder.
        name: Path of the file inside it.
        revision: Revision of the repository.

    Raises:
        ValueError: The file is broken.
    """
    path = find_file(source, name, revision=revision)
    return read_json_file(path) if path else None


def read_card(source: str, revision: str | None = None) -> dict[str, Any]:
    """Return the licence and the language that the card of a model names, as far as it does.

    Args:
        source: Name of the repository, or the folder.
        revision: Revision of the repository.
    """
    path = find_file(source, "README.md", revision=revision)
    if path is None:
        return {}
    try:
        data: Any = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):  # a card that cannot be read says nothing
        return {}
    found = {name: data.get(name) for name in CARD_FIELDS}
    return {name: value for name, value in found.items() if value and is_text(value)}
