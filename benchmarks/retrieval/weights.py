"""Do weights of a query's tokens help late interaction? Measured on queries that no other result is of.

    python -m benchmarks.retrieval.weights --data FOLDER

All vectors of the documents are kept, so that nothing but the weights counts. `idf` is the inverse document frequency
of BM25, `log(1 + (n - d + 0.5) / (d + 0.5))`, for a token that d of n documents have. The table has nDCG@10.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

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


def inverse_document_frequencies(documents: TokenVectors, vocab_size: int) -> NDArray[np.float64]:
    """Return the idf of all tokens, `[vocabulary]`."""
    size = len(documents.offsets) - 1
    owners = np.repeat(np.arange(size), np.diff(documents.offsets))
    pairs = np.unique(np.stack([documents.tokens, owners]), axis=1)
    counts = np.bincount(pairs[0], minlength=vocab_size)
    idf: NDArray[np.float64] = np.log1p((size - counts + 0.5) / (counts + 0.5))
    return idf


def main() -> None:
    options, study, encoder, like = open_study("weights", __doc__)
    folder = options.output / "teacher"
    vocab_size = like.config.vocab_size
    tokens = encoder.tokenizer.convert_ids_to_tokens(list(range(vocab_size)))
    is_word = np.array([any(map(str.isalnum, token)) for token in tokens])
    for name in SETS:
        texts = load_set(name, options.data, held_out=True)
        parts = texts.parts.items()
        documents = TokenVectors.join([TokenVectors.of(encoder, part, folder / f"{key}.npz") for key, part in parts])
        queries = TokenVectors.of(encoder, texts.queries, folder / f"held-out queries of {texts.first}.npz")
        idf = inverse_document_frequencies(documents, vocab_size)
        for title, function in WEIGHTS.items():
            weights = function(idf, is_word).astype(np.float32)
            scores = baselines.late_interaction(queries, documents.unit(), documents.offsets, weights)
            ranking = baselines.ranking(scores)[:, :10]
            study.record(name, {title: score_ranking(ranking, texts.relevant)})

    entries = study.content()["entries"]
    print(f"| weight of a token | {' | '.join(SETS)} |\n|{'---|' * (len(SETS) + 1)}")
    for title in WEIGHTS:
        values = [entries[name][title]["ndcg_at_10"] for name in SETS]
        print(f"| {title} | {' | '.join(f'{value:.4f}' for value in values)} |")


if __name__ == "__main__":
    main()
