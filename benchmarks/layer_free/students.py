"""Students without layers: which texts they read, and how they are made."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModel, set_seed

from sensedict_hf import (
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    TeacherVectors,
    build_sense_dictionary,
    encode_vectors,
    merge_sense_dictionaries,
)
from sensedict_hf.models.layer_free_transfer import surrounding_ids
from sensedict_hf.models.teachers import Teacher

from ..distillation.tasks import load_task, read_columns

MAX_LENGTH = 128
# Sources of general text.
GENERAL = ("wikipedia-0", "wikipedia-1", "wikipedia-2", "wikipedia-3", "wikitext")
# Shorter lines are headings and remains of lists.
PARAGRAPH_CHARACTERS = 80


@dataclass(frozen=True)
class Recipe:
    """How a student is made.

    Attributes:
        general: How many sources of general text it reads.
        with_tasks: Whether it reads the texts of tasks.
        unseen: Whether there is a student for each task, which has not read the texts of this task.
        has_dictionary: Whether it starts from dictionaries, instead of the teacher's vectors themselves.
        table_dtype: Dtype of its tables after training.
        sizes: Fields of the backbone's config.
    """

    general: int = 0
    with_tasks: bool = True
    unseen: bool = False
    has_dictionary: bool = False
    table_dtype: str = "float32"
    sizes: dict[str, int] = field(default_factory=dict)

    def sources(self, names: Sequence[str], task: str) -> tuple[str, ...]:
        """Return the names of the sources of text that the student for a task reads."""
        seen = [name for name in names if self.with_tasks and not (self.unseen and name == task)]
        return (*seen, *GENERAL[: self.general])


RECIPES = {
    "tables": Recipe(sizes={"context_size": 0, "text_hidden_size": 0}),
    "hidden layer of 256": Recipe(sizes={"context_size": 0, "text_hidden_size": 256}),
    "hidden layer of 1024": Recipe(sizes={"context_size": 0}),
    "context, hidden layer of 1024": Recipe(),
    "with a dictionary": Recipe(has_dictionary=True),
    "int8": Recipe(table_dtype="int8"),
    "unseen": Recipe(unseen=True),
    "quarter of Wikipedia": Recipe(general=1, with_tasks=False),
    "half of Wikipedia": Recipe(general=2, with_tasks=False),
    "general text": Recipe(general=5, with_tasks=False),
    "+ quarter of Wikipedia": Recipe(general=1),
    "+ half of Wikipedia": Recipe(general=2),
    "+ general text": Recipe(general=5),
    "unseen + general text": Recipe(general=5, unseen=True),
}


class Sources:
    """Texts, and what the teacher says about them. All is computed once and kept in a folder.

    Args:
        teacher: The teacher.
        data: The data folder.
        folder: Where dictionaries and vectors are kept.
        dev: Whether texts for development are left out.
    """

    def __init__(self, teacher: Teacher, data: Path, folder: Path, dev: bool):
        self.teacher, self.data, self.folder, self.dev = teacher, data, folder, dev

    def texts(self, name: str) -> list[str]:
        """Return the texts of a task or of general text."""
        if name not in GENERAL:
            texts = load_task(name, self.data, dev=self.dev).train_texts
        elif name == "wikitext":
            parts = [self.data / "wikitext2_valid_test" / f"{part}.txt" for part in ("valid", "test")]
            texts = [line for part in parts for line in part.read_text(encoding="utf-8").split("\n")]
            for written, mark in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
                texts = [text.replace(written, mark) for text in texts]
        else:
            articles = read_columns(self.data / "wikipedia_en_sample" / "train.jsonl")["text"]
            texts = [line for article in articles[int(name[-1]) :: 4] for line in article.split("\n")]
        if name in GENERAL:
            texts = [text.strip() for text in texts if len(text.strip()) >= PARAGRAPH_CHARACTERS]
        return list(dict.fromkeys(texts))

    def vectors(self, names: Sequence[str]) -> TeacherVectors:
        """Return the teacher's vectors of the texts of sources."""
        settings = {"special_token_ids": surrounding_ids(self.teacher), "max_length": MAX_LENGTH}
        folders = [self.folder / "vectors" / name for name in names]
        for name, folder in zip(names, folders):
            if not (folder / "state.json").is_file():
                encode_vectors(self.teacher, self.texts(name), folder, **settings)
        return TeacherVectors(*folders)

    def student(self, names: Sequence[str], sizes: dict[str, int]) -> SKDStudentModel:
        """Make an untrained student from the dictionaries of sources."""
        dictionaries = []
        for name in names:
            folder = self.folder / "senses" / name
            texts = self.texts(name)
            dictionaries.append(build_sense_dictionary(self.teacher, texts, output_dir=folder, max_length=MAX_LENGTH))
        senses = merge_sense_dictionaries(dictionaries, sum(one.config.num_senses for one in dictionaries))
        return SKDStudentModel.from_teacher(self.teacher, senses, num_hidden_layers=0, **sizes)


def train(sources: Sources, names: Sequence[str], recipe: Recipe, folder: Path, seed: int) -> SKDStudentModel:
    """Return a trained student, which is kept in a folder."""
    if not (folder / "config.json").is_file():
        set_seed(seed)
        vectors = sources.vectors(names)
        if recipe.has_dictionary:
            student = sources.student(names, recipe.sizes)
        else:
            student = SKDStudentModel.from_vectors(sources.teacher, vectors, **recipe.sizes)
        begin = time.perf_counter()
        args = SKDTrainingArguments(str(folder), report_to="none", save_strategy="no", use_cpu=True, seed=seed)
        SKDTrainer(student, args, teacher=sources.teacher, train_dataset=vectors).train()
        print(f"{folder.name}: trained in {time.perf_counter() - begin:.0f} s", flush=True)
        student.save_pretrained(folder)
    student = AutoModel.from_pretrained(folder)
    if recipe.table_dtype != "float32":
        student.backbone.convert_tables(recipe.table_dtype)
        student.save_pretrained(folder.with_name(f"{folder.name}-{recipe.table_dtype}"))
    return student
