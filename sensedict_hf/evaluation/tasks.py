"""Tasks: what is encoded for them, and how the vectors are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..data import iterate_texts
from .checks import check_label_sets, check_labels, check_relevant, check_scores, check_tags
from .scores import (
    evaluate_classification,
    evaluate_retrieval,
    evaluate_similarity,
    evaluate_token_classification,
)

Columns = Mapping[str, list[Any]]  # a dataset: column name -> one value per row
Encode = Callable[[Sequence[str]], ArrayLike]  # texts -> [texts, hidden]
EncodeWords = Callable[[Sequence[Sequence[str]]], Sequence[ArrayLike]]  # for each list of words: [words, hidden]


@dataclass(frozen=True)
class EvaluationTask:
    """What a task encodes, and how the vectors are scored.

    Attributes:
        inputs: One or more lists of texts. With `of_words`, lists of sentences, each a list of words.
        metric: Takes the vectors of each list in `inputs` and returns scores.
        of_words: Whether each word gets a vector. Otherwise each text gets one.
    """

    inputs: tuple[Sequence[Any], ...]
    metric: Callable[..., Mapping[str, Any]]
    of_words: bool = False

    def encode(self, encode: Encode, encode_words: EncodeWords) -> list[Any]:
        """Encode the inputs.

        Returns:
            For each list of inputs, an array `[texts, hidden]`. With `of_words`, an array `[words, hidden]` for each
            sentence instead.
        """
        if self.of_words:
            return [[np.asarray(vectors) for vectors in encode_words(sentences)] for sentences in self.inputs]
        return [np.asarray(encode(texts)) for texts in self.inputs]

    def score(self, encode: Encode, encode_words: EncodeWords) -> dict[str, float]:
        """Encode the inputs and score the vectors."""
        return dict(self.metric(*self.encode(encode, encode_words)))


def classification_task(train: Columns, test: Columns, *, text: str = "text", label: str = "label") -> EvaluationTask:
    """Make a task of :func:`evaluate_classification`; `text` and `label` are names of columns."""
    labels = [
        check_labels(f"{label} of the {part} set", columns[label])
        for part, columns in (("train", train), ("test", test))
    ]
    check_label_sets(*labels)
    inputs = _strings(train[text]), _strings(test[text])
    return EvaluationTask(inputs, lambda a, b: evaluate_classification(a, train[label], b, test[label]))


def similarity_task(test: Columns) -> EvaluationTask:
    """Make a task of :func:`evaluate_similarity`, with the columns `sentence1`, `sentence2` and `score`."""
    check_scores(test["score"])
    inputs = _strings(test["sentence1"]), _strings(test["sentence2"])
    return EvaluationTask(inputs, lambda first, second: evaluate_similarity(first, second, test["score"]))


def retrieval_task(corpus: Columns, queries: Columns) -> EvaluationTask:
    """Make a task of :func:`evaluate_retrieval`.

    Args:
        corpus: Columns `id` and `text`, and optionally `title`, which is put before the text as in MTEB.
        queries: Columns `text` and `relevant`, a list of ids of the corpus.

    Raises:
        ValueError: A relevant id is not in the corpus, a query has none, or two documents have the same id.
        ValueError: A document is not a string.
    """
    check_relevant(queries["relevant"])
    # As strings: a .csv file has strings where a .jsonl file may have numbers.
    row_of: dict[str, int] = {}
    for row, id in enumerate(corpus["id"]):
        if row_of.setdefault(str(id), row) != row:
            raise ValueError(f"the corpus has two documents with the id {str(id)!r}: give each document its own")
    unknown = sorted({str(id) for ids in queries["relevant"] for id in ids if str(id) not in row_of})
    if unknown:
        raise ValueError(f"relevant documents that the corpus lacks: {unknown[:5]}; use the same ids in both files")
    relevant = [[row_of[str(id)] for id in ids] for ids in queries["relevant"]]
    titles = corpus.get("title", [""] * len(row_of))
    # A row without a title has None there.
    texts = iterate_texts(corpus["text"], "text")
    documents = [f"{title or ''} {text}".strip() for title, text in zip(titles, texts)]
    inputs = _strings(queries["text"]), documents
    return EvaluationTask(inputs, lambda first, second: evaluate_retrieval(first, second, relevant))


def token_task(train: Columns, test: Columns) -> EvaluationTask:
    """Make a task of :func:`evaluate_token_classification`, with the columns `tokens` (words) and `tags` (BIO)."""
    inputs, tags = (train["tokens"], test["tokens"]), (train["tags"], test["tags"])
    for name, sentences, given in zip(("train", "test"), inputs, tags):
        check_tags(name, sentences, given, "words")
    return EvaluationTask(inputs, lambda a, b: evaluate_token_classification(a, tags[0], b, tags[1]), of_words=True)


def _strings(texts: list[Any]) -> list[str]:
    """Return a column of texts if all of them are strings, before any of them is encoded."""
    return list(iterate_texts(texts))


TASKS: dict[str, Callable[..., EvaluationTask]] = {
    "classification": classification_task,
    "similarity": similarity_task,
    "retrieval": retrieval_task,
    "tokens": token_task,
}
