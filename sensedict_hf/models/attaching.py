"""Senses in the place of a model's contextual embeddings."""

import threading
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attention import evaluating, probe_attention
from .configuration_sense_embedding import ASSIGNMENTS, check_residual
from .modeling_sense_embedding import SenseEmbeddingModel


class AttachedSenses:
    """Keeps senses attached to a model until `remove()` is called or the `with` block ends.

    Attributes:
        sense_ids: `[batch, positions]`, what the last forward pass chose; None before it.
    """

    def __init__(
        self, base: PreTrainedModel, senses: SenseEmbeddingModel, assignment: str | None, residual: float | None
    ):
        self.sense_ids: Tensor | None = None
        if assignment not in (None, *ASSIGNMENTS):
            raise ValueError(f"unknown assignment {assignment!r}: choose one of {', '.join(ASSIGNMENTS)}")
        if any(
            isinstance(getattr(hook, "__self__", None), AttachedSenses) for hook in base._forward_pre_hooks.values()
        ):
            raise ValueError("senses are attached to this model already: remove() them first")
        check_residual(residual or 0.0)
        self._senses, self._assignment, self._residual = senses, assignment, residual
        self._signature = signature(base.forward)
        self._running = (
            threading.local()
        )  # the inputs of a forward pass, several of which may run at once, as under DataParallel
        source, self._call = _find_source(base, senses.config.layer, senses.config.hidden_size)
        self._handles = [
            base.register_forward_pre_hook(self._remember_inputs, with_kwargs=True),
            source.register_forward_hook(self._replace, prepend=True),  # before what records hidden states
            base.register_forward_hook(self._check_replaced),
        ]

    def _remember_inputs(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given.pop("kwargs", {}), **given}
        input_ids, mask = given.get("input_ids"), given.get("attention_mask")
        if input_ids is None:
            raise ValueError("senses are chosen by token id: call the model with input_ids, not with inputs_embeds")
        if mask is not None:
            if mask.dim() != 2:
                raise ValueError(
                    f"the attention mask has {mask.dim()} dimensions: attached senses need one of [batch, positions], to tell padding "
                    "from text"
                )
            mask = mask[:, -input_ids.shape[1] :]  # with a key-value cache the mask covers past positions too
        self._running.inputs, self._running.calls = (input_ids, mask), 0

    def _replace(self, module: nn.Module, args: tuple, output: Any) -> Any:
        running = self._running
        if not hasattr(running, "calls"):
            return None  # gradient checkpointing computes a layer again, in a thread of its own
        running.calls += 1
        if running.calls - 1 != self._call:
            return None
        (input_ids, mask), hidden_states = running.inputs, output if isinstance(output, Tensor) else output[0]
        result = self._senses(input_ids, hidden_states, mask, self._assignment, self._residual)
        self.sense_ids = result.sense_ids
        return result.hidden_states if isinstance(output, Tensor) else (result.hidden_states, *output[1:])

    def _check_replaced(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._running.calls <= self._call:
            raise ValueError(
                "the senses were left out of this forward pass, as torch.compile may do: set "
                "torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling, or compile a student instead"
            )

    def remove(self) -> None:
        """Gives the model its own embeddings back."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "AttachedSenses":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attach_senses(
    model: PreTrainedModel,
    senses: SenseEmbeddingModel,
    *,
    assignment: str | None = None,
    residual: float | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> AttachedSenses:
    """Makes a model use senses instead of its contextual embeddings, in place; all that follows (pooler, head) sees them.

    Args:
        model: any encoder or decoder of transformers, bare or with a head. Its forward pass then needs `input_ids`. In training the
            gradient goes straight through the senses to the model's own vectors.
        assignment: `hard`, `soft` or `none`; default: the dictionary's. residual: how much of the model's own vectors is kept, 0 to 1;
            default: the dictionary's.
        tokenizer: the model's. If given, it is checked against the dictionary's; without it the sizes of the vocabularies are.

    Returns:
        A handle: `remove()` undoes it, and so does the end of a `with` block.

    Raises:
        ValueError: the dictionary does not fit the model, whose tokens may attend to others than its teacher's did; senses are
            attached to it already; or no module yields the vectors of the dictionary's layer.
    """
    if hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()
    base = model.base_model
    if base._compiled_call_impl is not None:
        raise ValueError("the model is compiled, so that it would pass senses by: attach them first")
    if base.config.is_encoder_decoder:
        raise ValueError(
            f"{type(base).__name__} is an encoder-decoder: attach senses to its encoder, model.get_encoder()"
        )
    senses.config.check_takes_teacher_tokens()
    if tokenizer is not None:
        senses.config.check_tokenizer(tokenizer)
    elif base.get_input_embeddings().num_embeddings != senses.config.vocab_size:
        raise ValueError(
            f"the model has {base.get_input_embeddings().num_embeddings} tokens, the dictionary {senses.config.vocab_size}: if both use "
            "the same tokenizer all the same, pass it as tokenizer="
        )
    if model is not base and not _reaches(model, base):
        raise ValueError(
            f"{type(model).__name__} does not run its base model as a whole: attach senses to that, model.base_model"
        )
    if senses.config.attention is not None:
        senses.config.check_attention(base.name_or_path or type(base).__name__, probe_attention(base))
    return AttachedSenses(base, senses, assignment, residual)


def _reaches(model: PreTrainedModel, base: PreTrainedModel) -> bool:
    """Whether a model with a head calls its base model, as OPTForCausalLM, which calls what is inside that, does not."""
    calls: list[nn.Module] = []
    handle = base.register_forward_pre_hook(lambda module, args: calls.append(module))
    try:
        with torch.no_grad(), evaluating(model):
            model(input_ids=torch.arange(4, device=base.device)[None])
    except Exception:  # it takes other inputs than token ids alone, so that nothing can be said
        return True
    finally:
        handle.remove()
    return bool(calls)


def _find_source(base: PreTrainedModel, layer: int, width: int) -> tuple[nn.Module, int]:
    """The module whose output is the hidden state of `layer`, and at which of its calls in a forward pass.

    Found by looking, in a forward pass over four tokens, for the first output that is that very tensor: it holds for every
    architecture, wherever its pooler or head sits.
    """
    outputs: list[tuple[nn.Module, int, Tensor]] = []
    calls: dict[nn.Module, int] = {}

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        number = calls[module] = calls.get(module, -1) + 1
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor):
            outputs.append((module, number, tensor))

    handles = [module.register_forward_hook(record) for module in base.modules() if module is not base]
    try:
        input_ids = torch.arange(4, device=base.device)[None]
        with torch.no_grad(), evaluating(base):
            mask = torch.ones_like(input_ids)
            result = base(input_ids=input_ids, attention_mask=mask, output_hidden_states=layer != -1, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    states = (result.last_hidden_state,) if layer == -1 else result.hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"the dictionary is of layer {layer}, {type(base).__name__} has hidden states 0 to {len(states) - 1}"
        )
    target = states[layer]
    if target.shape[-1] != width:
        raise ValueError(
            f"{type(base).__name__} is {target.shape[-1]} wide, the dictionary {width}: it was built from another model"
        )
    for module, number, tensor in outputs:
        if tensor is target or (tensor.data_ptr() == target.data_ptr() and tensor.shape == target.shape):
            return module, number
    raise ValueError(
        f"no module of {type(base).__name__} yields the hidden state of layer {layer}: senses cannot be attached to it"
    )
