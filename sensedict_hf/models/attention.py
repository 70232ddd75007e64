"""Decoders run bidirectionally, and the proof that they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

PROBE_LENGTH = 8  # tokens, of which the last is changed
PADDING = 3  # tokens on a side
# A hidden state was reached by a change if it moved by more than this share of its length. Where nothing attends to what changed, all
# operands are the same.
REACHED = 1e-4


def set_bidirectional(config: PreTrainedConfig, bidirectional: bool) -> None:
    """Notes in the config of a decoder whether every token attends to all others (as LLM2Vec does) or to those before it.

    A sliding window that the config has for all layers at once, as Mistral's, is dropped with the causal mask, as in LLM2Vec; windows
    that it gives to layers one by one, to which their positions may be adapted, stay, on both sides of the token.
    """
    config.is_causal = not bidirectional
    if bidirectional:
        config.use_cache = False  # a cache holds states that have not seen what comes later
        if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
            config.sliding_window = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode for a while, and each of its modules back into its own."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.inference_mode()
def probe_attention(model: PreTrainedModel) -> str:
    """What the tokens of a model attend to in evaluation, found by changing the last one: without padding, and with padding on either
    side.

    Returns:
        `bidirectional`, `causal`, `partly bidirectional` or, if padding is seen in spite of the mask, `unmasked`; several, joined by a
        slash, where that depends on the padding.
    """
    size = model.get_input_embeddings().num_embeddings
    # Not 0 and 1, one of which is often the padding token, that some models number positions by.
    ids = 2 + torch.arange(PROBE_LENGTH, device=model.device) * 7919 % max(1, size - 2)
    changed = ids.clone()
    changed[-1] = 2 + (ids[-1] - 2 + (size - 2) // 2) % max(1, size - 2)

    def run(tokens: Tensor, left: int, right: int, filling: int) -> Tensor:
        row = torch.cat([tokens.new_full((left,), filling), tokens, tokens.new_full((right,), filling)])
        mask = torch.zeros_like(row)
        mask[left : left + len(tokens)] = 1
        states = model(input_ids=row[None], attention_mask=mask[None], return_dict=True).last_hidden_state[0]
        return states[left : left + len(tokens)].float()

    found: dict[str, None] = {}  # a set in the order of what is put in
    with evaluating(model):
        for left, right in ((0, 0), (0, PADDING), (PADDING, 0)):
            before = run(ids, left, right, size - 1)
            reached = _reached(before, run(changed, left, right, size - 1))[:-1]
            found["bidirectional" if reached.all() else "partly bidirectional" if reached.any() else "causal"] = None
            if _reached(before, run(ids, left, right, size // 2)).any():
                found["unmasked"] = None
    return "/".join(found)


def _reached(before: Tensor, after: Tensor) -> Tensor:
    """Which hidden states differ, `[positions]`."""
    return torch.linalg.vector_norm(after - before, dim=-1) > REACHED * torch.linalg.vector_norm(before, dim=-1)
