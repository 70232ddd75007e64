"""Students that generate text: does the teacher's choice of senses help them to predict the next token?

    python -m benchmarks.generation --teacher MODEL --train FILE --test FILE --output runs/generation
    python -m benchmarks.generation --smoke

- FILE is JSON Lines with the column `text`. A part of the training texts is held out: learning rates are chosen there.
- Two dictionaries are built from training texts, for the token that a state has read (`input`) and for the token that
  it predicts (`next`). The teacher is scored with its states replaced by their senses, under its own head.
- The teacher runs once over the training texts. Its states are kept in half precision for all students.
- Students of the teacher's first layers and its last see the same batches for as many steps, by five objectives.
- Finished steps stay in the output folder, so that an interrupted run continues after them.

What the table can show: which objective gives the lowest perplexity at equal steps, if by more than the seeds differ.

What it cannot show: anything about students that have seen as much text as their teacher. With `next` the senses of a
state are those of the true next token. So the perplexity of a teacher with such senses is told a part of the answer,
and may lie below its own.
"""

import argparse
import json
import statistics
import time
from functools import cache
from itertools import product
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from sensedict_hf import (
    SenseEmbeddingModel,
    SKDStudentForCausalLM,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    attach_senses,
    build_sense_dictionary,
    encode_senses,
    evaluate_language_modeling,
    load_teacher,
    read_dataset,
)
from sensedict_hf.demo import read_demo_corpus

from .studies import Study, results_file, study_parser, write_json

# Objective, and key of the dictionary.
METHODS: dict[str, tuple[str, str | None]] = {
    "cross-entropy": ("lm", None),
    "+ KL": ("lm+kl", None),
    "+ KL + MSE": ("lm+kl+mse", None),
    "+ KL + senses (input)": ("lm+kl+sense", "input"),
    "+ KL + senses (next)": ("lm+kl+sense", "next"),
}
KEYS = ("input", "next")
OUTPUTS = {"hard": ("hard", 0.0), "soft": ("soft", 0.0), "half": ("soft", 0.5)}
HELD_OUT = 20  # one of so many training texts is held out
TIMED_STEPS = 5


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
        neutral = ("output", "results", "teacher", "train", "test", "learning_rates", "sense_weights", "seeds")
        settings = {name: value for name, value in vars(options).items() if name not in neutral}
        self.scores = json.loads(self.file.read_text()) if self.file.is_file() else {"settings": settings}
        if self.scores["settings"] != settings:
            raise ValueError(f"{self.output} belongs to a run with other settings: give another --output")
        train = read_dataset([options.train])["text"]
        self.held_out = [text for number, text in enumerate(train) if number % HELD_OUT == 0][: options.test_texts]
        self.train = [text for number, text in enumerate(train) if number % HELD_OUT][: options.train_texts]
        self.test = list(read_dataset([options.test])["text"])[: options.test_texts]
        self.senses, self.states, self.teacher = cache(self._senses), cache(self._states), cache(self._teacher)

    def scored(self, title: str, score) -> dict[str, float]:
        """Return the scores under a title; they are computed if they are not there yet."""
        if title not in self.scores:
            begin = time.perf_counter()
            self.scores[title] = {**score(), "seconds": time.perf_counter() - begin}
            write_json(self.file, self.scores)
            print(title, self.scores[title], flush=True)
        return self.scores[title]

    def model(self):
        """Load the teacher with its head."""
        return AutoModelForCausalLM.from_pretrained(self.options.teacher, dtype=self.options.dtype).eval()

    def perplexity(self, model, texts: list[str]) -> dict[str, float]:
        """Score a model on texts."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.options.teacher)
        return evaluate_language_modeling(model, texts, tokenizer=tokenizer, max_length=self.options.length)

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

    def score_teacher(self, key: str | None, output: str) -> dict[str, float]:
        """Score the teacher, with its states replaced by senses if a key is given."""
        model = self.model()
        if key is not None:
            assignment, residual = OUTPUTS[output]
            attach_senses(model, self.senses(key), assignment=assignment, residual=residual)
        return self.perplexity(model, self.test)

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
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=self.options.dtype == "bfloat16",
            disable_tqdm=True,
            cache_vectors=True,
        )
        senses = None if key is None else self.senses(key)
        return CachedTrainer(student, args, teacher=self.options.teacher, train_dataset=self.states(), senses=senses)

    def score_student(self, method: str, rate: float, weight: float, seed: int) -> dict[str, float]:
        """Train a student, and score it on held-out and on test texts."""
        trainer = self.trainer(method, rate, weight, seed)
        trainer.train()
        found = {name: self.perplexity(trainer.model, getattr(self, name)) for name in ("held_out", "test")}
        return {f"{name}_{score}": value for name, scores in found.items() for score, value in scores.items()}

    def time_steps(self) -> dict[str, float]:
        """Measure the CPU seconds of a step by each objective, in turns. The smallest of some is reported."""
        trainers = {method: self.trainer(method, 1e-4, 1.0, 0) for method in METHODS}
        batches = {method: next(iter(trainer.get_train_dataloader())) for method, trainer in trainers.items()}
        times: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(TIMED_STEPS):
            for method, trainer in trainers.items():
                begin = time.process_time()
                trainer.model.train()
                trainer.compute_loss(trainer.model, batches[method]).backward()
                times[method].append(time.process_time() - begin)
        return {method: min(values) for method, values in times.items()}

    def run(self) -> None:
        """Run all steps, print the tables and record the scores."""
        options = self.options
        rows = {"teacher": self.scored("teacher", lambda: self.score_teacher(None, ""))}
        for key in KEYS:
            for output in OUTPUTS:
                title = f"teacher through senses, {key}, {output}"
                rows[title] = self.scored(title, lambda key=key, output=output: self.score_teacher(key, output))
        print("\n| model | perplexity | next-token accuracy |\n|---|---|---|")
        for title, scores in rows.items():
            print(f"| {title} | {scores['perplexity']:.2f} | {scores['token_accuracy']:.4f} |")

        steps = self.scored("cpu seconds of a step", self.time_steps)
        students = {}
        for method in METHODS:

            def score(rate: float, weight: float, seed: int, method: str = method) -> dict[str, float]:
                title = f"{method}, {rate:g}, {weight:g}, seed {seed}"
                return self.scored(title, lambda: self.score_student(method, rate, weight, seed))

            weights = [1.0] if METHODS[method][1] is None else options.sense_weights
            settings = list(product(options.learning_rates, weights))
            found = {each: score(*each, seed=0)["held_out_perplexity"] for each in settings}
            rate, weight = min(found, key=found.get)
            seeds = [score(rate, weight, seed) for seed in range(options.seeds)]
            perplexities = [scores["test_perplexity"] for scores in seeds]
            students[method] = {
                "learning_rate": rate,
                "sense_weight": weight,
                "perplexity": statistics.mean(perplexities),
                "perplexity_std": statistics.stdev(perplexities) if len(seeds) > 1 else 0.0,
                "token_accuracy": statistics.mean(scores["test_token_accuracy"] for scores in seeds),
                "step_cost": steps[method] / steps["+ KL"],
            }
        print(f"\nStudents of {options.layers} layers after {options.steps} steps of {options.batch_size} rows:\n")
        header = ["objective", "learning rate", "weight of senses", "perplexity", "next-token accuracy", "step"]
        print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for method, scores in students.items():
            spread = f" ± {scores['perplexity_std']:.2f}" if options.seeds > 1 else ""
            print(
                f"| {method} | {scores['learning_rate']:g} | "
                f"{'-' if METHODS[method][1] is None else format(scores['sense_weight'], 'g')} "
                f"| {scores['perplexity']:.2f}{spread} "
                f"| {scores['token_accuracy']:.4f} | {scores['step_cost']:.2f} |"
            )
        command = "python -m benchmarks.generation --teacher MODEL --train FILE --test FILE"
        file = results_file(options.results, "generation", recorded=not options.smoke, folder=self.output)
        study = Study(file, command=command)
        name = f"{Path(options.teacher).name}, {options.layers} layers, {options.steps} steps"
        study.record(name, {**rows, **students, "settings": self.scores["settings"]})


def make_smoke_files(folder: Path) -> dict[str, str]:
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
    return {"teacher": str(folder / "teacher"), **{name: str(file) for name, file in files.items()}}


def main() -> None:
    parser = study_parser("generation", __doc__)
    parser.add_argument("--teacher", help="name or folder of a decoder with its head")
    parser.add_argument("--train", help="JSON Lines of the texts to learn from")
    parser.add_argument("--test", help="JSON Lines of the texts to score on")
    text = "of the teacher, and of products in training; students are scored in float32"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    parser.add_argument("--output", default="runs/generation", help="folder for all steps")
    parser.add_argument("--layers", type=int, default=4, help="layers of the students")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the students")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a step")
    parser.add_argument("--length", type=int, default=256, help="tokens in a row")
    parser.add_argument("--train-texts", type=int, default=800, help="texts to learn from")
    parser.add_argument("--sense-texts", type=int, default=200, help="texts that the dictionaries are built from")
    parser.add_argument("--test-texts", type=int, default=44, help="texts to score on")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[3e-4, 1e-3], help="rates to choose from")
    text = "weights of the sense loss to choose from"
    parser.add_argument("--sense-weights", nargs="+", type=float, default=[0.1, 1.0], help=text)
    parser.add_argument("--seeds", type=int, default=3, help="students by each objective")
    parser.add_argument("--smoke", action="store_true", help="a random decoder, a few steps: a minute")
    options = parser.parse_args()
    if options.smoke:
        if options.teacher or options.train or options.test:
            parser.error("--smoke makes its own teacher and texts: leave out --teacher, --train and --test")
        changes = dict(layers=2, steps=10, length=32, train_texts=200, sense_texts=100, test_texts=20, seeds=2)
        options = argparse.Namespace(**vars(options) | changes | make_smoke_files(Path(options.output) / "smoke"))
    elif not (options.teacher and options.train and options.test):
        parser.error("give --teacher, --train and --test, or --smoke")
    Benchmark(options).run()


if __name__ == "__main__":
    main()
