"""Vectors of the tokens of texts, which all ways to search share, and dictionaries that are fitted to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensedict_hf import SenseEmbeddingConfig, SenseEmbeddingModel
from sensedict_hf.building.fitting import cluster_samples
from sensedict_hf.retrieval.document_rows import DocumentRows
from sensedict_hf.retrieval.encoding import encode_documents
from sensedict_hf.retrieval.token_vectors import TokenBatch, TokenEncoder

# Settings of dictionaries, from one sense for each token to many.
DICTIONARIES: dict[str, dict[str, int]] = {
    "1 a token": {"senses_per_token": 1},
    "default budget": {},
    "5 a token": {"senses_per_token": 5},
    "20 a token": {"senses_per_token": 20},
}
SAMPLES_PER_TOKEN = 1000
BATCH = 1 << 14  # tokens whose senses are looked up at a time


@dataclass(frozen=True)
class TokenVectors:
    """The tokens of texts, one text after the other.

    Attributes:
        tokens: `[tokens]`, int64.
        vectors: `[tokens, hidden]`, float16.
        offsets: The tokens of text t are `offsets[t]:offsets[t + 1]`; `[texts + 1]`.
    """

    tokens: NDArray[np.int64]
    vectors: NDArray[np.float16]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, encoder: TokenEncoder, texts: Sequence[str], path: Path) -> "TokenVectors":
        """Encode texts, or read what an earlier run has encoded.

        Args:
            encoder: Makes the vectors.
            texts: The texts.
            path: The `.npz` file where they are kept.
        """
        if not path.is_file():
            rows = encoder.tokenize(texts)
            batches = [[part.cpu() for part in batch] for batch in encoder.batches(rows)]
            owners, tokens, vectors = (torch.cat(parts) for parts in zip(*batches))
            order = owners.argsort(stable=True)
            offsets = np.cumsum([0, *map(len, rows)])
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, tokens=tokens[order], vectors=vectors[order].half(), offsets=offsets)
            partial.replace(path)
        with np.load(path) as arrays:
            return cls(**arrays)

    @classmethod
    def join(cls, parts: Sequence["TokenVectors"]) -> "TokenVectors":
        """Join the tokens of several lists of texts."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        tokens, vectors = (np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "vectors"))
        return cls(tokens, vectors, np.append(0, np.cumsum(sizes)))

    def preceding(self) -> "TokenVectors":
        """Leave out the last token of each text."""
        sizes = np.diff(self.offsets)
        kept = np.ones(len(self.tokens), dtype=bool)
        kept[self.offsets[1:][sizes > 0] - 1] = False
        offsets = np.append(0, np.cumsum(np.maximum(sizes - 1, 0)))
        return TokenVectors(self.tokens[kept], self.vectors[kept], offsets)

    def predicting(self) -> "TokenVectors":
        """Give each vector to the next token of its text. The last vector of a text is left out."""
        kept = np.ones(len(self.tokens), dtype=bool)
        kept[self.offsets[:-1][np.diff(self.offsets) > 0]] = False
        return replace(self.preceding(), tokens=self.tokens[kept])

    def unit(self) -> Tensor:
        """Return the vectors with length 1, `[tokens, hidden]`, float32."""
        return torch.nn.functional.normalize(torch.from_numpy(self.vectors).float(), dim=-1)

    def of_each_text(self) -> list[Tensor]:
        """Return the vectors of each text, float32."""
        return list(torch.from_numpy(self.vectors).float().split(np.diff(self.offsets).tolist()))

    # What `encode_documents` asks of an encoder, so that the model runs once for all dictionaries.
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        return [row.tolist() for row in np.split(self.tokens, self.offsets[1:-1])]

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[TokenBatch]:
        """Yield all tokens."""
        owners = np.repeat(np.arange(len(rows)), np.diff(self.offsets))
        for begin in range(0, len(self.tokens), BATCH):
            part = slice(begin, begin + BATCH)
            vectors = torch.from_numpy(self.vectors[part]).float()
            yield TokenBatch(torch.from_numpy(owners[part]), torch.from_numpy(self.tokens[part]), vectors)


def fit_dictionary(
    texts: TokenVectors,
    like: SenseEmbeddingModel,
    senses_per_token: int | None = None,
    mean_senses: int | None = None,
    similarity: str = "l2",
) -> SenseEmbeddingModel:
    """Fit a dictionary to the vectors of texts, as a build does.

    Args:
        texts: The vectors.
        like: A dictionary of the same teacher.
        senses_per_token: Senses for every token.
        mean_senses: A budget of so many senses a token. Default: the default budget of a build.
        similarity: `l2` or `cosine`.
    """
    generator = np.random.default_rng(0)
    counts = np.bincount(texts.tokens, minlength=like.config.vocab_size)
    order = np.lexsort((generator.random(len(texts.tokens)), texts.tokens))
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    samples = order[places < SAMPLES_PER_TOKEN]
    offsets = np.append(0, np.cumsum(np.minimum(counts, SAMPLES_PER_TOKEN)))
    seen = int((counts > 0).sum())
    budget = min(6 * seen, seen + (len(samples) - seen) // 4)  # the default of a build
    if mean_senses:
        budget = min(mean_senses * seen, len(samples))
    found = cluster_samples(
        texts.vectors[samples],
        offsets,
        counts,
        senses_per_token=senses_per_token,
        budget=None if senses_per_token else budget,
        similarity=similarity,
    )
    changes = {
        "num_senses": len(found.senses),
        "distortion": found.distortion,
        "senses_dtype": "float16",
        "similarity": similarity,
    }
    senses = SenseEmbeddingModel(SenseEmbeddingConfig(**{**like.config.to_dict(), **changes}))
    senses.senses.copy_(found.senses)
    senses.offsets.copy_(found.offsets)
    return senses.eval()


def index_documents(texts: TokenVectors, senses: SenseEmbeddingModel) -> tuple[Tensor, DocumentRows]:
    """Return the table and the documents of a sense index.

    Args:
        texts: The vectors of the documents.
        senses: The dictionary.
    """
    part = encode_documents(texts, senses, [""] * (len(texts.offsets) - 1))  # type: ignore[arg-type]
    table = torch.cat([senses.dequantized().float(), part.own_rows.vectors])
    return table, DocumentRows.join([part.documents], len(table))
