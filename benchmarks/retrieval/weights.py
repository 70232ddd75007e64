"""Do weights of a query's tokens help late interaction? Measured on queries that no other result is of.

    python -m benchmarks.retrieval.weights --data FOLDER

All vectors of the documents are kept, so that nothing but the weights counts. `idf` is the inverse document frequency
of BM25, `log(1 + (n - d + 0.5) / (d + 0.5))`, for a token that d of n documents have. `learned` weights are an
exponential of a linear function of the token's idf, the length of its vector, whether it has a letter or digit and
whether it begins a word. The function is learned from half of the queries with their relevant documents, and scored
on the other half; both halves take a turn. The table has nDCG@10.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensedict_hf.evaluation.scores import score_ranking

from . import baselines
from .held_out import open_study
from .sets import load_set
from .vectors import TokenVectors

SETS = ("banking77", "hwu64", "xquad_retrieval", "xquad_retrieval + 700", "xquad_retrieval + 2,000")
# Weights of tokens, from their idf and whether they have a letter or digit.
WEIGHTS: dict[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]] = {
    "1": lambda idf, is_word: np.ones_like(idf),
    "0 for punctuation": lambda idf, is_word: is_word.astype(float),
    "idf ^ 0.25": lambda idf, is_word: idf**0.25,
    "idf ^ 0.5": lambda idf, is_word: idf**0.5,
    "idf": lambda idf, is_word: idf,
    "4 + idf": lambda idf, is_word: 4 + idf,
}
LEARNED = "learned"
STEPS, RATE = 200, 0.05  # of Adam, for the learned weights


def inverse_document_frequencies(documents: TokenVectors, vocab_size: int) -> NDArray[np.float64]:
    """Return the idf of all tokens, `[vocabulary]`."""
    size = len(documents.offsets) - 1
    owners = np.repeat(np.arange(size), np.diff(documents.offsets))
    pairs = np.unique(np.stack([documents.tokens, owners]), axis=1)
    counts = np.bincount(pairs[0], minlength=vocab_size)
    idf: NDArray[np.float64] = np.log1p((size - counts + 0.5) / (counts + 0.5))
    return idf


def learned_scores(
    cosines: Tensor, owners: Tensor, relevant: Sequence[Sequence[int]], features: NDArray[np.float64]
) -> Tensor:
    """Return scores with learned weights, `[queries, documents]`. Those of a query are learned from the other half.

    The loss is the cross-entropy of a softmax over all documents, whose target are the relevant ones.

    Args:
        cosines: The largest cosine of each query token with each document, `[tokens, documents]`.
        owners: The query of each token, `[tokens]`.
        relevant: The relevant documents of each query.
        features: What the weight of each token is a function of, `[tokens, features]`.
    """
    inputs = torch.from_numpy((features - features.mean(0)) / features.std(0).clip(1e-9)).float()
    queries = len(relevant)
    is_relevant = torch.zeros(queries, cosines.shape[1], dtype=torch.bool)
    for number, documents in enumerate(relevant):
        is_relevant[number, documents] = True
    scores = torch.empty(queries, cosines.shape[1])
    half = torch.arange(queries) % 2
    for part in (0, 1):
        function = torch.nn.Linear(inputs.shape[1], 1)  # its bias is the inverse temperature of the softmax
        torch.nn.init.zeros_(function.weight)
        torch.nn.init.constant_(function.bias, 2.0)
        optimizer = torch.optim.Adam(function.parameters(), RATE)
        other = (half != part)[owners].nonzero()[:, 0]

        def weighted(tokens: Tensor, function: torch.nn.Linear = function) -> Tensor:
            sums = cosines.new_zeros(queries, cosines.shape[1])
            return sums.index_add(0, owners[tokens], cosines[tokens] * function(inputs[tokens]).exp())

        for _ in range(STEPS):
            found = weighted(other)[half != part]
            wanted = found.masked_fill(~is_relevant[half != part], -torch.inf)
            loss = (found.logsumexp(1) - wanted.logsumexp(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            scores[half == part] = weighted(torch.arange(len(owners)))[half == part]
    return scores


def main() -> None:
    options, study, encoder, like = open_study("weights", __doc__)
    folder = options.output / "teacher"
    vocab_size = like.config.vocab_size
    tokens = encoder.tokenizer.convert_ids_to_tokens(list(range(vocab_size)))
    is_word = np.array([any(map(str.isalnum, token)) for token in tokens])
    begins_word = np.array([not token.startswith("##") for token in tokens])
    for name in SETS:
        texts = load_set(name, options.data, held_out=True)
        parts = texts.parts.items()
        documents = TokenVectors.join([TokenVectors.of(encoder, part, folder / f"{key}.npz") for key, part in parts])
        queries = TokenVectors.of(encoder, texts.queries, folder / f"held-out queries of {texts.first}.npz")
        idf = inverse_document_frequencies(documents, vocab_size)
        cosines = baselines.largest_cosines(queries, documents.unit(), documents.offsets)
        scores = {}
        for title, function in WEIGHTS.items():
            weights = function(idf, is_word).astype(np.float32)[queries.tokens]
            scores[title] = torch.from_numpy(np.add.reduceat(cosines * weights, queries.offsets[:-1], axis=1).T)
        length = np.linalg.norm(queries.vectors.astype(np.float32), axis=1)
        features = np.stack(
            [idf[queries.tokens], length, is_word[queries.tokens], begins_word[queries.tokens]], axis=1
        )
        owners = np.repeat(np.arange(len(texts.queries)), np.diff(queries.offsets))
        scores[LEARNED] = learned_scores(
            torch.from_numpy(cosines.T.copy()), torch.from_numpy(owners), texts.relevant, features
        )
        for title, found in scores.items():
            study.record(name, {title: score_ranking(baselines.ranking(found)[:, :10], texts.relevant)})

    entries = study.content()["entries"]
    print(f"| weight of a token | {' | '.join(SETS)} |\n|{'---|' * (len(SETS) + 1)}")
    for title in (*WEIGHTS, LEARNED):
        values = [entries[name][title]["ndcg_at_10"] for name in SETS]
        print(f"| {title} | {' | '.join(f'{value:.4f}' for value in values)} |")


if __name__ == "__main__":
    main()
