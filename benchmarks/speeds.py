"""Speeds of any models beside each other: teachers, students, with and without layers.

    python -m benchmarks.speeds --data FOLDER --models TITLE=MODEL TITLE=MODEL ...

- MODEL is a name on the Hub or a folder. The first model is the one that others are compared with.
- The texts are the test texts of uci_sentiment. Speed is in texts per second of CPU time of one thread, tokenization
  included. The models take turns, and the best of three rounds counts.
- Models without layers encode 256 texts at a time, others 32.
"""

import time
from pathlib import Path

import torch

from sensedict_hf import SKDStudentModel
from sensedict_hf.distillation.layer_free import is_layer_free
from sensedict_hf.retrieval.encoding import load_encoder

from .distillation.tasks import load_task
from .studies import Study, results_file, study_parser

ROUNDS = 3


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
    speeds = dict.fromkeys(models, 0.0)
    for _ in range(ROUNDS):
        for title, model in models.items():
            size = 256 if isinstance(model, SKDStudentModel) and is_layer_free(model) else 32
            begin = time.thread_time()
            model.encode(texts, batch_size=size, show_progress_bar=False)
            speeds[title] = max(speeds[title], len(texts) / (time.thread_time() - begin))
    first = next(iter(speeds))
    print(f"| model | million parameters | texts/s | {first} = 1 |\n|---|---|---|---|")
    for title, model in models.items():
        number = (model if isinstance(model, SKDStudentModel) else model.model).num_parameters() / 1e6
        share = speeds[title] / speeds[first]
        print(f"| {title} | {number:.1f} | {speeds[title]:.0f} | {share:.2f} |")
        values = {"million_parameters": round(number, 1), "texts_per_second": round(speeds[title], 1)}
        study.record(f"{first}: {title}", values | {"relative": round(share, 2)})


if __name__ == "__main__":
    main()
