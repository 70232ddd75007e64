"""Digests by which tokenizers, and the weights of models, are told apart."""

import json
from collections.abc import Mapping
from hashlib import blake2b, sha256

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .tokenization import check_tokenizer, tokenize

# Tokenizers with the same vocabulary differ in what they do with case, accents, digits, white space, scripts and
# symbols.
PROBE = "The naïve CAFÉ's 1,234.5 e-mails\tcost  $67 & 8%?\n日本語 Привет 😀 don't_re-use it…"
PROBE_TOKENS = 200  # at most so many tokens of the vocabulary are tokenized, in lower and in upper case
DIGEST_CHUNK = 1 << 24  # numbers that are hashed at a time


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of a tokenizer's vocabulary and of the token ids that it gives to a few probe texts.

    Copies of a tokenizer have the same digest with every version of transformers. Tokenizers that differ in the
    vocabulary or on a probe text have different digests. The probe texts are a sentence with unusual characters, and
    some of the vocabulary's own tokens.

    Args:
        tokenizer: The tokenizer, slow or fast.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> tokenizer_fingerprint(teacher.tokenizer) == senses.config.tokenizer_fingerprint
        True
    """
    check_tokenizer(tokenizer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    words = [token for token, _ in vocabulary[:: 1 + len(vocabulary) // PROBE_TOKENS]]
    probes = [PROBE, " ".join(words).lower(), " ".join(words).upper()]
    tokenized = [tokenize(tokenizer, probe, truncation=False, verbose=False)["input_ids"] for probe in probes]
    return sha256(json.dumps([vocabulary, tokenized]).encode()).hexdigest()[:16]


def describe_model(model: PreTrainedModel) -> str:
    """Return what the vectors of a model depend on besides its weights: class, attention implementation and config.

    Args:
        model: The model.

    Returns:
        JSON, without names and versions.

    Example:
        >>> describe_model(teacher.model)[:12]
        '["BertModel"'
    """
    config = model.config.to_dict()
    for name in ("_name_or_path", "_commit_hash", "transformers_version", "architectures"):
        config.pop(name, None)
    kind = [type(model).__name__, model.config._attn_implementation, config]
    return json.dumps(kind, sort_keys=True, default=str)


def digest_tensors(description: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a description and of the name, dtype, shape and bytes of every tensor.

    Args:
        description: Anything else that the digest should depend on.
        tensors: The tensors by name, such as a `state_dict`. Their order counts.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> len(digest_tensors("example", {"a": torch.zeros(3)}))
        32
    """
    digest = blake2b(description.encode(), digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().view(-1)
        for begin in range(0, len(flat), DIGEST_CHUNK):
            digest.update(flat[begin : begin + DIGEST_CHUNK].cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
