"""How well a language model predicts texts."""

from typing import cast

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..data import Texts, iterate_texts
from ..models.arguments import check_integer, check_kind
from ..models.attaching import has_senses
from ..models.attention import evaluating, probe_attention
from ..models.configuration_sense_embedding import next_tokens
from ..models.encoding import pad_batch, padding_id
from ..models.modeling_skd_causal_lm import SKDStudentForCausalLM
from ..models.tokenization import check_max_length, check_tokenizer, count_embeddings, model_max_length, tokenize
from ..models.windows import cut_windows


def evaluate_language_modeling(
    model: PreTrainedModel,
    texts: Texts,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    max_length: int | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """Measure how well a language model predicts each token of texts from the tokens before it.

    Longer texts are cut into windows that overlap by a quarter. Each token is counted once, in the window that shows
    more of its context. The first token of a text is not predicted.

    Args:
        model: A model with a language-model head, such as an :class:`SKDStudentForCausalLM`. Senses may be attached.
        texts: A list or iterable of strings, or a dataset with a text column.
        tokenizer: The tokenizer of the model. Default: that of a student.
        text_column: Name of the text column.
        max_length: Longest input in tokens. Default: what the model takes, at most 512.
        batch_size: Windows in a forward pass.

    Returns:
        `perplexity`; `token_accuracy`, the share of tokens with the largest logit; `tokens`, their number.

    Raises:
        ValueError: The model has no language-model head or is not causal, the tokenizer is of another model,
            `max_length` is too small, no text has two tokens, or the logits are not finite.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from sensedict_hf import evaluate_language_modeling
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=64))
        >>> scores = evaluate_language_modeling(model, texts[:4], tokenizer=teacher.tokenizer)
        >>> scores["perplexity"] > 10_000  # an untrained model knows nothing
        True
    """
    check_kind("model", model, PreTrainedModel, "a model of transformers with a language-model head, without adapters")
    batch_size = check_integer("batch_size", batch_size, 1)
    if tokenizer is None:
        tokenizer = cast(PreTrainedTokenizerBase, getattr(model, "tokenizer", None))
    check_tokenizer(tokenizer)
    _check_predicts(model, tokenizer)
    width = check_max_length(max_length, model_max_length(tokenizer, model.config.get_text_config()))

    # Cut the texts into windows, the longest first.
    strings = list(iterate_texts(texts, text_column))
    rows = [np.asarray(row) for row in tokenize(tokenizer, strings, verbose=False)["input_ids"]] if strings else []
    windows = cut_windows(np.array([len(row) for row in rows], dtype=np.int64), width)
    order = np.argsort(windows.start - windows.stop, kind="stable")
    order = order[(windows.stop - windows.start)[order] > 1]
    pad = padding_id(tokenizer, model)
    cross_entropy = torch.zeros((), dtype=torch.float64)
    right = tokens = 0

    with (
        torch.no_grad(),
        evaluating(model),
        tqdm(total=len(order), desc="Scoring", unit=" windows", leave=False) as bar,
    ):
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            shown = [rows[windows.text[n]][windows.start[n] : windows.stop[n]] for n in part]
            input_ids, mask = pad_batch(shown, pad)
            logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits
            # A token is counted in the window that owns it, at the position before it.
            targets, is_known = next_tokens(input_ids, mask)
            place = torch.arange(1, input_ids.shape[1] + 1) + torch.from_numpy(windows.start[part])[:, None]
            own = [torch.from_numpy(bound[part])[:, None] for bound in (windows.own_start, windows.own_stop)]
            counted = is_known & (place >= own[0]) & (place < own[1])
            scores, targets = logits[counted.to(logits.device)].float().cpu(), targets[counted]
            cross_entropy += F.cross_entropy(scores, targets, reduction="sum").double()
            right += int((scores.argmax(-1) == targets).sum())
            tokens += len(targets)
            bar.update(len(part))
    if not cross_entropy.isfinite():
        raise ValueError(
            "the model yields logits with values that are not finite: load it in another dtype, such as float32"
        )
    if not tokens:
        raise ValueError("no text has two tokens, so there is nothing to predict: give longer texts")
    return {
        "perplexity": float((cross_entropy / tokens).exp()),
        "token_accuracy": right / tokens,
        "tokens": tokens,
    }


def _check_predicts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError if a model does not predict the next token of a tokenizer from earlier ones alone."""
    name = type(model).__name__
    if model.get_output_embeddings() is None:
        raise ValueError(f"{name} has no language-model head: load the model with AutoModelForCausalLM")
    if isinstance(model, SKDStudentForCausalLM):
        model.config.sense_config.check_tokenizer(tokenizer)
    elif (size := count_embeddings(model)) < len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, {name} only {size}: pass the model's own")
    # Senses of the next token tell a state which token follows.
    attention = "causal" if has_senses(model) else probe_attention(cast(PreTrainedModel, model.base_model))
    if attention != "causal":
        raise ValueError(f"the attention of {name} is {attention}: only a causal model predicts the next token")
