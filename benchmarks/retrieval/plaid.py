"""PLAID of `fast-plaid`, in an interpreter of its own: it needs a certain version of torch.

`python -m benchmarks.retrieval --plaid PYTHON` calls this file with the vectors that all ways to search share.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fast_plaid import search
from numpy.typing import NDArray

DEPTH, BITS = 100, 2


def unit_vectors(paths: list[Path]) -> list[torch.Tensor]:
    """Return the vectors of each text, with length 1."""
    found = []
    for path in paths:
        with np.load(path) as arrays:
            vectors = torch.nn.functional.normalize(torch.from_numpy(arrays["vectors"]).float(), dim=-1)
            found += vectors.split(np.diff(arrays["offsets"]).tolist())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, nargs="+", required=True, help="files of vectors")
    parser.add_argument("--queries", type=Path, required=True, help="file of vectors")
    parser.add_argument("--output", type=Path, required=True, help="file for the rankings, .npy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    documents, queries = unit_vectors(options.documents), unit_vectors([options.queries])
    with tempfile.TemporaryDirectory() as folder:
        engine = search.FastPlaid(index=folder, device="cpu")
        begin = time.process_time()
        # No copy of the vectors is kept for documents that are added later.
        engine.create(documents, nbits=BITS, seed=0, start_from_scratch=0)
        seconds = time.process_time() - begin
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        begin = time.process_time()
        found = engine.search(queries, top_k=DEPTH, show_progress=False, n_processes=1)
        milliseconds = 1000 * (time.process_time() - begin) / len(queries)
    ranking: NDArray[np.int64] = np.full((len(queries), min(DEPTH, len(documents))), -1)
    for row, hits in zip(ranking, found):
        row[: len(hits)] = [number for number, _ in hits]
    np.save(options.output, ranking)
    print(json.dumps({"bytes": size / len(documents), "index_seconds": seconds, "query_ms": milliseconds}))


if __name__ == "__main__":
    main()
