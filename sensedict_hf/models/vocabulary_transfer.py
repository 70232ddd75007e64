"""Another tokenizer for a model: each new token gets an embedding made from the model's old ones."""

import copy
import os
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .layer_transfer import check_weights
from .teachers import Teacher, load_teacher
from .tokenization import POSITIONS_AFTER_PADDING, check_tokenizer, tokenize

logger = logging.get_logger(__name__)

# Tokens with the same part in two tokenizers, whatever they are called.
ROLES = ("pad_token", "unk_token", "mask_token", "cls_token", "sep_token", "bos_token", "eos_token")
# Tokenizers without one of these names have the other.
SAME_ROLE = {"cls_token": "bos_token", "bos_token": "cls_token", "sep_token": "eos_token", "eos_token": "sep_token"}


def adopt_tokenizer(
    backbone: str | os.PathLike[str] | PreTrainedModel | Teacher, tokenizer: PreTrainedTokenizerBase
) -> Teacher:
    """Return a copy of a model that reads the tokens of another tokenizer.

    With it a small pretrained model becomes the backbone of a student whose teacher has other tokens, see
    :meth:`SKDStudentModel.from_backbone`. A token that both tokenizers have keeps its embedding, also a special token
    with another name. Any other token gets the mean embedding of the old tokens that its text consists of, so the
    model has to be trained before its vectors are good.

    Args:
        backbone: A name, a path, a loaded model or a :class:`Teacher`.
        tokenizer: The new tokenizer, such as that of the teacher.

    Returns:
        The copy with the new tokenizer. The given model stays as it is.

    Raises:
        ValueError: The weights are quantized, or the model counts its positions from the padding token and the new
            tokenizer has another one.

    Example:
        >>> from sensedict_hf import SKDStudentModel, adopt_tokenizer
        >>> backbone = adopt_tokenizer(teacher, senses.tokenizer)  # any small model in the place of `teacher`
        >>> student = SKDStudentModel.from_backbone(backbone, senses)
    """
    # Check that the model can take other tokens.
    check_tokenizer(tokenizer)
    backbone = load_teacher(backbone)
    check_weights(backbone)
    old = _embeddings(backbone.model).weight.detach()
    config, padding = backbone.model.config, tokenizer.pad_token_id
    if config.model_type in POSITIONS_AFTER_PADDING and padding != config.pad_token_id:
        raise ValueError(
            f"{backbone.name} counts its positions from the id of the padding token, {config.pad_token_id}, but the "
            f"new tokenizer pads with {padding}: choose a backbone of another architecture"
        )

    # Put the new embeddings into a copy.
    new, num_kept = _new_embeddings(old, backbone.tokenizer, tokenizer)
    logger.info(f"{num_kept:,} of {len(tokenizer):,} tokens keep their embedding in {backbone.name}")
    model = copy.deepcopy(backbone.model)
    model.resize_token_embeddings(len(new), mean_resizing=False)
    embeddings = _embeddings(model)
    embeddings.weight.data.copy_(new)
    embeddings.padding_idx = model.config.get_text_config().pad_token_id = padding
    return replace(backbone, model=model, tokenizer=tokenizer)


def _embeddings(model: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, model.get_input_embeddings())


def _new_embeddings(
    old: Tensor, old_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, int]:
    """Make the embeddings of all tokens of a tokenizer from a model's old ones.

    Args:
        old: `[old tokens, hidden]`.
        old_tokenizer: The tokenizer of the old embeddings.
        tokenizer: The new tokenizer.

    Returns:
        `[new tokens, hidden]`, and how many tokens are in both tokenizers.
    """
    # Tokens that both have.
    vocabulary, new_vocabulary = old_tokenizer.get_vocab(), tokenizer.get_vocab()
    same = {index: [vocabulary[token]] for token, index in new_vocabulary.items() if token in vocabulary}
    for role in ROLES:
        token = getattr(tokenizer, role)
        old_token = getattr(old_tokenizer, role) or getattr(old_tokenizer, SAME_ROLE.get(role, role))
        if token is not None and old_token is not None:
            same[new_vocabulary[token]] = [vocabulary[old_token]]

    # The old tokens of the texts of all others.
    others = [index for index in range(max(new_vocabulary.values()) + 1) if index not in same]
    texts = [str(tokenizer.decode([index])).strip().removeprefix("##") or " " for index in others]
    pieces = tokenize(old_tokenizer, texts, add_special_tokens=False)["input_ids"] if others else []
    unknown = [0 if old_tokenizer.unk_token_id is None else old_tokenizer.unk_token_id]
    ids_of = same | {index: ids or unknown for index, ids in zip(others, pieces)}

    # Their means.
    ids = [ids_of[index] for index in range(len(ids_of))]
    lengths = torch.tensor([len(each) for each in ids])
    rows = old[torch.tensor([index for each in ids for index in each], device=old.device)]
    owners = torch.repeat_interleave(torch.arange(len(ids)), lengths).to(old.device)
    sums = old.new_zeros(len(ids), old.shape[1], dtype=torch.float32).index_add_(0, owners, rows.float())
    return (sums / lengths.to(old.device)[:, None]).to(old.dtype), len(same)
