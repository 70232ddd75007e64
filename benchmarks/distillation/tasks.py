"""The tasks of the comparison, and model2vec as a baseline.

A task has texts to learn from, and scores a model that encodes texts and words. `benchmarks/README.md` describes the
data folder.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sensedict_hf.evaluation.tasks import (
    Columns,
    Encode,
    EncodeWords,
    EvaluationTask,
    classification_task,
    retrieval_task,
    similarity_task,
    token_task,
)
from sensedict_hf.models.encoding import BatchEncoder

if TYPE_CHECKING:
    from model2vec import StaticModel

CLASSIFICATION = ("banking77", "hwu64", "go_emotions", "snips", "uci_sentiment", "poem_sentiment")
# Whole articles would be more text than all other tasks have together, so the first paragraph or so is used.
ARTICLE_CHARACTERS = 600
# A sentence has so many characters.
SHORTEST, LONGEST = 40, 300
NAMES = (*CLASSIFICATION, "stsb", "xquad_retrieval", "wnut17")
DEV_NAMES = tuple(name for name in NAMES if name != "xquad_retrieval")


@dataclass(frozen=True)
class DistillationTask:
    """A task for students.

    Attributes:
        train_texts: Texts that students learn from, without labels.
        evaluation: What is encoded, and how it is scored.
    """

    train_texts: list[str]
    evaluation: EvaluationTask

    def score_outputs(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        names: Sequence[str],
        width: int,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> dict[str, dict[str, float]]:
        """Score several outputs of one forward pass. They are mean-pooled together.

        Args:
            forward: Token ids and mask, `[batch, positions]`, to the joined outputs, `[batch, positions, names x
                width]`.
            names: Names of the outputs.
            width: Width of an output.
            tokenizer: Tokenizer of the model.
            settings: Further settings of `BatchEncoder`.

        Returns:
            Scores by output, rounded to five digits.
        """
        encoder = BatchEncoder(forward, tokenizer, **settings)
        vectors = self.evaluation.encode(encoder.encode_texts, encoder.encode_words)
        scores = {}
        for number, name in enumerate(names):
            part = slice(number * width, (number + 1) * width)
            own = [[x[:, part] for x in some] if self.evaluation.of_words else some[:, part] for some in vectors]
            scores[name] = {metric: round(float(value), 5) for metric, value in self.evaluation.metric(*own).items()}
        return scores


def load_task(name: str, data: Path, *, dev: bool = False) -> DistillationTask:
    """Load a task.

    Args:
        name: One of `NAMES`; with `dev` one of `DEV_NAMES`.
        data: The data folder.
        dev: Score on data for development, without reading a test file. This is `dev.jsonl`; for classification it is
            a stratified fifth of the training rows, which `train_texts` then leave out.

    Raises:
        ValueError: There is no such task, or it has no data for development.
    """
    allowed = DEV_NAMES if dev else NAMES
    if name not in allowed:
        raise ValueError(f"there is no task {name!r}{' to develop on' * dev}: choose one of {', '.join(allowed)}")
    if name == "xquad_retrieval":
        articles = read_columns(data / "wikipedia_en_sample" / "train.jsonl")["text"]
        corpus, queries = (read_columns(data / name / f"{part}.jsonl") for part in ("corpus", "queries"))
        return DistillationTask([text[:ARTICLE_CHARACTERS] for text in articles], retrieval_task(corpus, queries))
    train = read_columns(data / name / "train.jsonl")
    if dev and name in CLASSIFICATION:
        train, test = hold_out_fifth(train)
    else:
        test = read_columns(data / name / ("dev.jsonl" if dev else "test.jsonl"))
    if name == "stsb":
        return DistillationTask(train["sentence1"] + train["sentence2"], similarity_task(test))
    if name == "wnut17":
        return DistillationTask([" ".join(words) for words in train["tokens"]], token_task(train, test))
    return DistillationTask(train["text"], classification_task(train, test))


def read_columns(path: Path) -> Columns:
    """Read a file of JSON Lines: the values of each column."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {name: [row[name] for row in rows] for name in rows[0]}


def sentences(articles: Sequence[str]) -> list[str]:
    """Cut articles into sentences, roughly: at a full stop, a question mark or an exclamation mark before a space."""
    lines = [line for article in articles for line in article.split("\n")]
    parts = [part for line in lines for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", line)]
    return [part for part in dict.fromkeys(parts) if SHORTEST <= len(part) <= LONGEST]


def hold_out_fifth(columns: Columns) -> tuple[Columns, Columns]:
    """Split labelled rows into four fifths and a stratified fifth, both in the order of the rows."""
    rows = np.arange(len(columns["label"]))
    parts = train_test_split(rows, test_size=0.2, random_state=0, stratify=columns["label"])
    four_fifths, fifth = (
        {name: [values[row] for row in np.sort(part)] for name, values in columns.items()} for part in parts
    )
    return four_fifths, fifth


def best_learning_rate(rates: Sequence[float], held_out: Callable[[float], float]) -> float:
    """Search for the learning rate with the highest score.

    While the best rate is the lowest or the highest that was tried, the next one beyond it is tried too: half or twice
    as much.

    Args:
        rates: The rates to begin with.
        held_out: Returns the score of a rate on held-out texts.
    """
    tried = sorted(rates)
    best = max(tried, key=held_out)
    while best in (tried[0], tried[-1]):
        beyond = best / 2 if best == tried[0] else best * 2
        if held_out(beyond) <= held_out(best):
            break
        tried, best = sorted([*tried, beyond]), beyond
    return best


def distill_model2vec(teacher: str, folder: Path) -> "StaticModel":
    """Return model2vec's static model of a teacher, with the default settings of that package.

    Args:
        teacher: Name or folder of the teacher.
        folder: Where the model is kept.
    """
    # Imported here: only this baseline needs the package.
    from model2vec import StaticModel
    from model2vec.distill import distill

    if not folder.exists():
        distill(teacher).save_pretrained(folder)
    # It is stored in float16, in which means and lengths lose digits.
    return StaticModel.from_pretrained(folder, quantize_to="float32")


def model2vec_encoders(model: "StaticModel") -> tuple[Encode, EncodeWords]:
    """Return functions that encode texts, and words, as the mean of their tokens' vectors."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), use_multiprocessing=False)

    def encode_words(sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        words = [word for sentence in sentences for word in sentence]
        vectors = model.encode(words, normalize=False, use_multiprocessing=False)
        return np.split(vectors, np.cumsum([len(sentence) for sentence in sentences])[:-1])

    return encode, encode_words
