"""Attention of a model: make a decoder bidirectional, and find out what the tokens of a model attend to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .tokenization import count_embeddings

logger = logging.get_logger(__name__)

PROBE_LENGTH = 8  # tokens of the probe; the last one is changed
PADDING = 3  # padding tokens on one side of the probe
# A hidden state counts as changed if it moves by more than this share of its norm. A state that does not depend on the
# change does not move at all, as it is computed from the same numbers.
REACHED = 1e-4


def set_bidirectional(config: PreTrainedConfig, bidirectional: bool) -> None:
    """Set in the config of a decoder what its tokens attend to.

    A sliding window for all layers, as in Mistral, is removed together with the causal mask, as in LLM2Vec. Sliding
    windows of single layers (`layer_types`) stay, and extend to both sides of a token, because the position embeddings
    of these layers may depend on them.

    Args:
        config: The config, which is changed.
        bidirectional: True: every token attends to all tokens. False: to itself and the tokens before it.
    """
    config.is_causal = not bidirectional
    if bidirectional:
        config.use_cache = False  # a cache holds states that have not seen the later tokens
        if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
            config.sliding_window = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside a `with` block, and restore the modes of its modules afterwards.

    Args:
        model: The model.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.inference_mode()
def probe_attention(model: PreTrainedModel) -> str:
    """Find out what the tokens of a model attend to.

    The last of a few token ids is changed. A token whose hidden state then changes too attends to the last one. This
    is done without padding, with padding on the right, and with padding on the left. The padding token is changed as
    well, which shows whether the model obeys the attention mask.

    Args:
        model: A model without a head. It is probed in evaluation mode.

    Returns:
        `bidirectional`, `causal`, `partly bidirectional` or `unmasked` (tokens attend to padding in spite of the
        mask). If the answer depends on the padding, all answers, joined by slashes.

    Raises:
        ValueError: The model does not run on token ids and an attention mask alone.
    """
    size = count_embeddings(model)
    # Token ids from 2 on: 0 and 1 are often the padding token, by which some models count positions.
    ids = 2 + torch.arange(PROBE_LENGTH, device=model.device) * 7919 % max(1, size - 2)
    changed = ids.clone()
    changed[-1] = 2 + (ids[-1] - 2 + (size - 2) // 2) % max(1, size - 2)

    def run(tokens: Tensor, left: int, right: int, filling: int) -> Tensor:
        """Return the hidden states of the tokens, `[tokens, hidden]`, read with padding on the left and right."""
        row = torch.cat([tokens.new_full((left,), filling), tokens, tokens.new_full((right,), filling)])
        mask = torch.zeros_like(row)
        mask[left : left + len(tokens)] = 1
        try:
            output = model(input_ids=row[None], attention_mask=mask[None], return_dict=True)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{type(model).__name__} does not run on token ids and an attention mask alone ({error}): give "
                "another model, or the part that reads the texts"
            ) from error
        states: Tensor = output.last_hidden_state[0]
        return states[left : left + len(tokens)].float()

    found: dict[str, None] = {}  # a set that keeps its order
    with evaluating(model):
        for left, right in ((0, 0), (0, PADDING), (PADDING, 0)):
            before = run(ids, left, right, size - 1)
            reached = _differ(before, run(changed, left, right, size - 1))[:-1]
            found["bidirectional" if reached.all() else "partly bidirectional" if reached.any() else "causal"] = None
            if _differ(before, run(ids, left, right, size // 2)).any():
                found["unmasked"] = None
    return "/".join(found)


def make_attend(model: PreTrainedModel, bidirectional: bool | None) -> str:
    """Make a model attend as asked, and probe that it does.

    Args:
        model: A model in evaluation mode. Its config is changed if necessary.
        bidirectional: True: every token attends to all tokens. False: to itself and the tokens before it. None: leave
            the model as it is, and warn if it is neither `bidirectional` nor `causal`.

    Returns:
        The answer of :func:`probe_attention`.

    Raises:
        ValueError: The model does not attend as asked.
    """
    found = probe_attention(model)
    if bidirectional is None:
        if found not in ("bidirectional", "causal"):
            logger.warning(
                f"{type(model).__name__} is {found} (without padding/with padding on either side): its vectors depend "
                "on how texts are batched"
            )
        return found
    wanted = "bidirectional" if bidirectional else "causal"
    if found == wanted:
        return found
    before = dict(vars(model.config))
    set_bidirectional(model.config, bidirectional)
    found = probe_attention(model)
    if found != wanted:
        # A loaded model is left as it was.
        vars(model.config).clear()
        vars(model.config).update(before)
        raise ValueError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention is {found} (without "
            f"padding/with padding on either side), not {wanted}: load it with another attn_implementation ('eager' "
            "or 'sdpa') and pass the model, or leave out bidirectional"
        )
    return found


def _differ(before: Tensor, after: Tensor) -> Tensor:
    """Return which hidden states differ, `[tokens]`, bool."""
    change, norm = torch.linalg.vector_norm(after - before, dim=-1), torch.linalg.vector_norm(before, dim=-1)
    return cast(Tensor, change > REACHED * norm)
