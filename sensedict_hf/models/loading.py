"""Loading the parts of a teacher, and dictionaries. PEFT is imported only if there is an adapter."""

import os
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .arguments import check_device, check_device_map, check_flag, check_kind
from .checkpoints import Checkpoint, read_checkpoint
from .files import check_source, find_file, reading
from .modeling_sense_embedding import SenseEmbeddingModel
from .sentence_head import Dense, make_sentence_head
from .tokenization import count_embeddings, has_decoder


@dataclass
class TeacherParts:
    """What a teacher is made from.

    Attributes:
        model: The model, without a head.
        checkpoint: What its files say.
        name: Its name, or the path of its folder. Empty: not known.
        tokenizer: Its tokenizer. None: it is still to be loaded.
        head: The modules after the pooling. None: there are none, or they are still to be loaded.
    """

    model: PreTrainedModel
    checkpoint: Checkpoint
    name: str
    tokenizer: PreTrainedTokenizerBase | None = None
    head: torch.nn.Sequential | None = None


def take_model(
    teacher: PreTrainedModel,
    adapters: list[str],
    revision: str | None,
    pooling: str | None,
    device: torch.device | str | None,
) -> TeacherParts:
    """Take a model that is loaded already, and read the files that it was loaded from.

    Args:
        teacher: The model, with or without a head.
        adapters: Names or folders of adapters to merge into it.
        revision: Revision of the model's repository.
        pooling: Overrides the pooling in LLM2Vec's settings.
        device: Where to move the model. None: it stays where it is.

    Returns:
        The model without its head, and what the files say.

    Raises:
        ValueError: There are adapters to merge, and the model has some already.
    """
    model, source = cast(PreTrainedModel, teacher.base_model), str(teacher.name_or_path or "")
    if adapters and _has_adapters(model):
        raise ValueError(
            f"{type(model).__name__} has adapters in it already: merge them (merge_and_unload) before you add others"
        )
    checkpoint = read_checkpoint(source, adapters, revision, pooling) if source else Checkpoint("")
    checkpoint.adapters = adapters  # those that the files name are in the model already
    if device is not None:
        move_model(model, device)
    return TeacherParts(model, checkpoint, source)


def load_model(
    name: str, revision: str | None, trust_remote_code: bool, *, dtype: Any, device_map: Any, **options: Any
) -> PreTrainedModel:
    """Load a model without a head.

    Args:
        name: Name or folder of the weights.
        revision: Revision of the repository.
        trust_remote_code: Whether to run code from the repository.
        dtype: Dtype of the weights. None: as stored.
        device_map: As in `from_pretrained`.
        options: Other arguments of `from_pretrained`.

    Returns:
        The model.

    Raises:
        ValueError: The checkpoint lacks weights, or `device_map` leaves some outside of all devices.
    """
    check_device_map(device_map)
    with reading(name):
        model, info = AutoModel.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype or "auto",
            device_map=device_map,
            output_loading_info=True,
            **options,
        )
    # A checkpoint trained without a pooler gets a random one. The hidden states do not depend on it.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{name} lacks weights of {type(model).__name__}, which would be random: {', '.join(missing[:5])}; give a "
            "complete checkpoint"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"device_map={device_map!r} leaves weights of {name} outside of all devices: name devices with enough "
            "memory"
        )
    return cast(PreTrainedModel, model)


def is_quantized(model: PreTrainedModel) -> bool:
    """Return whether the weights of a model are quantized. Those of a GGUF file are floats once they are loaded."""
    return bool(getattr(model, "is_quantized", False)) and model.quantization_method != "gguf"


def move_model(model: PreTrainedModel, device: torch.device | str) -> None:
    """Move a model to a device, unless it is spread over several devices or quantized.

    Args:
        model: The model, which is moved in place.
        device: Where to move it.
    """
    if not getattr(model, "hf_device_map", None) and not is_quantized(model):
        cast(torch.nn.Module, model).to(check_device("device", device))


def load_tokenizer(name: str, source: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: Name or folder of the tokenizer. Empty: not known.
        source: The repository that `revision` refers to. A tokenizer from elsewhere is loaded in its default revision.
        revision: Revision of `source`.
        trust_remote_code: Whether to run code from the repository.

    Returns:
        The tokenizer.

    Raises:
        ValueError: The name is empty.
    """
    if not name:
        raise ValueError("the model does not say where it was loaded from: pass its tokenizer as tokenizer=")
    options = {"revision": revision} if name == source else {}
    with reading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_sentence_head(
    checkpoint: Checkpoint, source: str, revision: str | None, device: torch.device
) -> torch.nn.Sequential | None:
    """Load what sentence-transformers does with a pooled vector.

    Args:
        checkpoint: What the files say.
        source: Name or folder of the repository.
        revision: Its revision.
        device: Where to put the modules.

    Returns:
        The modules; None if there are none.

    Raises:
        ValueError: A dense layer has an unknown activation, no weights in safetensors, or weights that do not fit.
    """
    head = make_sentence_head(checkpoint.sentence_head)
    for module, path in zip(head or (), checkpoint.sentence_head_folders):
        if not isinstance(module, Dense):
            continue
        name = f"{path}/model.safetensors"
        file = find_file(source, name, revision=revision)
        if file is None:
            raise ValueError(
                f"{source} has no {name}: save its dense layer with safetensors, by a newer version of "
                "sentence-transformers"
            )
        tensors = {key.removeprefix("linear."): tensor for key, tensor in load_file(file).items()}
        expected = {key: tensor.shape for key, tensor in module.state_dict().items()}
        if {key: tensor.shape for key, tensor in tensors.items()} != expected:
            raise ValueError(f"{name} of {source} does not fit its config.json: save the model again")
        module.load_state_dict(tensors)
    return None if head is None else head.to(device).eval()


def merge_adapter(model: PreTrainedModel, source: str, revision: str | None = None) -> PreTrainedModel:
    """Merge an adapter into the weights of a model.

    Quantized weights cannot be changed; the adapter then stays attached to them.

    Args:
        model: The base model, without a head. It is changed.
        source: Name or folder of the adapter.
        revision: Revision of the adapter's repository.

    Returns:
        The model with the adapter.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: The adapter has weights that the model has no place for, or lacks some.
    """
    peft = _import_peft()
    config = peft.PeftConfig.from_pretrained(source, revision=revision)
    config.inference_mode, config.task_type, config.auto_mapping = True, None, None  # the model has no head
    config.base_model_name_or_path = model.name_or_path  # the adapter may name the place where it was trained
    # The weights of an adapter for a model with a head are one module deeper.
    pattern = re.compile(r"^base_model\.model\.(?:" + re.escape(model.base_model_prefix) + r"\.)?")
    loaded = peft.load_peft_weights(source, device="cpu", revision=revision)
    weights = {pattern.sub("base_model.model.", name): tensor for name, tensor in loaded.items()}
    adapted = peft.get_peft_model(model, config)
    wrong = sorted(weights.keys() ^ peft.get_peft_model_state_dict(adapted).keys())
    if wrong:
        raise ValueError(
            f"the adapter in {source} does not fit {type(model).__name__}: only one of them has "
            f"{', '.join(wrong[:5])}; load the model that the adapter was trained on"
        )
    peft.set_peft_model_state_dict(adapted, weights)
    merged: PreTrainedModel = adapted.get_base_model() if is_quantized(model) else adapted.merge_and_unload()
    return merged


def _has_adapters(model: PreTrainedModel) -> bool:
    """Return whether a model has adapters of PEFT in its layers."""
    tuner_layer = _import_peft().tuners.tuners_utils.BaseTunerLayer
    return any(isinstance(module, tuner_layer) for module in model.modules())


def _import_peft() -> Any:
    """Import PEFT.

    Raises:
        ImportError: PEFT is not installed.
    """
    # In a `try` block transformers does not count PEFT among the requirements of a model with code of its own.
    try:
        import peft
    except ImportError as error:
        raise ImportError("loading an adapter needs PEFT: pip install peft") from error
    return peft


def refuse(what: str, **arguments: Any) -> None:
    """Raise a ValueError if one of the arguments, which cannot be given with `what`, is not None."""
    names = [f"{name}=" for name, value in arguments.items() if value is not None]
    if names:
        raise ValueError(f"{', '.join(names)} cannot be given with {what}")


def check_teacher_kind(teacher: object) -> None:
    """Raise a ValueError if an object cannot be a teacher."""
    if type(teacher).__module__.split(".")[0] == "llm2vec":
        raise ValueError(
            "teacher is an object of the llm2vec package. With this version of transformers its models are causal on "
            "padded batches, without a warning: pass the name or folder of the checkpoint instead, load_teacher(path)"
        )
    if not isinstance(teacher, (str, os.PathLike, PreTrainedModel)):
        raise ValueError(
            f"teacher is {type(teacher).__name__}: pass a name, a folder, a model of transformers, a "
            "SentenceTransformer or a Teacher"
        )


def check_architecture(model: PreTrainedModel, source: str, adapters: list[str]) -> None:
    """Check that a model can be a teacher, with these adapters.

    Raises:
        ValueError: It is a dictionary, a student or an encoder-decoder, it reads no token ids, or it is quantized and
            there are several adapters.
    """
    if model.config.model_type in ("sense_embedding", "skd_student"):
        kind = type(model).__name__
        raise ValueError(f"{source or kind} is a {kind}, not a teacher: give the model that it was made from")
    if has_decoder(model):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: pass its encoder, model.get_encoder(), with tokenizer="
        )
    count_embeddings(model)
    if len(adapters) > 1 and is_quantized(model):
        raise ValueError(f"{len(adapters)} adapters on quantized weights: merge them first, and quantize the result")


def check_dictionary(senses: object) -> None:
    """Raise a ValueError if an object is not a sense dictionary."""
    check_kind("senses", senses, SenseEmbeddingModel, "a SenseEmbeddingModel, such as load_senses(folder)")


def load_senses(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> SenseEmbeddingModel:
    """Load a sense dictionary, or the dictionary inside a student.

    Args:
        path: A folder or a repository of the Hub that holds a :class:`SenseEmbeddingModel`, or a student with or
            without a head.
        trust_remote_code: Whether to run code from the folder or repository, such as that of its tokenizer.

    Returns:
        The dictionary, in evaluation mode.

    Raises:
        ValueError: There is no such folder, or it holds no finished model, or another kind of model.
        OSError: There is no such repository.

    Example:
        >>> from sensedict_hf import load_senses
        >>> student.save_pretrained("skd-minilm")
        >>> load_senses("skd-minilm").senses_of("bank").shape[1]
        384
    """
    check_flag("trust_remote_code", trust_remote_code)
    path = check_source(path)
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(
            f"{path} holds no finished model (there is no config.json): if a command was making one there, run it "
            "again"
        )
    with reading(path):
        kind = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).model_type
    if kind not in ("sense_embedding", "skd_student"):
        raise ValueError(
            f"{path} holds a {kind} model, not a sense dictionary or a student: make a dictionary with sensedict build"
        )
    model = AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code)
    return cast(SenseEmbeddingModel, model.senses if kind == "skd_student" else model)
