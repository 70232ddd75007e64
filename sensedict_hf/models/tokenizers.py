"""What a tokenizer can do: its length limit, its special tokens, its character offsets."""

from transformers import PreTrainedTokenizerBase

# Windows are not longer unless asked for: a batch of texts as long as a long-context model takes does not fit into memory.
DEFAULT_MAX_LENGTH = 512
# Models whose positions start behind the padding index, so that two of their table are not for tokens.
POSITIONS_BEHIND_PADDING = "roberta xlm-roberta xlm-roberta-xl roberta-prelayernorm camembert longformer mpnet data2vec-text xmod luke".split()


def model_max_length(tokenizer: PreTrainedTokenizerBase, config=None) -> int:
    """The longest input in tokens: the smaller of what the tokenizer and the model's position table say."""
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or int(1e9)]
    if getattr(config, "model_type", None) in POSITIONS_BEHIND_PADDING:
        limits[1] -= 2
    return min(limits)


def check_max_length(max_length: int | None, longest: int) -> int:
    """The length of windows in tokens: what was asked for, or the longest input of the model, but not more than 512.

    Raises:
        ValueError: more than the model takes, or too few for a window with context.
    """
    if max_length is not None and not 8 <= max_length <= longest:
        raise ValueError(f"max_length={max_length}: the model takes 8 to {longest:,} tokens")
    return max_length or min(longest, DEFAULT_MAX_LENGTH)


def special_token_counts(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and behind a text."""
    plain, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for prefix in range(len(full) - len(plain) + 1):
        if full[prefix : prefix + len(plain)] == plain:
            return prefix, len(full) - len(plain) - prefix
    raise ValueError(
        f"{type(tokenizer).__name__} changes a text's own tokens when it adds special tokens: not supported"
    )


def check_offsets(*tokenizers: PreTrainedTokenizerBase) -> None:
    """Raises a ValueError if a tokenizer does not tell which characters its tokens cover."""
    for tokenizer in tokenizers:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} ({tokenizer.name_or_path or 'without a name'}) does not tell which characters its tokens "
                "cover, so that they cannot be aligned with those of another tokenizer: give its fast version, or use one for both"
            )
