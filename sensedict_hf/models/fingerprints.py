"""Digests that tell tokenizers and tensors apart."""

import json
from collections.abc import Mapping
from hashlib import blake2b, sha256

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# What a tokenizer does with case, accents, digits, white space, scripts and symbols tells it from others with the same vocabulary.
PROBE = "The naïve CAFÉ's 1,234.5 e-mails\tcost  $67 & 8%?\n日本語 Привет 😀 don't_re-use it…"
PROBE_TOKENS = 200
DIGEST_CHUNK = 1 << 24  # numbers that are hashed at a time


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary and of what the tokenizer makes of a probe text and of some of its own tokens in small letters and
    capitals: equal for two copies of a tokenizer whatever the version of the library, different for tokenizers that differ there."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    words = [token for token, _ in vocabulary[:: 1 + len(vocabulary) // PROBE_TOKENS]]
    probes = [PROBE, " ".join(words).lower(), " ".join(words).upper()]
    content = json.dumps(
        [vocabulary, [tokenizer(probe, truncation=False, verbose=False)["input_ids"] for probe in probes]]
    )
    return sha256(content.encode()).hexdigest()[:16]


def digest_tensors(description: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of a description and of every tensor's name, dtype, shape and bytes."""
    digest = blake2b(description.encode(), digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().view(-1)
        for begin in range(0, len(flat), DIGEST_CHUNK):
            digest.update(flat[begin : begin + DIGEST_CHUNK].cpu().view(torch.uint8).numpy())
    return digest.hexdigest()
