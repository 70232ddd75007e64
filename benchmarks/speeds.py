"""Speed and size of any models beside each other: teachers, students, with and without layers.

    python -m benchmarks.speeds --data FOLDER --models TITLE=MODEL TITLE=MODEL ...

- MODEL is a name on the Hub or a folder. The first model is the one that others are compared with.
- The texts are the test texts of uci_sentiment. Speed is in texts per second of CPU time of one thread, tokenization
  included. The models take turns, and the best of three rounds counts.
- Models without layers encode 256 texts at a time, others 32.
- MB are of weights and of the senses, as they lie in memory. The resident memory is that of a new process: what it has
  more after a model was loaded and has encoded 64 texts. Files that are mapped count as far as they were read.
"""

import multiprocessing
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import torch

from sensedict_hf import SKDStudentModel
from sensedict_hf.cli.evaluate import parameters
from sensedict_hf.distillation.layer_free import is_layer_free
from sensedict_hf.retrieval.encoding import load_encoder

from .distillation.tasks import load_task
from .studies import Study, results_file, shortest_times, study_parser

ROUNDS = 3


def resident_mb(name: str, texts: Sequence[str]) -> float:
    """Return the memory that a model takes in this process, in MB. It shall do nothing else."""
    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_info().rss
    model = load_encoder(name, "cpu")  # it must still be there when its memory is measured
    model.encode(list(texts), show_progress_bar=False)
    return (process.memory_info().rss - before) / 1e6


def megabytes(model: torch.nn.Module) -> tuple[float, float]:
    """Return the size of a model's weights, and of its senses."""
    sizes = {True: 0, False: 0}
    for name, tensor in model.state_dict().items():
        sizes[name.startswith("senses.")] += tensor.nbytes
    return sizes[False] / 1e6, sizes[True] / 1e6


def main() -> None:
    parser = study_parser("speeds", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--models", nargs="+", required=True, metavar="TITLE=MODEL", help="models, with titles")
    options = parser.parse_args()
    study = Study(
        results_file(options.results, "speeds"), command="python -m benchmarks.speeds --data FOLDER --models ..."
    )
    torch.set_num_threads(1)
    models = {title: load_encoder(name, "cpu") for title, name in (each.split("=", 1) for each in options.models)}
    texts = load_task("uci_sentiment", options.data).evaluation.inputs[1]
    runs = {}
    for title, model in models.items():
        size = 256 if isinstance(model, SKDStudentModel) and is_layer_free(model) else 32
        runs[title] = partial(model.encode, texts, batch_size=size, show_progress_bar=False)
    seconds = shortest_times(runs, ROUNDS, time.thread_time)
    first = next(iter(seconds))
    header = ["model", "million parameters", "MB", "MB of senses", "resident MB", "texts/s", f"{first} = 1"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for (title, model), given in zip(models.items(), options.models):
        network = model if isinstance(model, SKDStudentModel) else model.model
        weights, senses = megabytes(network)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            resident = pool.apply(resident_mb, (given.split("=", 1)[1], texts[:64]))
        values = {
            "million_parameters": round(parameters(network) / 1e6, 1),
            "weights_mb": round(weights, 1),
            "senses_mb": round(senses, 1),
            "resident_mb": round(resident, 1),
            "texts_per_second": round(len(texts) / seconds[title], 1),
            "relative": round(seconds[first] / seconds[title], 2),
        }
        print(f"| {title} | {' | '.join(str(value) for value in values.values())} |")
        study.record(f"{first}: {title}", values)


if __name__ == "__main__":
    main()
