"""The steps of the comparison of ways to distil; each leaves a file or a folder."""

import argparse
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
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
    adopt_tokenizer,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.building.corpus import tokenize_in_memory
from sensedict_hf.distillation.batches import window_rows
from sensedict_hf.models.encoding import pad_batch

from ..stored_states import StoredStates
from ..studies import Study
from .jobs import run_jobs
from .methods import METHODS, SETTINGS, CachedTrainer, OutputTrainer
from .tables import MAIN_SCORES, OUTPUTS
from .tasks import (
    NAMES,
    DistillationTask,
    best_learning_rate,
    distill_model2vec,
    load_task,
    model2vec_encoders,
    read_columns,
    sentences,
)

MAX_LENGTH = 128  # tokens of a window
SEARCHED = ("banking77", "go_emotions", "stsb")  # learning rates are chosen on these
# The tasks of `--smoke`.
SMALL = ("poem_sentiment", "stsb", "xquad_retrieval", "wnut17")
EPOCHS = {"short": 2, "long": 6}
BATCH = 32


def layer_indices(layers: str) -> list[int]:
    """Return the teacher's layers that a student starts from: `2` means the first two, `0+5` means these two."""
    return [int(layer) for layer in layers.split("+")] if "+" in layers else list(range(int(layers)))


class Comparison:
    """The steps of the comparison. Each leaves a file, a folder or scores in the study, and is not done again.

    Methods with the argument `dev` use the training texts only, and a part of these is held out for scores. A method
    raises a TimeoutError when the time is over and there is something left to compute.

    Args:
        options: The options of the script.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.output = options, options.output
        options.output.mkdir(parents=True, exist_ok=True)
        command = "python -m benchmarks.distillation --data FOLDER" + " --wikipedia" * options.wikipedia
        self.study = Study(options.results, options.device, command)
        self.names = SMALL if options.smoke else NAMES
        # A job shows no progress: the process that started it does.
        self.is_job = multiprocessing.parent_process() is not None
        if self.is_job:
            logging.disable_progress_bar()
        self.load_task = cache(load_task)
        self.teacher: Teacher = load_teacher(options.teacher, device=options.device, dtype=options.dtype)
        file, own = options.output / "teacher.txt", f"{self.teacher.fingerprint()} {options.device}"
        if not file.exists():
            file.write_text(own)
        elif file.read_text() != own:
            text = "holds students of another teacher or kind of device"
            raise SystemExit(f"{options.output} {text}: choose another --output")

    def check_time(self) -> None:
        """Raise a TimeoutError if the time is over."""
        if time.monotonic() > self.options.end:
            raise TimeoutError

    def scopes(self, key: str) -> list[tuple[str, ...]]:
        """Return the tasks of each student of a method."""
        return [(name,) for name in self.names] if METHODS[key].separate else [self.names]

    def scope(self, names: Sequence[str]) -> str:
        """Return a short name for the texts of some tasks."""
        if self.options.wikipedia:
            return "wikipedia"
        return names[0] if len(names) == 1 else {SEARCHED: "searched", NAMES: "all", SMALL: "small"}[tuple(names)]

    def task(self, name: str, dev: bool) -> DistillationTask:
        """Load a task."""
        return self.load_task(name, self.options.data, dev=dev)

    def texts(self, names: Sequence[str], dev: bool = False) -> list[str]:
        """Return the texts that students of some tasks learn from, each text once; with `--wikipedia` others."""
        step = 16 if self.options.smoke else 1
        if self.options.wikipedia:
            return sentences(read_columns(self.options.data / "wikipedia_en_sample" / "train.jsonl")["text"])[::step]
        return list(dict.fromkeys(text for name in names for text in self.task(name, dev).train_texts[::step]))

    def stored(self) -> StoredStates:
        """Return the teacher with its states of texts that it has read, for its vectors and for dictionaries."""
        return StoredStates(self.teacher, self.output / "states")

    @cached_property
    def rows(self) -> tuple[Dataset, dict[str, range], np.ndarray]:
        """The windows of all texts, with the teacher's vectors.

        Returns:
            The rows for the trainer, the numbers of the rows of each text, and vectors `[positions, hidden]`.
        """
        # Cut the texts into windows.
        texts = self.texts(self.names)
        corpus = tokenize_in_memory(texts, self.teacher.tokenizer)
        dataset = Dataset.from_dict(window_rows(corpus, MAX_LENGTH, 0, len(texts), np.full(len(corpus.input_ids), -1)))
        numbers = np.searchsorted(corpus.windows(MAX_LENGTH).text, np.arange(len(texts) + 1))
        input_ids = dataset["input_ids"][:]
        lengths = np.array([len(ids) for ids in input_ids])
        begins = np.concatenate([[0], np.cumsum(lengths)])

        # Run the teacher over them, or read its vectors.
        path = self.output / "vectors.npy"
        shape = (int(begins[-1]), self.teacher.model.config.hidden_size)
        if not path.exists():
            self.check_time()
            stored = self.stored()
            vectors = np.lib.format.open_memmap(path.with_suffix(".partial"), mode="w+", dtype=np.float16, shape=shape)
            for batch in np.split(order := np.argsort(-lengths, kind="stable"), range(BATCH, len(order), BATCH)):
                padded = pad_batch([input_ids[row] for row in batch], self.teacher.pad_token_id)
                hidden = stored.hidden_states(*(x.to(self.teacher.device) for x in padded))
                for row, states in zip(batch, hidden.half().cpu().numpy()):
                    vectors[begins[row] : begins[row + 1]] = states[: lengths[row]]
            stored.save()
            vectors.flush()
            os.replace(path.with_suffix(".partial"), path)
        rows_of = {text: range(*numbers[place : place + 2]) for place, text in enumerate(texts)}
        if (vectors := np.load(path, mmap_mode="r")).shape != shape:
            raise SystemExit(f"{path} is for other texts: choose another --output")
        return dataset.add_column("begin", begins[:-1]), rows_of, vectors

    def senses(self, names: Sequence[str], dev: bool, similarity: str, learn: bool = False) -> SenseEmbeddingModel:
        """Build the dictionary of the texts of some tasks."""
        folder = self.output / f"senses-{self.scope(names)}{'-dev' * dev}"
        if (folder / "config.json").is_file():
            senses = AutoModel.from_pretrained(folder, learn_senses=learn)
        else:
            self.check_time()
            stored = self.stored()
            senses = build_sense_dictionary(stored, self.texts(names, dev), output_dir=folder, max_length=MAX_LENGTH)
            stored.save()
        senses.config.similarity = similarity
        return senses.to(self.teacher.device)

    def new_student(self, senses: SenseEmbeddingModel, layers: str) -> SKDStudentModel:
        """Make a student from some of the teacher's layers, see :func:`layer_indices`, or from the `backbone`."""
        if layers != "backbone":
            return SKDStudentModel.from_teacher(self.teacher, senses, num_hidden_layers=layer_indices(layers))
        backbone = adopt_tokenizer(self.options.backbone, self.teacher.tokenizer)
        student = SKDStudentModel.from_backbone(backbone, senses, pooling=self.teacher.pooling)
        return student.to(self.teacher.device)

    def train(
        self,
        key: str,
        names: Sequence[str],
        budget: str,
        learning_rate: float,
        seed: int,
        layers: str,
        dev: bool,
        **changed: Any,
    ) -> SKDStudentModel:
        """Train a student, or continue with its last checkpoint.

        Args:
            key: The method.
            names: The tasks whose texts it learns from.
            budget: `short` or `long`.
            learning_rate: The highest learning rate.
            seed: Seed of the order of the texts.
            layers: The teacher's layers that it starts from, see :func:`layer_indices`.
            dev: Whether to leave out texts for scores.
            changed: Changed settings of :class:`SKDTrainingArguments`.
        """
        method = METHODS[key]
        title = f"{key}-{self.scope(names)}{'-dev' * dev}-{layers}-{budget}-{learning_rate:g}-{seed}"
        folder = self.output / "students" / "-".join([title, *(f"{name}-{value}" for name, value in changed.items())])
        self.check_time()
        if (folder / "config.json").is_file():
            return AutoModel.from_pretrained(folder).to(self.teacher.device)

        # The student, and the settings of its training.
        senses = self.senses(names, dev, method.similarity, learn=bool(method.sense_rate))
        unfinished = folder.with_name(folder.name + ".partial")
        set_seed(seed)
        student = self.new_student(senses, layers)
        student.get_input_embeddings().requires_grad_(not method.frozen)
        if key != "cut":
            dataset, rows_of, vectors = self.rows
            settings = method.settings | changed
            if method.similarity == "dot":
                # The paper's logits are the products themselves.
                settings["temperature"] = 1 / senses.config.distortion
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
                bf16=self.options.dtype == "bfloat16",
                seed=seed,
            )

            # The training.
            chosen = [row for text in self.texts(names, dev) for row in rows_of[text]]
            if method.sense_rate is not None:
                student.config.assignment, student.config.residual = "soft", 0.5
                trainer = OutputTrainer(method.sense_rate, student, args, dataset.select(chosen), vectors)
            else:
                trainer = CachedTrainer(student, args, teacher=self.teacher, train_dataset=dataset.select(chosen))
                trainer.read(self.teacher, vectors)
                trainer.is_cosine = key == "cosine"
            for checkpoint in unfinished.glob("checkpoint-*"):
                if not (checkpoint / "trainer_state.json").is_file():  # its writing was interrupted
                    shutil.rmtree(checkpoint)
            if self.is_job:
                trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=get_last_checkpoint(unfinished) if unfinished.exists() else None)
            for checkpoint in unfinished.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        student.save_pretrained(unfinished)
        os.replace(unfinished, folder)
        return student

    def recorded(self, title: str) -> dict[str, Any]:
        """Return the scores that the study has under a title, by task or, for a search, by learning rate."""
        return self.study.read(title)

    def score(
        self, name: str, dev: bool, student: SKDStudentModel | Teacher, senses: SenseEmbeddingModel
    ) -> dict[str, dict[str, float]]:
        """Score a model on a task, with its own vectors and with senses. The result is by output."""
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
        self, title: str, name: str, key: str, learning_rate: float, layers: str, **changed: Any
    ) -> dict[str, float]:
        """Score a student of the searched tasks on held-out texts, unless the study has its scores.

        Args:
            title: Title in the study.
            name: Key of the student in this entry.
            key: The method.
            learning_rate: The highest learning rate.
            layers: The teacher's layers that it starts from.
            changed: Changed settings of :class:`SKDTrainingArguments`.

        Returns:
            The mean of the main scores, by output.
        """
        if name not in self.recorded(title):
            student = self.train(key, SEARCHED, "short", learning_rate, 0, layers, dev=True, **changed)
            scores = [(MAIN_SCORES[task], self.score(task, True, student, student.senses)) for task in SEARCHED]
            means = {way: np.mean([score[way][metric] for metric, score in scores]).round(5) for way in OUTPUTS}
            self.study.record(title, {name: means})
        return self.recorded(title)[name]

    def compare_settings(self, layers: str) -> None:
        """Print the scores of SKD on held-out texts, with one setting changed at a time."""
        learning_rate = self.search("skd", layers)
        title = f"skd-{layers}-settings-{learning_rate:g}"
        print(f"\nSKD on held-out texts, layers {layers}, short, {learning_rate:g}:\n")
        print(f"| changed | {' | '.join(OUTPUTS)} |\n|{'---|' * 5}")
        for changed in ({}, *SETTINGS):
            name = ", ".join(f"{key}={value}" for key, value in changed.items()) or "nothing"
            scores = self.held_out(title, name, "skd", learning_rate, layers, **changed)
            print(f"| {name} | {' | '.join(f'{scores[way]:.4f}' for way in OUTPUTS)} |", flush=True)

    def search(self, key: str, layers: str) -> float:
        """Return the learning rate whose student has the best mean score on held-out training texts."""
        if key == "cut" or len(self.options.learning_rates) == 1:
            return self.options.learning_rates[0]
        title, output = f"{key.removesuffix('-sep')}-{layers}-search", METHODS[key].output

        def held_out(learning_rate: float) -> float:
            return self.held_out(title, f"{learning_rate:g}", key.removesuffix("-sep"), learning_rate, layers)[output]

        return best_learning_rate(self.options.learning_rates, held_out)

    def runs(self) -> list[tuple[str, int, str, str]]:
        """Return layers, seed, budget and method of all students, in the order of the tables; of `cut` only one."""
        options = self.options
        first = options.budgets[0], options.seeds[0]
        every = product(options.layers, options.seeds, options.budgets, options.methods)
        return [
            (layers, seed, budget, key)
            for layers, seed, budget, key in every
            if key != "cut" or (budget, seed) == first
        ]

    def missing(self) -> list[tuple[str, str, int, str]]:
        """Return the arguments of :meth:`run` for students without scores, the longest training first."""
        missing, end, self.options.end = [], self.options.end, -np.inf
        for layers, seed, budget, key in sorted(self.runs(), key=lambda run: -EPOCHS[run[2]]):
            try:
                self.run(key, budget, seed, layers)
            except TimeoutError:
                missing.append((key, budget, seed, layers))
        self.options.end = end
        return missing

    def run_jobs(self) -> None:
        """Train and score what is missing, in several processes: dictionaries, then searches, then students."""
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
            _ = self.rows  # this writes the teacher's vectors, which the jobs read
            run_jobs(partial(Comparison, self.options), steps, self.options.jobs)

    def run(self, key: str, budget: str, seed: int, layers: str) -> tuple[float, dict[str, dict[str, Any]]]:
        """Train and score a method, unless that is done; return its learning rate and its scores on all tasks."""
        learning_rate = self.search(key, layers)
        title = f"{key}-{layers}" if key == "cut" else f"{key}-{layers}-{budget}-{learning_rate:g}-{seed}"
        for some in self.scopes(key):
            if missing := [name for name in some if name not in self.recorded(title)]:
                student = self.train(key, some, budget, learning_rate, seed, layers, dev=False)
                for name in missing:
                    self.study.record(title, {name: self.score(name, False, student, student.senses)})
        return learning_rate, self.recorded(title)

    def reference(self, key: str) -> dict[str, dict[str, Any]]:
        """Return the scores of the teacher, with and without the dictionary of all texts, or of model2vec."""
        for name in self.names:
            if name in self.recorded(key):
                continue
            self.check_time()
            if key == "teacher":
                scores = self.score(name, False, self.teacher, self.senses(self.names, False, "l2"))
            else:
                encoders = model2vec_encoders(distill_model2vec(self.options.teacher, self.output / "model2vec"))
                scores = {"raw": self.task(name, False).evaluation.score(*encoders)}
            self.study.record(key, {name: scores})
        return self.recorded(key)
