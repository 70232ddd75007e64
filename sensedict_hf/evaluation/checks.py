"""What is checked before anything is scored."""

from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.arguments import check_kind


def check_vectors(name: str, given: Any) -> NDArray[Any]:
    """Return vectors as an array, `[n, hidden]`.

    Args:
        name: Name of the argument.
        given: Its value.

    Raises:
        ValueError: They have another number of dimensions, or values that are no finite numbers.
    """
    if isinstance(given, Tensor):  # perhaps on a GPU, with a gradient, or in bfloat16, which numpy does not have
        given = given.detach().cpu()
        given = given.float() if given.dtype == torch.bfloat16 else given
    vectors = np.asarray(given)
    if vectors.ndim != 2 or vectors.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {type(given).__name__}: pass numbers, [n, hidden], a vector for each text")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name} has values that are NaN or infinite: encode the texts in another dtype")
    return vectors


def check_widths(one: NDArray[Any], other: NDArray[Any]) -> None:
    """Raise a ValueError if two arrays of vectors, `[n, hidden]`, are not of the same width."""
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"the embeddings are {one.shape[1]} and {other.shape[1]} wide: compare vectors in one space, of one model "
            "or of a student and its teacher"
        )


def check_labels(name: str, given: Any) -> NDArray[Any]:
    """Return labels or scores as an array, `[n]`.

    Args:
        name: Name of the argument.
        given: Its value.

    Raises:
        ValueError: It is no list, or a text has no value.
    """
    labels = np.asarray(given)
    if labels.ndim != 1:
        raise ValueError(f"{name} is {type(given).__name__}: pass a list with one value for each text")
    missing = [number for number, label in enumerate(labels.tolist()) if label is None or label != label]  # NaN
    if missing:
        raise ValueError(f"{name} has no value for text {missing[0]}: give one for each, or leave out the text")
    return labels


def check_relevant(relevant: Any) -> None:
    """Check that each query has relevant documents.

    Args:
        relevant: For each query a list of documents.

    Raises:
        ValueError: There are no queries, or a query has no documents, or something else than a list.
    """
    check_kind("relevant", relevant, Collection, "for each query a list of documents")
    if not len(relevant):
        raise ValueError("there are no queries: give one or more, with their relevant documents")
    for query, documents in enumerate(relevant):
        is_list = isinstance(documents, Collection) and not isinstance(documents, (str, bytes, Mapping))
        if not is_list or not len(documents) or not all(_is_id(one) for one in documents):
            raise ValueError(
                f"query {query} has the relevant documents {documents!r:.60}: give a list of one or more ids, and "
                "leave out documents that were judged not to be relevant"
            )


def _is_id(given: Any) -> bool:
    return isinstance(given, (str, Integral)) and not isinstance(given, bool)


def check_label_sets(train: NDArray[Any], test: NDArray[Any]) -> None:
    """Check that a classifier can learn the labels of a test set.

    Args:
        train: Labels of the training set, `[n]`.
        test: Labels of the test set, `[n]`.

    Raises:
        ValueError: There is one label only, they are no classes, the test set is empty, or the training set lacks one
            of its labels.
    """
    if not len(test):
        raise ValueError("the test set is empty: give one or more texts with their labels")
    if train.dtype.kind == "f" and (train % 1).any():
        raise ValueError(f"label {train[train % 1 != 0][0]} is no class: give strings or integers")
    if len(found := np.unique(train)) < 2:
        raise ValueError(f"the training set has only the label {found.tolist()}: a classifier needs two or more")
    try:
        unseen = np.setdiff1d(test, train).tolist()
    except TypeError:  # strings and numbers
        unseen = test.tolist()
    if unseen:
        raise ValueError(f"the test set has labels that the training set lacks: {unseen[:5]}; use the same in both")


def check_scores(given: Any) -> NDArray[Any]:
    """Return annotated scores as numbers, `[pairs]`.

    Args:
        given: The scores. Files without types have them as strings.

    Raises:
        ValueError: They are no finite numbers, or all equal.
    """
    scores = check_labels("scores", given)
    if scores.dtype.kind == "U":
        try:
            scores = scores.astype(float)
        except ValueError as error:
            raise ValueError(f"scores must be numbers ({error}): give one for each pair") from error
    if scores.dtype.kind not in "biuf" or not np.isfinite(scores).all():
        raise ValueError("scores have values that are no finite numbers: give one number for each pair")
    if len(np.unique(scores)) < 2:
        raise ValueError(f"the {len(scores)} scores are all equal: a correlation needs two different ones")
    return scores


def check_tags(name: str, sentences: Sequence[Collection[Any]], tags: Sequence[Collection[Any]], what: str) -> None:
    """Check that each word of each sentence has a BIO tag, and that a classifier can learn the tags.

    Args:
        name: `train` or `test`.
        sentences: What there is of each sentence: words or vectors.
        tags: The tags of each sentence.
        what: Name of what there is.

    Raises:
        ValueError: Their numbers differ, there are no words, a tag is not BIO, or all tags for training are the same.
    """
    if len(sentences) != len(tags):
        raise ValueError(f"{name}: {what} of {len(sentences)} sentences but tags of {len(tags)}: give both of each")
    for number, (words, given) in enumerate(zip(sentences, tags)):
        check_kind(f"one of {name}_tags", given, Collection, "a list of tags")
        if len(words) != len(given):
            raise ValueError(
                f"{name}: sentence {number} has {len(words)} {what} but {len(given)} tags: give one of each for every "
                "word"
            )
    found = {str(tag): number for number, given in reversed([*enumerate(tags)]) for tag in given}
    for tag, number in found.items():
        if tag != "O" and tag.partition("-")[0] not in ("B", "I"):
            allowed = "B-type for the first word of an entity, I-type for its others, and O for all other words"
            raise ValueError(f"{name}: tag {tag!r} of sentence {number} is not BIO: write {allowed}")
    if len(found) < 2 and (name == "train" or not found):
        raise ValueError(f"{name}: the only tags are {[*found]}: give sentences with words that are entities")
