"""Attach senses to a loaded model, in place of its contextual vectors."""

import threading
from dataclasses import dataclass
from inspect import signature
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attention import evaluating, probe_attention
from .configuration_sense_embedding import check_assignment, check_residual
from .hub import SensePreTrainedModel
from .loading import check_dictionary
from .modeling_sense_embedding import SenseEmbeddingModel
from .tokenization import count_embeddings, has_decoder

# What models call the keys and values of earlier positions. From transformers 5.24 on it is `cache`.
CACHES = ("past_key_values", "cache", "cache_params")


@dataclass
class _Pass:
    """A forward pass: its token ids and mask, and how many calls of the hooked module it has seen."""

    input_ids: Tensor
    mask: Tensor | None
    calls: int = 0


class AttachedSenses:
    """A handle that keeps senses attached to a model, made by :func:`attach_senses`.

    Call :meth:`remove` to detach them, or use the handle in a `with` statement.

    Args:
        base: A model without a head.
        senses: The sense dictionary.
        assignment: `hard`, `soft` or `none`. None: the assignment of the dictionary.
        residual: Weight of the model's own vectors, from 0 to 1. None: the residual of the dictionary.

    Attributes:
        sense_ids: `[batch, positions]`, int64: the senses that the last forward pass chose, as an index among the
            senses of the token; -1 for a token that has none and for padding. None before the first forward pass.

    Raises:
        ValueError: The assignment is unknown, the residual is not between 0 and 1, senses are attached to the model
            already, or no module of the model computes the layer of the dictionary.

    Example:
        >>> from sensedict_hf import attach_senses
        >>> batch = teacher.tokenizer(["the bank of the river"], return_tensors="pt")
        >>> with attach_senses(teacher.model, senses) as attached:
        ...     output = teacher.model(**batch)
        >>> attached.sense_ids.shape
        torch.Size([1, 7])
    """

    def __init__(
        self, base: PreTrainedModel, senses: SenseEmbeddingModel, assignment: str | None, residual: float | None
    ):
        # Check the arguments before any hook is registered.
        if assignment is not None:
            check_assignment(assignment)
        if has_senses(base):
            raise ValueError("senses are attached to this model already: remove() them first")
        check_residual(residual or 0.0)
        self.sense_ids: Tensor | None = None
        self._generating: PreTrainedModel | None = None  # the model whose `generate` is refused
        self._senses, self._assignment, self._residual = senses, assignment, residual
        self._signature = signature(base.forward)
        # The forward passes that are running, the innermost last. Each thread has its own, as under DataParallel.
        self._running = threading.local()
        # Hook into the model, and into the module that computes the layer of the dictionary.
        source, self._call = _find_source(base, senses.config.layer, senses.config.hidden_size)
        self._handles = [
            base.register_forward_pre_hook(self._remember_inputs, with_kwargs=True),
            source.register_forward_hook(self._replace, prepend=True),  # before the hooks that record hidden states
            base.register_forward_hook(self._check_replaced, always_call=True),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is of this process: a copy of the model, with its hooks, has its own forward passes."""
        return {name: value for name, value in self.__dict__.items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._running = threading.local()

    @property
    def _passes(self) -> list["_Pass"]:
        if not hasattr(self._running, "passes"):
            self._running.passes = []
        passes: list[_Pass] = self._running.passes
        return passes

    def _remember_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep token ids and mask of a forward pass, for the hook inside the model.

        Raises:
            ValueError: There are no token ids, or the mask does not have a row for each text.
        """
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given.pop("kwargs", {}), **given}
        input_ids, mask = given.get("input_ids"), given.get("attention_mask")
        if input_ids is None:
            raise ValueError("senses are chosen by token id: call the model with input_ids, not with inputs_embeds")
        if self._senses.config.key == "next" and any(given.get(name) is not None for name in CACHES):
            self._refuse_generation()
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                raise ValueError(
                    "attached senses need an attention mask [batch, positions], which tells padding from text: in "
                    "generate leave out cache_implementation='static' and the like, which make other masks"
                )
            # With a key-value cache the mask covers earlier positions too, and maybe places that are still empty.
            cache: Any = next((given[name] for name in CACHES if given.get(name) is not None), None)
            seen = cache.get_seq_length() if hasattr(cache, "get_seq_length") else mask.shape[1]
            mask = mask[:, : int(seen) + input_ids.shape[1]][:, -input_ids.shape[1] :]
        self._passes.append(_Pass(input_ids, mask))

    def refuse_generation(self, model: PreTrainedModel) -> None:
        """Make `generate` of a model raise a ValueError until the senses are removed.

        Args:
            model: The model.
        """
        self._generating = model
        vars(model)["prepare_inputs_for_generation"] = self._refuse_generation

    def _refuse_generation(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "the senses are of the next token, which is not known while a text is generated or read piece by piece: "
            "remove() them to generate, or score whole texts in one call without past_key_values"
        )

    def _replace(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Replace the output of a module by senses, in the call that computes the layer of the dictionary."""
        if not self._passes:
            return None  # gradient checkpointing runs a layer again, after the forward pass
        running = self._passes[-1]
        running.calls += 1
        if running.calls - 1 != self._call:
            return None
        hidden_states = output if isinstance(output, Tensor) else output[0]
        result = self._senses(running.input_ids, hidden_states, running.mask, self._assignment, self._residual)
        self.sense_ids = result.sense_ids
        return result.hidden_states if isinstance(output, Tensor) else (result.hidden_states, *output[1:])

    def _check_replaced(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Check after a forward pass that the hook inside the model has run.

        Raises:
            ValueError: It has not.
        """
        if self._passes and self._passes.pop().calls <= self._call and output is not None:
            raise ValueError(
                "the senses were left out of this forward pass, as torch.compile may do: set "
                "torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling, or compile a student instead"
            )

    def remove(self) -> None:
        """Detach the senses. The model returns its own vectors again.

        Example:
            >>> from sensedict_hf import attach_senses
            >>> attached = attach_senses(teacher.model, senses)
            >>> attached.remove()
        """
        for handle in self._handles:
            handle.remove()
        if self._generating is not None:
            vars(self._generating).pop("prepare_inputs_for_generation", None)

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
    """Replace the contextual vectors of a loaded model by senses.

    A language-model head then computes its logits from the senses, so texts can be scored. With senses of the next
    token (`key="next"`) `generate` raises a ValueError, because it does not know the next token.

    The model is changed in place until the senses are removed. Everything after the layer of the dictionary, such as a
    pooler or a head, reads the senses. The model then needs `input_ids`. In training the gradient passes straight
    through the senses to the model's own vectors.

    Args:
        model: An encoder or a decoder of transformers, with or without a head.
        senses: A sense dictionary built from this model.
        assignment: `hard` for the best sense of each token, `soft` for the mean of its senses, weighted by their
            probabilities, `none` for the model's own vectors. Default: the assignment of the dictionary.
        residual: Weight of the model's own vectors, from 0 to 1. Default: the residual of the dictionary.
        tokenizer: The tokenizer of the model, which is compared with that of the dictionary. Without it only the sizes
            of the vocabularies are compared.

    Returns:
        A handle. Call :meth:`AttachedSenses.remove`, or use it in a `with` statement, to detach the senses.

    Raises:
        ValueError: The dictionary does not fit the model, the model is compiled or an encoder-decoder, senses are
            attached to it already, or no module of the model computes the layer of the dictionary.

    Example:
        >>> from sensedict_hf import attach_senses
        >>> batch = teacher.tokenizer(["the bank of the river"], return_tensors="pt")
        >>> with attach_senses(teacher.model, senses, assignment="hard"):
        ...     output = teacher.model(**batch)
        >>> output.last_hidden_state.shape
        torch.Size([1, 7, 384])
    """
    # Find the model inside adapters and heads.
    check_dictionary(senses)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: pass a model of transformers, such as teacher.model")
    if hasattr(model, "get_base_model"):  # adapters of PEFT
        model = cast(Any, model).get_base_model()
    base = cast(PreTrainedModel, model.base_model)
    # Check that hooks can reach its hidden states.
    if base._compiled_call_impl is not None:
        raise ValueError("the model is compiled, which would leave the senses out: attach them before compiling")
    if has_decoder(base):
        raise ValueError(
            f"{type(base).__name__} is an encoder-decoder: attach senses to its encoder, model.get_encoder()"
        )
    # Check that the dictionary is for the tokens of the model.
    senses.config.check_takes_teacher_tokens()
    if tokenizer is not None:
        senses.config.check_tokenizer(tokenizer)
    elif (count := count_embeddings(base)) != senses.config.vocab_size:
        raise ValueError(
            f"the model has {count} tokens, the dictionary {senses.config.vocab_size}: if both have the same "
            "tokenizer, pass it as tokenizer="
        )
    if model is not base:
        base = _module_that_runs(model, base)
    if senses.config.attention is not None:
        senses.config.check_attention(base.name_or_path or type(base).__name__, probe_attention(base))
    attached = AttachedSenses(base, senses, assignment, residual)
    if senses.config.key == "next":
        attached.refuse_generation(model)
    return attached


def has_senses(model: nn.Module) -> bool:
    """Return whether senses are attached to a model or to a part of it.

    Args:
        model: The model.
    """
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return any(isinstance(getattr(hook, "__self__", None), AttachedSenses) for hook in hooks)


def _module_that_runs(model: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
    """Return the part of its base model that a model with a head runs, found by a forward pass over four tokens.

    Mostly it is the base model itself. OPTForCausalLM runs the decoder inside it. If the forward pass fails, because
    the model needs other inputs than token ids, the base model is taken.

    Raises:
        ValueError: No part of the base model runs.
    """
    calls: list[PreTrainedModel] = []
    parts = [module for module in base.modules() if isinstance(module, PreTrainedModel)]
    handles = [part.register_forward_pre_hook(lambda module, args: calls.append(module)) for part in parts]
    try:
        with torch.no_grad(), evaluating(model):
            model(input_ids=torch.arange(4, device=base.device)[None])
    except Exception:
        return base
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise ValueError(f"{type(model).__name__} does not run its base model: attach senses to model.base_model")
    return calls[0]


def _find_source(base: PreTrainedModel, layer: int, width: int) -> tuple[nn.Module, int]:
    """Find the module that computes the hidden states of a layer.

    Compares the outputs of all modules, in a forward pass over four tokens, with the hidden states that the model
    returns. This works for every architecture, wherever its pooler or head is.

    Args:
        base: A model without a head.
        layer: Index of the hidden states, -1 for the last.
        width: Width of the senses.

    Returns:
        The module, and at which of its calls in a forward pass it computes the layer, counted from 0. A module with
        shared weights, as in ALBERT, is called once for every layer.

    Raises:
        ValueError: There is no such layer, it has another width, or no module outputs it.
    """
    # Run the model, and record the first tensor that each module returns.
    outputs: list[tuple[nn.Module, int, Tensor]] = []
    calls: dict[nn.Module, int] = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
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
    # Check the layer.
    states = (result.last_hidden_state,) if layer == -1 else result.hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"the dictionary is of layer {layer}, {type(base).__name__} has hidden states 0 to {len(states) - 1}: "
            "build a dictionary from this model"
        )
    target = states[layer]
    if target.shape[-1] != width:
        raise ValueError(
            f"{type(base).__name__} is {target.shape[-1]} wide, the dictionary {width}: it was built from another "
            "model; build one from this model"
        )
    # Find the output that is this very tensor.
    for module, number, tensor in outputs:
        if tensor is target or (tensor.data_ptr() == target.data_ptr() and tensor.shape == target.shape):
            return module, number
    if isinstance(base, SensePreTrainedModel):
        raise ValueError(
            f"{type(base).__name__} has senses of its own: give it others with replace_senses, or attach them to its "
            "backbone"
        )
    raise ValueError(
        f"no module of {type(base).__name__} returns the hidden states of layer {layer}, so that senses cannot be "
        "attached: make a student instead"
    )
