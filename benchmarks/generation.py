"""Students that generate text: does the teacher's choice of senses help them to predict the next token?

    python -m benchmarks.generation --teacher MODEL --train FILE --test FILES --output runs/generation
    python -m benchmarks.generation --smoke

- Files are JSON Lines with the column `text`, or plain text. A part of the training texts is held out: learning rates
  and the weight of the sense loss are chosen there. Test texts are scored once, by the students that were chosen.
- Two dictionaries are built from training texts, for the token that a state has read (`input`) and for the token that
  it predicts (`next`).
- The teacher runs once over the training texts. Its states are kept in half precision for all students.
- Students of the teacher's first layers and its last see the same batches for as many steps, by five objectives.
- Finished steps stay in the output folder, so that an interrupted run continues after them. `continuations.md` there
  shows how each student continues twenty test texts.

What the table can show: which objective gives the lowest perplexity at equal steps, if by more than the seeds differ.

What it cannot show: anything about students that have seen as much text as their teacher. `perplexity` measures what
senses keep of a decoder.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from sensedict_hf import (
    SenseEmbeddingModel,
    SKDStudentForCausalLM,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    build_sense_dictionary,
    encode_senses,
    evaluate_language_modeling,
    load_teacher,
)
from sensedict_hf.demo import read_demo_corpus

from .perplexity import read_texts, set_name
from .studies import Study, results_file, shortest_times, study_parser, write_json

# Objective, and key of the dictionary.
METHODS: dict[str, tuple[str, str | None]] = {
    "cross-entropy": ("lm", None),
    "+ KL": ("lm+kl", None),
    "+ KL + MSE": ("lm+kl+mse", None),
    "+ KL + senses (input)": ("lm+kl+sense", "input"),
    "+ KL + senses (next)": ("lm+kl+sense", "next"),
}
HELD_OUT = 20  # one of so many training texts is held out
TIMED_STEPS = 5
CONTINUED, SHOWN, ADDED = 20, 32, 40  # texts to continue, tokens of each that are shown, and tokens that are added


class CachedTrainer(SKDTrainer):
    """An :class:`SKDTrainer` for states that were kept once for all objectives."""

    def _encode(self, texts: Dataset, args: SKDTrainingArguments, name: str) -> Dataset:
        return texts


class Benchmark:
    """The steps of the comparison. Each leaves a folder or a line in `scores.json`.

    Args:
        options: The options of the script.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.output = options, Path(options.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.file = self.output / "scores.json"
        neutral = (
            "output",
            "results",
            "teacher",
            "train",
            "test",
            "methods",
            "learning_rates",
            "sense_weights",
            "seeds",
        )
        settings = {name: value for name, value in vars(options).items() if name not in neutral}
        self.scores = json.loads(self.file.read_text()) if self.file.is_file() else {"settings": settings}
        if self.scores["settings"] != settings:
            raise ValueError(f"{self.output} belongs to a run with other settings: give another --output")
        train = read_texts(options.train)
        self.held_out = train[::HELD_OUT]
        self.train = [text for number, text in enumerate(train) if number % HELD_OUT][: options.train_texts]
        self.tests = {set_name(file): read_texts(file) for file in options.test}
        self.tokenizer = AutoTokenizer.from_pretrained(options.teacher)
        self.senses, self.states, self.teacher = cache(self._senses), cache(self._states), cache(self._teacher)

    def scored(self, title: str, score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the scores under a title; they are computed if they are not there yet."""
        if title not in self.scores:
            begin = time.perf_counter()
            self.scores[title] = {**score(), "seconds": time.perf_counter() - begin}
            write_json(self.file, self.scores)
            shown = {name: value for name, value in self.scores[title].items() if not isinstance(value, list)}
            print(title, shown, flush=True)
        return self.scores[title]

    def perplexities(self, model: PreTrainedModel, sets: dict[str, list[str]]) -> dict[str, float]:
        """Score a model on sets of texts: `SET perplexity` and `SET token_accuracy` of each."""
        settings = {"tokenizer": self.tokenizer, "max_length": self.options.length}
        found = {name: evaluate_language_modeling(model, texts, **settings) for name, texts in sets.items()}
        return {f"{name} {score}": value for name, scores in found.items() for score, value in scores.items()}

    def _senses(self, key: str) -> SenseEmbeddingModel:
        texts = self.train[: self.options.sense_texts]
        folder = self.output / f"senses-{key}"
        return build_sense_dictionary(
            self.teacher(), texts, key=key, max_length=self.options.length, output_dir=folder
        )

    def _states(self) -> Dataset:
        senses, folder = self.senses("input"), self.output / "states"
        settings = {"output_dir": folder, "max_length": self.options.length, "keep_vectors": True}
        return encode_senses(self.teacher(), senses, self.train, **settings)

    def _teacher(self) -> Teacher:
        return load_teacher(self.options.teacher, bidirectional=False, dtype=self.options.dtype, device="cpu")

    def score_model(self, path: str | Path) -> dict[str, float]:
        """Score a model on the test texts, and let it continue them."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=self.options.dtype).eval()
        texts = [text for texts in self.tests.values() for text in texts][:CONTINUED]
        rows = self.tokenizer(texts)["input_ids"]
        shown = min(SHOWN, min(map(len, rows)) // 2)
        input_ids = torch.tensor([row[:shown] for row in rows])
        settings = {"do_sample": False, "no_repeat_ngram_size": 3, "pad_token_id": self.tokenizer.pad_token_id}
        mask = torch.ones_like(input_ids)
        found = model.generate(input_ids, attention_mask=mask, max_new_tokens=ADDED, **settings)
        parts = {"beginnings": found[:, :shown], "continuations": found[:, shown:]}
        texts = {name: self.tokenizer.batch_decode(ids, skip_special_tokens=True) for name, ids in parts.items()}
        return {**self.perplexities(model, self.tests), **texts}

    def trainer(self, method: str, rate: float, weight: float, seed: int) -> SKDTrainer:
        """Make a student and what trains it.

        Args:
            method: A key of `METHODS`.
            rate: The highest learning rate.
            weight: Weight of the sense loss.
            seed: Seed of the order of the texts.
        """
        objective, key = METHODS[method]
        set_seed(seed)
        student = SKDStudentForCausalLM.from_teacher(self.options.teacher, self.options.layers)
        args = SKDTrainingArguments(
            str(self.output / "training"),
            objective=objective,
            learning_rate=rate,
            sense_weight=weight,
            seed=seed,
            max_steps=self.options.steps,
            max_length=self.options.length,
            per_device_train_batch_size=self.options.batch_size,
            train_sampling_strategy="random",  # the rows have one length
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=self.options.dtype == "bfloat16",
            disable_tqdm=True,
            cache_vectors=True,
        )
        senses = None if key is None else self.senses(key)
        return CachedTrainer(student, args, teacher=self.options.teacher, train_dataset=self.states(), senses=senses)

    def train_student(self, method: str, rate: float, weight: float, seed: int) -> dict[str, float]:
        """Train a student, save it, and score it on held-out texts."""
        trainer = self.trainer(method, rate, weight, seed)
        trainer.train()
        trainer.save_model(str(self.folder(method, rate, weight, seed)))
        return self.perplexities(trainer.model.eval(), {"held out": self.held_out})

    def folder(self, *names: object) -> Path:
        """Return the folder of a student."""
        return self.output / "students" / "-".join(re.sub(r"[^\w.]+", "-", str(name)).strip("-") for name in names)

    def time_steps(self) -> dict[str, float]:
        """Measure the CPU seconds of a step by each objective, in turns. The smallest of some is reported."""
        trainers = {method: self.trainer(method, 1e-4, 1.0, 0) for method in METHODS}
        batches = {method: next(iter(trainer.get_train_dataloader())) for method, trainer in trainers.items()}

        def step(method: str) -> None:
            model = trainers[method].model.train()
            trainers[method].compute_loss(model, batches[method]).backward()

        return shortest_times({method: partial(step, method) for method in METHODS}, TIMED_STEPS, time.process_time)

    def run(self) -> None:
        """Run all steps, print the table and record the scores."""
        options = self.options
        # Scores that are numbers, and the texts.
        found = {"teacher": [self.scored("teacher", lambda: self.score_model(options.teacher))]}
        chosen: dict[str, tuple[float, float]] = {}
        for method in options.methods:
            weights = [1.0] if METHODS[method][1] is None else options.sense_weights
            held_out = {
                each: self.student(method, *each, 0)["held out perplexity"]
                for each in product(options.learning_rates, weights)
            }
            chosen[method] = min(held_out, key=held_out.get)
        for method, (rate, weight) in chosen.items():
            found[method] = []
            for seed in range(options.seeds):
                held_out = self.student(method, rate, weight, seed)
                path = self.folder(method, rate, weight, seed)
                tests = self.scored(f"test, {path.name}", lambda path=path: self.score_model(path))
                found[method].append(held_out | tests)
        steps = self.scored("cpu seconds of a step", self.time_steps)
        self.write_continuations(found)

        # The table. The teacher was not scored on held-out texts.
        sets, rows = ["held out", *self.tests], {}
        for model, scores in found.items():
            rows[model] = {"seeds": len(scores)}
            if model in chosen:
                rows[model].update(zip(("learning_rate", "sense_weight"), chosen[model]))
                rows[model]["step_cost"] = steps[model] / steps["+ KL"]
            names = [f"{name} {score}" for name in sets for score in ("perplexity", "token_accuracy")]
            for name in [name for name in names if name in scores[0]]:
                values = [each[name] for each in scores]
                rows[model][name] = statistics.mean(values)
                rows[model][f"{name} std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"\n{options.layers} layers, {options.steps} steps of {options.batch_size} rows\n")
        columns = [f"{name}, {score}" for name in sets for score in ("perplexity", "accuracy")]
        print(f"| objective | learning rate | weight of senses | {' | '.join(columns)} | step |")
        print("|---|---|---|" + "---|" * len(columns) + "---|")
        for model, row in rows.items():
            is_weighted = model in chosen and METHODS[model][1] is not None
            cells = [f"{row['learning_rate']:g}" if model in chosen else "-"]
            cells.append(f"{row['sense_weight']:g}" if is_weighted else "-")
            for name in sets:
                if f"{name} perplexity" not in row:
                    cells += ["-", "-"]
                    continue
                spread = f" ± {row[f'{name} perplexity std']:.2f}" if row["seeds"] > 1 else ""
                cells += [f"{row[f'{name} perplexity']:.2f}{spread}", f"{row[f'{name} token_accuracy']:.4f}"]
            cells.append(f"{row['step_cost']:.2f}" if model in chosen else "-")
            print(f"| {model} | {' | '.join(cells)} |")
        command = "python -m benchmarks.generation --teacher MODEL --train FILE --test FILES"
        file = results_file(options.results, "generation", recorded=not options.smoke, folder=self.output)
        name = f"{Path(options.teacher).name}, {options.layers} layers, {options.steps} steps"
        Study(file, command=command).record(name, {**rows, "settings": self.scores["settings"]})

    def student(self, method: str, rate: float, weight: float, seed: int) -> dict[str, float]:
        """Return the scores of a student on held-out texts; it is trained if it is not there yet."""
        title = f"{method}, {rate:g}, {weight:g}, seed {seed}"
        return self.scored(title, lambda: self.train_student(method, rate, weight, seed))

    def write_continuations(self, found: dict[str, list[dict[str, Any]]]) -> None:
        """Write how the models continue texts, of students those of the first seed."""
        lines = []
        for number, beginning in enumerate(found["teacher"][0]["beginnings"]):
            lines += [f"{number + 1}. {' '.join(beginning.split())} ...", ""]
            for model, scores in found.items():
                lines.append(f"   - {model}: {' '.join(scores[0]['continuations'][number].split())}")
            lines.append("")
        (self.output / "continuations.md").write_text("\n".join(lines), encoding="utf-8")


def make_smoke_files(folder: Path) -> dict[str, Any]:
    """Write a tiny random decoder and the sentences of the demo; return the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [row["text"] for row in read_demo_corpus()]
    files = {name: folder / f"{name}.jsonl" for name in ("train", "test")}
    for file, part in zip(files.values(), (texts[40:], texts[:40])):
        file.write_text("\n".join(json.dumps({"text": text}) for text in part), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>"], vocab_size=500))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes, tie_word_embeddings=True, pad_token_id=1))
    for part in (model, fast):
        part.save_pretrained(folder / "teacher")
    return {"teacher": str(folder / "teacher"), "train": files["train"], "test": [files["test"]]}


def main() -> None:
    parser = study_parser("generation", __doc__)
    parser.add_argument("--teacher", help="name or folder of a decoder with its head")
    parser.add_argument("--train", type=Path, help="JSON Lines of the texts to learn from")
    parser.add_argument("--test", type=Path, nargs="+", help="files of texts to score on")
    text = "of the teacher, of products in training, and of all models when they are scored on test texts"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    parser.add_argument("--output", default="runs/generation", help="folder for all steps")
    parser.add_argument("--layers", type=int, default=4, help="layers of the students")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the students")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a step")
    parser.add_argument("--length", type=int, default=256, help="tokens in a row")
    parser.add_argument("--train-texts", type=int, default=800, help="texts to learn from")
    parser.add_argument("--sense-texts", type=int, default=200, help="texts that the dictionaries are built from")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="objectives to compare")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[3e-4, 1e-3], help="rates to choose from")
    text = "weights of the sense loss to choose from"
    parser.add_argument("--sense-weights", nargs="+", type=float, default=[0.1, 1.0], help=text)
    parser.add_argument("--seeds", type=int, default=3, help="students by each objective")
    parser.add_argument("--smoke", action="store_true", help="a random decoder, a few steps: a minute")
    options = parser.parse_args()
    if options.smoke:
        if options.teacher or options.train or options.test:
            parser.error("--smoke makes its own teacher and texts: leave out --teacher, --train and --test")
        changes = dict(layers=2, steps=10, length=32, train_texts=200, sense_texts=100, seeds=2)
        options = argparse.Namespace(**vars(options) | changes | make_smoke_files(Path(options.output) / "smoke"))
    elif not (options.teacher and options.train and options.test):
        parser.error("give --teacher, --train and --test, or --smoke")
    Benchmark(options).run()


if __name__ == "__main__":
    main()
