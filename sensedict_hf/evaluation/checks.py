"""What is checked before anything is scored."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.arguments import check_kind


def check_vectors(name: str, given: Any) -> NDArray[Any]:
    """Return vectors as an array, `[n, hidden]`.

    Args:
        name: Name of the argument.
        given: Its value.

    Raises:
        ValueError: They have another number of dimensions, or values that are no finite numbers.
    """
    vectors = np.asarray(given)
    if vectors.ndim != 2 or vectors.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {type(given).__name__}: pass numbers, [n, hidden], a vector for each text")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name} has values that are NaN or infinite: encode the texts in another dtype")
    return vectors


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
        ValueError: A query has none, or something else than a list.
    """
    check_kind("relevant", relevant, Collection, "for each query a list of documents")
    for query, documents in enumerate(relevant):
        if isinstance(documents, str) or not isinstance(documents, Collection) or not len(documents):
            raise ValueError(
                f"query {query} has the relevant documents {documents!r:.60}: give a list with one or more of them"
            )
