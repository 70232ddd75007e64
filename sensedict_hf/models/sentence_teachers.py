"""Teachers that are objects of sentence-transformers, and static models: one vector for each token, and no layers."""

import copy
import os
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from .checkpoints import Checkpoint, apply_sentence_transformers, read_card, read_json
from .configuration_layer_free import LayerFreeConfig
from .files import find_file
from .loading import TeacherParts
from .modeling_layer_free import LayerFreeModel
from .sentence_head import make_sentence_head

STATIC = "StaticEmbedding"


def take_apart(teacher: object, revision: str | None = None, pooling: str | None = None) -> TeacherParts | None:
    """Take apart a `SentenceTransformer`, or a static model of sentence-transformers or model2vec.

    Neither library is imported. A static model becomes a :class:`LayerFreeModel` whose tokens have no context, and is
    read as sentence-transformers reads it: without special tokens.

    Args:
        teacher: Such an object, or the name or folder of a static model.
        revision: Revision of the repository.
        pooling: Overrides the pooling of a `SentenceTransformer`.

    Returns:
        The parts; None for anything else.

    Raises:
        ValueError: It has modules that are not supported.
    """
    if _is_a(teacher, "sentence_transformers", "SentenceTransformer"):
        return _take_modules(teacher, pooling)
    if _is_a(teacher, "model2vec", "StaticModel"):
        static: Any = teacher
        vectors = _fold(*(getattr(static, name) for name in ("embedding", "token_mapping", "weights")))
        found = Checkpoint("", sentence_head=[{"kind": "normalize"}] * bool(static.normalize), pooling="mean")
        return _static_parts(vectors, static.tokenizer, found, make_sentence_head(found.sentence_head), "StaticModel")
    if isinstance(teacher, (str, os.PathLike)):
        return _read_static(os.fspath(teacher), revision)
    return None


def _is_a(value: object, library: str, name: str) -> bool:
    """Return whether an object is of a class of a library that may not be installed."""
    return any(kind.__module__.split(".")[0] == library and kind.__name__ == name for kind in type(value).__mro__)


def _take_modules(teacher: Any, pooling: str | None) -> TeacherParts:
    """Take apart a `SentenceTransformer`. Its settings are read as from the files that it would save."""
    first, *others = teacher
    is_static = type(first).__name__ == STATIC
    files: dict[str, Any] = {
        "modules.json": [
            {"type": type(module).__name__, "path": str(number or "")} for number, module in enumerate(teacher)
        ],
        "config_sentence_transformers.json": {
            name: getattr(teacher, name)
            for name in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
        },
    }
    files |= {f"{number}/config.json": module.get_config_dict() for number, module in enumerate(others, 1)}
    if not is_static:
        lower = {"do_lower_case": getattr(first, "do_lower_case", False)}
        files["sentence_bert_config.json"] = {"max_seq_length": teacher.max_seq_length, **lower}
    name = STATIC if is_static else str(getattr(first, "auto_model", first).name_or_path or "")
    found = Checkpoint(name, card_data=read_card(name) if os.path.isdir(name) else {})
    apply_sentence_transformers(found, files.get, f"this {type(teacher).__name__}", pooling)
    head = make_sentence_head(found.sentence_head)
    for module, path in zip(head or (), found.sentence_head_folders):
        if path and module.state_dict():
            weights = teacher[int(path)].state_dict()
            module.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in weights.items()})
    if head is not None:
        head.to(teacher.device).eval()
    if is_static:
        found.pooling = "mean"
        return _static_parts(first.embedding.weight.detach(), first.tokenizer, found, head, name)
    # sentence-transformers turns the cache off, which changes no vector: without that it is the model of the name.
    config = first.auto_model.config
    saved = (read_json(name, "config.json") if name else None) or {}
    if hasattr(config, "use_cache"):
        config.use_cache = saved.get("use_cache", type(config)().use_cache)
    return TeacherParts(first.auto_model.base_model, found, name, copy.deepcopy(first.tokenizer), head)


def _read_static(source: str, revision: str | None) -> TeacherParts | None:
    """Read a static model that sentence-transformers or model2vec has saved; None if it is none."""
    modules = read_json(source, "modules.json", revision) or []
    if not modules or not str(modules[0].get("type")).endswith(STATIC):
        return None
    files = [f"{modules[0]['path']}/{name}".lstrip("/") for name in ("model.safetensors", "tokenizer.json")]
    weights, tokenizer = (find_file(source, name, revision=revision) for name in files)
    if weights is None or tokenizer is None:
        raise ValueError(f"{source} has no {' or no '.join(files)}: save the static model again")
    tensors = load_file(weights)
    table = tensors.get("embedding.weight", tensors.get("embeddings"))
    if table is None:
        raise ValueError(f"{files[0]} of {source} holds no embeddings: save the static model again")
    found = Checkpoint(source, card_data=read_card(source, revision))

    def read(name: str) -> Any:
        return read_json(source, name, revision)

    apply_sentence_transformers(found, read, source, None)
    found.pooling = "mean"
    vectors = _fold(table, tensors.get("mapping"), tensors.get("weights"))
    return _static_parts(vectors, Tokenizer.from_file(str(tokenizer)), found, None, source)


def _static_parts(
    vectors: Tensor, tokenizer: Any, found: Checkpoint, head: nn.Sequential | None, name: str
) -> TeacherParts:
    """Make a model of the vectors of tokens, `[vocab, hidden]`."""
    rows, width = vectors.shape
    model = LayerFreeModel(LayerFreeConfig(vocab_size=rows, hidden_size=width, context_size=0, text_hidden_size=0))
    with torch.no_grad():
        model.token_embeddings.weight.copy_(vectors)
        model.token_weights.weight.zero_()
    # A tokenizer without special tokens, and without limits.
    backend = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    backend.no_padding()
    backend.no_truncation()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    known = {name: token for name, token in special.items() if backend.token_to_id(token) is not None}
    return TeacherParts(model.eval(), found, name, PreTrainedTokenizerFast(tokenizer_object=backend, **known), head)


def _fold(table: Any, mapping: Any, weights: Any) -> Tensor:
    """Return one row for each token: of a table that several tokens may share, times the weight of the token."""
    vectors = torch.as_tensor(table).float()
    if mapping is not None:
        vectors = vectors[torch.as_tensor(mapping).long()]
    return vectors if weights is None else vectors * torch.as_tensor(weights)[:, None]
