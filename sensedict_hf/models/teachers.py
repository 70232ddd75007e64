"""Teachers: any encoder or decoder of transformers with its tokenizer, loaded and checked."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from .arguments import check_device, check_dtype, check_flag, check_integer, check_kind, check_string
from .attention import make_attend
from .checkpoints import read_checkpoint
from .encoding import BatchEncoder, check_pooling, padding_id
from .files import check_source, find_commit
from .fingerprints import describe_model, digest_tensors
from .loading import (
    TeacherParts,
    check_architecture,
    check_teacher_kind,
    load_model,
    load_sentence_head,
    load_tokenizer,
    merge_adapter,
    move_model,
    refuse,
    take_model,
)
from .modeling_layer_free import LayerFreeModel
from .prompts import Prompt, change_prompt, choose_prompt
from .sentence_teachers import take_apart
from .text_encoder import TextEncoder
from .tokenization import check_tokenizer, lower_case, model_max_length

logger = logging.get_logger(__name__)
# Folders whose names say nothing of the model in them: a commit in the cache of the Hub, for one.
NAMELESS = re.compile("model|snapshots|[0-9a-f]{40}")


@dataclass
class Teacher(TextEncoder):
    """A model with its tokenizer, and how it encodes texts. Make one with :func:`load_teacher`.

    Attributes:
        model: The model, without a head, in evaluation mode.
        tokenizer: The tokenizer of the model.
        name: Name of the model's repository, or of its folder without the path. Dictionaries store it.
        revision: Revision of the model's repository.
        pooling: How a text gets one vector in :meth:`encode`: `mean`, `weighted_mean`, `cls`, `last` or `max`.
        max_seq_length: Length in tokens at which :meth:`encode` truncates a text.
        max_window: The longest input of the model, in tokens.
        prompt: What the model reads around each text.
        attention: What the tokens attend to, `bidirectional` or `causal`. None: not known.
        prompts: Named prompts for `encode(prompt_name=...)`: strings to put before a text.
        include_prompt: Whether the tokens of a named prompt are pooled with the text.
        sentence_head_steps: What :meth:`encode` does with a pooled vector, see :func:`make_sentence_head`.
        sentence_head: The modules of these steps. None: there are none.
        similarity_fn_name: How sentence-transformers compares vectors. None: not known.
        card_data: The licence and the language that its card names.

    Example:
        >>> teacher.pooling, teacher.max_seq_length, teacher.attention
        ('mean', 256, 'bidirectional')
        >>> teacher.encode(texts[:8]).shape
        torch.Size([8, 384])
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
    prompts: dict[str, str] = field(default_factory=dict)
    include_prompt: bool = True
    sentence_head_steps: list[dict[str, Any]] = field(default_factory=list)
    sentence_head: torch.nn.Sequential | None = None
    similarity_fn_name: str | None = None
    card_data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind("model", self.model, PreTrainedModel, "a model of transformers")
        check_tokenizer(self.tokenizer)
        check_string("name", self.name)
        check_pooling(self.pooling)
        check_kind("prompt", self.prompt, (Prompt, type(None)), "a Prompt, or None")
        check_kind("prompts", self.prompts, Mapping, "strings by their names")
        check_flag("include_prompt", self.include_prompt)
        self.max_seq_length = check_integer("max_seq_length", self.max_seq_length, 1)
        self.max_window = check_integer("max_window", self.max_window, 1)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def pad_token_id(self) -> int:
        """The token id to pad with."""
        return padding_id(self.tokenizer, self.model)

    @torch.inference_mode()
    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None, layer: int = -1) -> Tensor:
        """Return the hidden states of one layer.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.
            layer: 0 is the input of the first layer, -1 the output of the last layer, after a final norm.

        Returns:
            `[batch, positions, hidden]`.

        Raises:
            ValueError: The model has no such layer.

        Example:
            >>> batch = teacher.tokenizer(["River bank."], return_tensors="pt")
            >>> teacher.hidden_states(batch["input_ids"], batch["attention_mask"], layer=2).shape
            torch.Size([1, 5, 384])
        """
        if self.model.training:
            cast(torch.nn.Module, self.model).eval()
        options: dict[str, Any] = {"return_dict": True}
        if layer != -1:
            options["output_hidden_states"] = True
        if getattr(self.model.config, "use_cache", False):
            options["use_cache"] = False
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        if layer == -1:
            return cast(Tensor, output.last_hidden_state)
        if isinstance(self.model, LayerFreeModel):
            raise ValueError(
                f"layer {layer} of {self.name}: the model has no layers; choose -1, the vectors of tokens"
            )
        if not -len(output.hidden_states) <= layer < len(output.hidden_states):
            raise ValueError(
                f"layer {layer} of {self.name}: choose one of 0 to {len(output.hidden_states) - 1}, or -1 for the last"
            )
        return cast(Tensor, output.hidden_states[layer])

    def last_hidden_state(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the hidden states of the last layer, `[batch, positions, hidden]`.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.

        Example:
            >>> batch = teacher.tokenizer(["River bank."], return_tensors="pt")
            >>> teacher.last_hidden_state(batch["input_ids"]).shape
            torch.Size([1, 5, 384])
        """
        return self.hidden_states(input_ids, attention_mask)

    def fingerprint(self) -> str:
        """Return a digest of everything that the hidden states depend on.

        Two copies of a model have the same fingerprint, wherever they are stored.

        Returns:
            A digest of the model's class, attention implementation and config, a dash, and a digest of the name,
            dtype, shape and bytes of every tensor.

        Example:
            >>> teacher.fingerprint() == load_teacher(teacher.model, tokenizer=teacher.tokenizer).fingerprint()
            True
        """
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if not name.startswith("pooler.")}
        return f"{digest_tensors(describe_model(self.model), {})}-{digest_tensors('', tensors)}"

    def _batch_encoder(self, prompt_name: str | None, batch_size: int, assignment: str | None) -> BatchEncoder:
        if assignment is not None:
            raise TypeError("a teacher has no senses: leave out assignment=")
        return BatchEncoder(
            self.last_hidden_state,
            self.tokenizer,
            self.pad_token_id,
            max_length=self.max_seq_length,
            device=self.device,
            batch_size=batch_size,
            pooling=self.pooling,
            prompt=choose_prompt(prompt_name, self.prompt, self.prompts, self.include_prompt),
            hidden_size=self.model.config.hidden_size,
        )


def load_teacher(
    teacher: str | os.PathLike[str] | torch.nn.Module | Teacher,
    *,
    bidirectional: bool | None = None,
    adapters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    pooling: str | None = None,
    instruction: str | None = None,
    template: str | None = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """Load a model as a :class:`Teacher`.

    The model is probed to find out what its tokens attend to. A model that cannot attend as asked is refused.

    Args:
        teacher: A name or folder of transformers, sentence-transformers, LLM2Vec or a PEFT adapter, which is merged
            into its base model. Or a loaded model, with or without a head, or a `SentenceTransformer`, which is put
            into evaluation mode. Or a static model of sentence-transformers or model2vec, or its name or folder. Or a
            `Teacher`, which can only be moved to another device.
        bidirectional: True: every token of a decoder attends to all tokens, as in LLM2Vec. False: to itself and the
            tokens before it. The setting is stored in the model's config. Default: what the config says; checkpoints
            of LLM2Vec run bidirectionally.
        adapters: Names or folders of PEFT adapters, which are merged into the model one after the other.
        pooling: `mean`, `weighted_mean` (weights rise linearly from the first token to the last), `cls`, `last` or
            `max`. Default: what the files of sentence-transformers or LLM2Vec say, else `mean`.
        instruction: Read before every text that comes without its own. It is not pooled, and its tokens get no senses.
            Default: what the files say.
        template: Read around instruction and text; it contains `{text}`. It is not pooled, and its tokens get no
            senses. Default: what the files say.
        tokenizer: The tokenizer or its name. Default: the one stored with the weights.
        revision: Revision of the repository.
        dtype: Dtype of the weights. Default: as stored.
        device: Device of the model. Default: a GPU if there is one; a loaded model stays where it is.
        device_map: As in `from_pretrained`, instead of `device`.
        quantization_config: As in `from_pretrained`.
        trust_remote_code: Whether to run code from the repository.

    Returns:
        The teacher. A given `Teacher` is returned itself.

    Raises:
        ImportError: There is an adapter, and PEFT is not installed.
        ValueError: The checkpoint lacks weights, an adapter does not fit, the model is an encoder-decoder or does not
            attend as asked, there is no tokenizer, or its files name something for sentence-transformers that is not
            supported here.

    Example:
        >>> load_teacher(teacher.model, tokenizer=teacher.tokenizer, pooling="cls").pooling
        'cls'
        >>> teacher = load_teacher("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    """
    # Check what can be checked before anything is loaded.
    check_flag("trust_remote_code", trust_remote_code)
    if bidirectional is not None:
        check_flag("bidirectional", bidirectional)
    if revision is not None:
        check_string("revision", revision)
    if pooling is not None:
        check_pooling(pooling)
    change_prompt(None, instruction, template)
    check_dtype("dtype", dtype)
    if quantization_config is not None:
        kinds = (dict, QuantizationConfigMixin)
        check_kind("quantization_config", quantization_config, kinds, "a config of transformers, or its fields")
    device = check_device("device", device)

    # A teacher that is one already can only be moved.
    loading = {"dtype": dtype, "device_map": device_map, "quantization_config": quantization_config}
    if isinstance(teacher, Teacher):
        changes = {"pooling": pooling, "instruction": instruction, "template": template, "tokenizer": tokenizer}
        refuse(
            "a Teacher: use dataclasses.replace(teacher, ...), or load it anew by its name",
            bidirectional=bidirectional,
            adapters=adapters,
            revision=revision,
            **changes,
            **loading,
        )
        if device is not None:
            move_model(teacher.model, device)
            if teacher.sentence_head is not None:
                teacher.sentence_head.to(teacher.device)
        return teacher

    # The model, and what the files next to its weights say.
    commit = revision
    if isinstance(teacher, (str, os.PathLike)):
        teacher = check_source(teacher)
        commit = revision or find_commit(teacher)
    given = () if adapters is None else adapters if isinstance(adapters, (list, tuple)) else [adapters]
    names = [check_source(name) for name in given]
    parts = _load_parts(teacher, names, tokenizer, revision, pooling, device, trust_remote_code, loading)
    model, checkpoint, source = parts.model, parts.checkpoint, parts.name
    check_architecture(model, source, checkpoint.adapters)

    # Adapters, and only then attention, which is probed on the final weights.
    for name in checkpoint.adapters:
        model = merge_adapter(model, name, revision if name == source else None)
    cast(torch.nn.Module, model).eval()
    attention = None  # a static model has none
    if not isinstance(model, LayerFreeModel):
        attention = make_attend(model, True if bidirectional is None and checkpoint.is_llm2vec else bidirectional)
    elif bidirectional is not None:
        raise ValueError("bidirectional= with a static model: its tokens attend to nothing; leave it out")

    # How it encodes texts.
    found = tokenizer if parts.tokenizer is None else parts.tokenizer
    if found is None or isinstance(found, (str, os.PathLike)):
        name = checkpoint.tokenizer if found is None else check_source(found)
        found = load_tokenizer(name, source, revision, trust_remote_code)
    check_tokenizer(found)
    if checkpoint.lower_case and found is not tokenizer:
        lower_case(found)
    pooling = pooling or checkpoint.pooling or "mean"
    check_pooling(pooling)  # the one that the files name
    longest = model_max_length(found, model.config)
    return Teacher(
        model=model,
        tokenizer=found,
        name=" + ".join(origin_of(name) for name in (source or type(model).__name__, *names)),
        revision=commit,
        pooling=pooling,
        max_seq_length=min(checkpoint.max_seq_length or longest, longest),
        max_window=longest,
        prompt=change_prompt(checkpoint.prompt, instruction, template),
        attention=attention,
        prompts=checkpoint.prompts,
        include_prompt=checkpoint.include_prompt,
        sentence_head_steps=checkpoint.sentence_head,
        sentence_head=parts.head or load_sentence_head(checkpoint, source, revision, model.device),
        similarity_fn_name=checkpoint.similarity_fn_name,
        card_data=checkpoint.card_data,
    )


def _load_parts(
    teacher: object,
    adapters: list[str],
    tokenizer: object,
    revision: str | None,
    pooling: str | None,
    device: torch.device | str | None,
    trust_remote_code: bool,
    loading: dict[str, Any],
) -> TeacherParts:
    """Load the model of a teacher, without its adapters, and read its files. Arguments as :func:`load_teacher`.

    Args:
        loading: Arguments of `from_pretrained`, None where they are not given.
    """
    parts = take_apart(teacher, revision, pooling)
    if parts is not None:
        refuse(
            "a static model, or an object of sentence-transformers or model2vec: pass the name of a model with layers",
            adapters=adapters or None,
            tokenizer=tokenizer,
            **loading,
        )
        if device is not None:
            move_model(parts.model, device)
        return parts
    check_teacher_kind(teacher)
    if isinstance(teacher, PreTrainedModel):
        refuse("a loaded model: load the model with it, or pass the model's name", **loading)
        return take_model(teacher, adapters, revision, pooling, device)
    source = str(teacher)
    checkpoint = read_checkpoint(source, adapters, revision, pooling)
    base_revision = revision if checkpoint.base == source else None
    model = load_model(checkpoint.base, base_revision, trust_remote_code, **loading)
    move_model(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return TeacherParts(model, checkpoint, source)


def origin_of(name: str) -> str:
    """Return the name of a repository, or of a folder without its path.

    A folder in the cache of the Hub is a repository. A folder that is called just `model`, or by the id of a commit,
    has the name of its parent.

    Args:
        name: The repository, or the path of the folder.

    Example:
        >>> origin_of("sentence-transformers/all-MiniLM-L6-v2")
        'sentence-transformers/all-MiniLM-L6-v2'
    """
    if not os.path.isdir(name):
        return name
    path = Path(name).resolve()
    while NAMELESS.fullmatch(path.name) and path.parent.name:
        path = path.parent
    is_cached = path.name.startswith("models--")
    return path.name.removeprefix("models--").replace("--", "/") if is_cached else path.name
