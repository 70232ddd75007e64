"""The steps of the comparison of ways to distil; each leaves a file or a folder."""

import argparse
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, PrinterCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from sensedict_hf import (
    SenseEmbeddingModel,
    SKDStudentModel,
    SKDTrainingArguments,
    Teacher,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.building.corpus import tokenize_in_memory
from sensedict_hf.distillation.batches import window_rows
from sensedict_hf.models.encoding import pad_batch

from ..studies import Study
from .jobs import run_jobs
from .methods import METHODS, SETTINGS, CachedTrainer
from .tables import MAIN_SCORES, OUTPUTS
from .tasks import NAMES, DistillationTask, best_learning_rate, distill_model2vec, load_task, model2vec_encoders

MAX_LENGTH = 128
SEARCHED = ("banking77", "go_emotions", "stsb")  # learning rates are chosen on these
SMALL = ("poem_sentiment", "stsb", "xquad_retrieval", "wnut17")
EPOCHS = {"short": 2, "long": 6}
BATCH = 32


def scope(names: Sequence[str]) -> str:
    """A short name for some tasks."""
    return names[0] if len(names) == 1 else {SEARCHED: "searched", NAMES: "all", SMALL: "small"}[tuple(names)]


class Comparison:
    """The steps of the comparison; each leaves a file or a folder."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.output = options, options.output
        options.output.mkdir(parents=True, exist_ok=True)
        self.study = Study(options.results, options.device)
        self.names = SMALL if options.smoke else NAMES
        self.is_job = (
            multiprocessing.parent_process() is not None
        )  # the progress of all jobs is shown by what started them
        if self.is_job:
            logging.disable_progress_bar()
        self.load_task = cache(load_task)
        self.teacher: Teacher = load_teacher(options.teacher, device=options.device)
        file, own = options.output / "teacher.txt", f"{self.teacher.fingerprint()} {options.device}"
        if not file.exists():
            file.write_text(own)
        elif file.read_text() != own:
            raise SystemExit(
                f"{options.output} holds students of another teacher or kind of device: choose another --output"
            )

    def check_time(self) -> None:
        """Raises a TimeoutError if nothing more is to be computed."""
        if time.monotonic() > self.options.end:
            raise TimeoutError

    def scopes(self, key: str) -> list[tuple[str, ...]]:
        """The tasks of each student of a method."""
        return [(name,) for name in self.names] if METHODS[key].separate else [self.names]

    def task(self, name: str, dev: bool) -> DistillationTask:
        return self.load_task(name, self.options.data, dev=dev)

    def texts(self, names: Sequence[str], dev: bool = False) -> list[str]:
        """What students of these tasks learn from, each text once."""
        step = 16 if self.options.smoke else 1
        return list(dict.fromkeys(text for name in names for text in self.task(name, dev).train_texts[::step]))

    @cached_property
    def rows(self) -> tuple[Dataset, dict[str, range], np.ndarray]:
        """The windows of all texts, which of them are a text's, and the teacher's vectors of their positions, `[positions, hidden]`."""
        texts = self.texts(self.names)
        corpus = tokenize_in_memory(texts, self.teacher.tokenizer)
        dataset = Dataset.from_dict(window_rows(corpus, MAX_LENGTH, 0, len(texts), np.full(len(corpus.input_ids), -1)))
        numbers = np.searchsorted(corpus.windows(MAX_LENGTH).text, np.arange(len(texts) + 1))
        input_ids = dataset["input_ids"][:]
        lengths = np.array([len(ids) for ids in input_ids])
        begins = np.concatenate([[0], np.cumsum(lengths)])
        path = self.output / "vectors.npy"
        shape = (int(begins[-1]), self.teacher.model.config.hidden_size)
        if not path.exists():
            self.check_time()
            vectors = np.lib.format.open_memmap(path.with_suffix(".partial"), mode="w+", dtype=np.float16, shape=shape)
            for batch in np.split(order := np.argsort(-lengths, kind="stable"), range(BATCH, len(order), BATCH)):
                ids, mask = (
                    x.to(self.teacher.device)
                    for x in pad_batch([input_ids[row] for row in batch], self.teacher.pad_token_id)
                )
                for row, states in zip(batch, self.teacher.hidden_states(ids, mask).half().cpu().numpy()):
                    vectors[begins[row] : begins[row + 1]] = states[: lengths[row]]
            vectors.flush()
            os.replace(path.with_suffix(".partial"), path)
        rows_of = {text: range(*numbers[place : place + 2]) for place, text in enumerate(texts)}
        if (vectors := np.load(path, mmap_mode="r")).shape != shape:
            raise SystemExit(f"{path} is of other texts: choose another --output")
        return dataset.add_column("begin", begins[:-1]), rows_of, vectors

    def senses(self, names: Sequence[str], dev: bool, similarity: str) -> SenseEmbeddingModel:
        """The dictionary of the texts of these tasks."""
        folder = self.output / f"senses-{scope(names)}{'-dev' * dev}"
        if (folder / "config.json").is_file():
            senses = AutoModel.from_pretrained(folder)
        else:
            self.check_time()
            senses = build_sense_dictionary(
                self.teacher, self.texts(names, dev), output_dir=folder, max_length=MAX_LENGTH
            )
        senses.config.similarity = similarity
        return senses.to(self.teacher.device)

    def train(
        self,
        key: str,
        names: Sequence[str],
        budget: str,
        learning_rate: float,
        seed: int,
        layers: int,
        dev: bool,
        **changed: Any,
    ) -> SKDStudentModel:
        """The student of a method, with some settings changed, trained on the texts of some tasks."""
        method = METHODS[key]
        title = f"{key}-{scope(names)}{'-dev' * dev}-{layers}-{budget}-{learning_rate:g}-{seed}"
        folder = self.output / "students" / "-".join([title, *(f"{name}-{value}" for name, value in changed.items())])
        self.check_time()
        if (folder / "config.json").is_file():
            return AutoModel.from_pretrained(folder).to(self.teacher.device)
        senses = self.senses(names, dev, method.similarity)
        unfinished = folder.with_name(folder.name + ".partial")
        set_seed(seed)
        student = SKDStudentModel.from_teacher(self.teacher, senses, num_hidden_layers=layers)
        if key != "cut":
            dataset, rows_of, vectors = self.rows
            settings = method.settings | changed
            if method.similarity == "dot":
                settings["temperature"] = (
                    1 / senses.config.distortion
                )  # the paper's logits are the products themselves
            args = SKDTrainingArguments(
                str(unfinished),
                **settings,
                learning_rate=learning_rate,
                num_train_epochs=EPOCHS[budget],
                per_device_train_batch_size=BATCH,
                train_sampling_strategy="group_by_length",
                save_steps=500,
                save_total_limit=1,
                report_to="none",
                logging_steps=100,
                disable_tqdm=self.is_job,
                use_cpu=self.options.device == "cpu",
                seed=seed,
            )
            chosen = [row for text in self.texts(names, dev) for row in rows_of[text]]
            trainer = CachedTrainer(student, args, teacher=self.teacher, train_dataset=dataset.select(chosen))
            for checkpoint in unfinished.glob("checkpoint-*"):
                if not (checkpoint / "trainer_state.json").is_file():  # its writing was interrupted
                    shutil.rmtree(checkpoint)
            if self.is_job:
                trainer.remove_callback(PrinterCallback)
            trainer.read(self.teacher, vectors)
            trainer.is_cosine = key == "cosine"
            trainer.train(resume_from_checkpoint=get_last_checkpoint(unfinished) if unfinished.exists() else None)
            for checkpoint in unfinished.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        student.save_pretrained(unfinished)
        os.replace(unfinished, folder)
        return student

    def recorded(self, title: str) -> dict[str, Any]:
        """What the study has under a title: scores of a model by task, or of a search by learning rate."""
        return self.study.read(title)

    def record(self, title: str, key: str, scores: dict[str, Any]) -> None:
        """Adds the scores of a task, or of a learning rate, to the study."""
        self.study.record(title, key, scores)

    def score(
        self, name: str, dev: bool, student: SKDStudentModel | Teacher, senses: SenseEmbeddingModel
    ) -> dict[str, dict[str, float]]:
        """All scores of a model on a task: its own vectors, and those with senses in their place."""
        model = student.model if isinstance(student, Teacher) else student.eval()

        def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
            own = (
                student.last_hidden_state(input_ids, mask)
                if isinstance(student, Teacher)
                else model(input_ids, mask, assignment="none")[0]
            )
            hard, soft = (senses(input_ids, own, mask, assignment).hidden_states for assignment in ("hard", "soft"))
            return torch.cat([own, hard, soft, (own + soft) / 2], dim=-1)

        settings = dict(
            pad_token_id=self.teacher.pad_token_id,
            max_length=self.teacher.max_seq_length,
            batch_size=BATCH,
            device=model.device,
        )
        return self.task(name, dev).score_outputs(
            forward, OUTPUTS, senses.config.hidden_size, self.teacher.tokenizer, **settings
        )

    def held_out(
        self, title: str, name: str, key: str, learning_rate: float, layers: int, **changed: Any
    ) -> dict[str, float]:
        """What is recorded of a student of the searched tasks by its name: the mean of its scores on held-out texts, by output."""
        if name not in self.recorded(title):
            student = self.train(key, SEARCHED, "short", learning_rate, 0, layers, dev=True, **changed)
            scores = [(MAIN_SCORES[task], self.score(task, True, student, student.senses)) for task in SEARCHED]
            self.record(
                title,
                name,
                {way: np.mean([score[way][metric] for metric, score in scores]).round(5) for way in OUTPUTS},
            )
        return self.recorded(title)[name]

    def compare_settings(self, layers: int) -> None:
        """Prints what SKD scores on held-out texts with one setting changed at a time."""
        learning_rate = self.search("skd", layers)
        print(
            f"\nSKD on held-out texts, {layers} layers, short, {learning_rate:g}:\n\n| changed | {' | '.join(OUTPUTS)} |\n|{'---|' * 5}"
        )
        for changed in ({}, *SETTINGS):
            name = ", ".join(f"{key}={value}" for key, value in changed.items()) or "nothing"
            scores = self.held_out(
                f"skd-{layers}-settings-{learning_rate:g}", name, "skd", learning_rate, layers, **changed
            )
            print(f"| {name} | {' | '.join(f'{scores[way]:.4f}' for way in OUTPUTS)} |", flush=True)

    def search(self, key: str, layers: int) -> float:
        """The learning rate whose students are best on held-out training texts, on the average."""
        if key == "cut" or len(self.options.learning_rates) == 1:
            return self.options.learning_rates[0]
        title, output = f"{key.removesuffix('-sep')}-{layers}-search", METHODS[key].output

        def held_out(learning_rate: float) -> float:
            return self.held_out(title, f"{learning_rate:g}", key.removesuffix("-sep"), learning_rate, layers)[output]

        return best_learning_rate(self.options.learning_rates, held_out)

    def runs(self) -> list[tuple[int, int, str, str]]:
        """Layers, seed, budget and method of all students, in the order of the tables; of `cut` there is only one."""
        options = self.options
        first = options.budgets[0], options.seeds[0]
        every = product(options.layers, options.seeds, options.budgets, options.methods)
        return [
            (layers, seed, budget, key)
            for layers, seed, budget, key in every
            if key != "cut" or (budget, seed) == first
        ]

    def missing(self) -> list[tuple[str, str, int, int]]:
        """What [`run`] has no scores of, the longest first."""
        missing, end, self.options.end = [], self.options.end, -np.inf
        for layers, seed, budget, key in sorted(self.runs(), key=lambda run: -EPOCHS[run[2]]):
            try:
                self.run(key, budget, seed, layers)
            except TimeoutError:
                missing.append((key, budget, seed, layers))
        self.options.end = end
        return missing

    def run_jobs(self) -> None:
        """What is missing, side by side: all dictionaries, then all searches, then all students."""
        missing = self.missing()
        kinds = {(key.removesuffix("-sep"), layers) for key, _, _, layers in missing}
        scopes = {(some, False) for key, *_ in missing for some in self.scopes(key)}
        if missing and len(self.options.learning_rates) > 1:
            scopes.add((SEARCHED, True))
        steps = {
            "Dictionaries": [("senses", *scope, "l2") for scope in sorted(scopes)],
            "Searches": [("search", *kind) for kind in sorted(kinds)],
            "Students": [("run", *each) for each in missing],
        }
        if missing:
            _ = self.rows  # the teacher's vectors, which jobs only read
            run_jobs(partial(Comparison, self.options), steps, self.options.jobs)

    def run(self, key: str, budget: str, seed: int, layers: int) -> tuple[float, dict[str, dict[str, Any]]]:
        """The learning rate of a method and its scores on all tasks."""
        learning_rate = self.search(key, layers)
        title = f"{key}-{layers}" if key == "cut" else f"{key}-{layers}-{budget}-{learning_rate:g}-{seed}"
        for some in self.scopes(key):
            if missing := [name for name in some if name not in self.recorded(title)]:
                student = self.train(key, some, budget, learning_rate, seed, layers, dev=False)
                for name in missing:
                    self.record(title, name, self.score(name, False, student, student.senses))
        return learning_rate, self.recorded(title)

    def reference(self, key: str) -> dict[str, dict[str, Any]]:
        """The scores of the teacher, also through the dictionary of all texts, or of model2vec."""
        for name in self.names:
            if name in self.recorded(key):
                continue
            self.check_time()
            if key == "teacher":
                scores = self.score(name, False, self.teacher, self.senses(self.names, False, "l2"))
            else:
                encoders = model2vec_encoders(distill_model2vec(self.options.teacher, self.output / "model2vec"))
                scores = {"raw": self.task(name, False).score(*encoders)}
            self.record(key, name, scores)
        return self.recorded(key)

    def print_costs(self, rounds: int = 3) -> None:
        """What each kind of model costs: sizes, and texts of uci_sentiment's test file in a second, the best of some rounds in turn."""
        senses = self.senses(self.names, False, "l2")
        static = distill_model2vec(self.options.teacher, self.output / "model2vec")
        encoders: dict[str, Callable[[list[str]], Any]] = {
            "teacher": self.teacher.encode,
            "model2vec": model2vec_encoders(static)[0],
        }
        parameters = {"teacher": self.teacher.model.num_parameters(), "model2vec": static.embedding.size}
        for layers in self.options.layers:
            student = SKDStudentModel.from_teacher(self.teacher, senses, num_hidden_layers=layers).eval()
            student.config.residual = 0.5
            for output, assignment in {"raw": "none", "hard": "hard", "half": "soft"}.items():
                name = f"{layers} layers, {output}"
                encoders[name] = partial(student.encode, assignment=assignment, show_progress_bar=False)
                parameters[name] = student.num_parameters()
        texts = self.task("uci_sentiment", False).evaluation.inputs[1]
        speeds = dict.fromkeys(encoders, 0.0)
        for _ in range(rounds):
            for name, encode in encoders.items():
                begin = time.perf_counter()
                encode(texts)
                speeds[name] = max(speeds[name], len(texts) / (time.perf_counter() - begin))
        megabytes = senses.senses.numel() * senses.senses.element_size() / 1e6
        print("| model | parameters (millions) | dictionary MB | texts/s | teacher = 1 |\n|---|---|---|---|---|")
        for name, speed in speeds.items():
            dictionary = f"{megabytes:.1f}" if name.endswith(("hard", "half")) else "-"
            print(
                f"| {name} | {parameters[name] / 1e6:.1f} | {dictionary} | {speed:.0f} | {speed / speeds['teacher']:.2f} |"
            )
