"""Swap the model of the queries under an existing index: documents by the teacher, queries by its student.

    pip install ".[retrieval]"
    python examples/swap_query_model.py --student skd-minilm --teacher sentence-transformers/all-MiniLM-L6-v2 \\
        --documents docs.jsonl --queries queries.jsonl

The vectors of a student are in the space of its teacher. So the index stays, and no document is encoded again.
"""

import argparse
import time

import faiss
import numpy as np

from sensedict_hf import SKDStudentModel, load_teacher, read_dataset


def encode(model, texts):
    """Return vectors of length 1, `[texts, hidden]`, and how many texts a second it took."""
    begin = time.perf_counter()
    vectors = model.encode(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
    return vectors, len(texts) / (time.perf_counter() - begin)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("student", "teacher", "documents", "queries"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--k", type=int, default=10, help="how many documents are found for a query")
    options = parser.parse_args(arguments)
    documents, queries = (
        list(read_dataset(path)[options.text_column]) for path in (options.documents, options.queries)
    )

    # The index, by the teacher: in a real store it is there already.
    teacher = load_teacher(options.teacher)
    vectors, _ = encode(teacher, documents)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    # The same index, asked by both models.
    found, speeds = {}, {}
    for name, model in [("teacher", teacher), ("student", SKDStudentModel.from_pretrained(options.student))]:
        vectors, speeds[name] = encode(model, queries)
        found[name] = index.search(vectors, min(options.k, len(documents)))[1]
    pairs = list(zip(found["teacher"], found["student"]))
    same = np.mean([len(np.intersect1d(*pair)) / len(pair[0]) for pair in pairs])
    first = np.mean([pair[0][0] == pair[1][0] for pair in pairs])
    print(f"{len(documents):,} documents, encoded once by the teacher; {len(queries):,} queries")
    print(f"queries a second: teacher {speeds['teacher']:.0f}, student {speeds['student']:.0f}")
    print(f"of the teacher's first {len(pairs[0][0])} documents the student finds {same:.1%}; same first: {first:.1%}")
    return same


if __name__ == "__main__":
    main()
