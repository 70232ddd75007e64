"""Evaluation tasks: of rows of data, what a model has to encode and how its vectors are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .evaluation import evaluate_classification, evaluate_retrieval, evaluate_similarity, evaluate_token_classification

Columns = Mapping[str, list[Any]]  # rows, as a list for each column
Encode = Callable[[Sequence[str]], ArrayLike]  # texts -> [texts, hidden]
EncodeWords = Callable[[Sequence[Sequence[str]]], Sequence[ArrayLike]]  # lists of words -> [words, hidden] for each


@dataclass(frozen=True)
class EvaluationTask:
    """
    Attributes:
        inputs: what is encoded: lists of texts, or, if `of_words`, lists of sentences that are lists of words.
        metric: maps their vectors, in the same order, to scores.
    """

    inputs: tuple[Sequence[Any], ...]
    metric: Callable[..., Mapping[str, float]]
    of_words: bool = False

    def encode(self, encode: Encode, encode_words: EncodeWords) -> list[Any]:
        """The vectors of the inputs, as numpy arrays."""
        if self.of_words:
            return [[np.asarray(vectors) for vectors in encode_words(sentences)] for sentences in self.inputs]
        return [np.asarray(encode(texts)) for texts in self.inputs]

    def score(self, encode: Encode, encode_words: EncodeWords) -> dict[str, float]:
        return dict(self.metric(*self.encode(encode, encode_words)))


def classification_task(train: Columns, test: Columns, *, text: str = "text", label: str = "label") -> EvaluationTask:
    """[`evaluate_classification`]; `text` and `label` name columns."""
    return EvaluationTask(
        (train[text], test[text]),
        lambda train_vectors, test_vectors: evaluate_classification(train_vectors, train[label], test_vectors, test[label]),
    )


def similarity_task(test: Columns) -> EvaluationTask:
    """[`evaluate_similarity`] of the columns `sentence1`, `sentence2` and `score`."""
    return EvaluationTask(
        (test["sentence1"], test["sentence2"]),
        lambda first, second: evaluate_similarity(first, second, test["score"]),
    )


def retrieval_task(corpus: Columns, queries: Columns) -> EvaluationTask:
    """[`evaluate_retrieval`] of the columns `id` and `text` of a corpus, with its `title`, if there is one, before the text, as in MTEB;
    and of the columns `text` and `relevant` (ids of documents) of queries.

    Raises:
        ValueError: an id that the corpus does not have.
    """
    row_of = {id: row for row, id in enumerate(corpus["id"])}
    unknown = sorted({str(id) for ids in queries["relevant"] for id in ids if id not in row_of})
    if unknown:
        raise ValueError(f"relevant documents that the corpus has not: {unknown[:5]}; check that both files use the same ids")
    relevant = [[row_of[id] for id in ids] for ids in queries["relevant"]]
    titles = corpus.get("title", [""] * len(row_of))
    documents = [f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"])]  # datasets fills in None for no title
    return EvaluationTask((queries["text"], documents), lambda first, second: evaluate_retrieval(first, second, relevant))


def token_task(train: Columns, test: Columns) -> EvaluationTask:
    """[`evaluate_token_classification`] of the columns `tokens` (words) and `tags` (BIO)."""
    return EvaluationTask(
        (train["tokens"], test["tokens"]),
        lambda train_vectors, test_vectors: evaluate_token_classification(train_vectors, train["tags"], test_vectors, test["tags"]),
        of_words=True,
    )


TASKS: dict[str, Callable[..., EvaluationTask]] = {
    "classification": classification_task,
    "similarity": similarity_task,
    "retrieval": retrieval_task,
    "tokens": token_task,
}
