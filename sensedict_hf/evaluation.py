"""Sentence classification on frozen embeddings, by the protocol of MTEB; agreement of found senses with annotated ones."""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, v_measure_score

SEED = 42  # MTEB's, so that the draws are the same


class ClassificationScores(TypedDict):
    """Accuracies in 0..1: mean and standard deviation over few-shot draws, and of one classifier on the whole train set."""

    few_shot: float
    few_shot_std: float
    full: float


def few_shot_draws(labels: ArrayLike, samples_per_label: int = 8, num_draws: int = 10, seed: int = SEED) -> list[np.ndarray]:
    """The rows that MTEB's classification tasks train on, in their order: one array of indices per draw.

    Each draw shuffles the previous order again with the same generator state and takes the first rows of every label.
    """
    labels = np.asarray(labels)
    order, draws = np.arange(len(labels)), []
    for _ in range(num_draws):
        np.random.RandomState(seed).shuffle(order)
        by_label = order[np.argsort(labels[order], kind="stable")]
        _, starts = np.unique(labels[by_label], return_index=True)
        chosen = np.concatenate([part[:samples_per_label] for part in np.split(by_label, starts[1:])])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        draws.append(chosen[np.argsort(place[chosen])])
    return draws


def evaluate_classification(
    train_embeddings: np.ndarray,
    train_labels: ArrayLike,
    test_embeddings: np.ndarray,
    test_labels: ArrayLike,
    *,
    normalize: bool = True,
    samples_per_label: int = 8,
    num_draws: int = 10,
    full: bool = True,
) -> ClassificationScores:
    """Logistic regression on embeddings: few-shot as in MTEB, and on the whole train set.

    Args:
        train_embeddings: `[n, hidden]`. test_embeddings: `[m, hidden]`. train_labels, test_labels: `n` and `m` integers or strings.
        normalize: divide each embedding by its length.
        full: also train on the whole train set (else `full` is NaN).

    Raises:
        ValueError: lengths differ, or a label of the test set is not in the train set.
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    sets = [("train", train_embeddings, train_labels), ("test", test_embeddings, test_labels)]
    for name, embeddings, labels in sets:
        if len(embeddings) != len(labels):
            raise ValueError(f"{name}: {len(embeddings)} embeddings but {len(labels)} labels")
    unseen = np.setdiff1d(test_labels, train_labels).tolist()
    if unseen:
        raise ValueError(f"the test set has labels that the train set has not: {unseen[:5]}; check that both files use the same labels")
    train, test = (_normalized(x) if normalize else x for x in (train_embeddings, test_embeddings))

    def accuracy(rows: np.ndarray | slice, **settings: float) -> float:
        classifier = LogisticRegression(random_state=SEED, **settings).fit(train[rows], train_labels[rows])
        return float(classifier.score(test, test_labels))

    scores = [accuracy(rows, max_iter=100) for rows in few_shot_draws(train_labels, samples_per_label, num_draws)]
    return ClassificationScores(
        few_shot=float(np.mean(scores)),
        few_shot_std=float(np.std(scores)),
        full=accuracy(slice(None), C=10, max_iter=1000) if full else float("nan"),
    )


class SenseAgreement(TypedDict):
    """Means over tokens, weighted by their occurrences: 1 for the same partition, 0 for an unrelated one."""

    v_measure: float
    adjusted_rand: float


def sense_agreement(token_ids: ArrayLike, found: ArrayLike, annotated: ArrayLike) -> SenseAgreement:
    """How well found senses agree with annotated ones: V-measure (Rosenberg and Hirschberg, EMNLP 2007) and adjusted Rand index
    (Hubert and Arabie, Journal of Classification 2, 1985) for each token that has at least two annotated senses.

    Args:
        token_ids, found, annotated: `n` occurrences: token, sense that was found for it, annotated sense.

    Raises:
        ValueError: no token has two annotated senses.
    """
    token_ids, found, annotated = np.asarray(token_ids), np.asarray(found), np.asarray(annotated)
    groups = [rows for token in np.unique(token_ids) if len(set(annotated[rows := np.flatnonzero(token_ids == token)])) > 1]
    if not groups:
        raise ValueError(f"none of the {len(np.unique(token_ids))} tokens has two annotated senses: there is nothing to compare")
    weights = [len(rows) for rows in groups]
    return SenseAgreement(
        v_measure=float(np.average([v_measure_score(annotated[rows], found[rows]) for rows in groups], weights=weights)),
        adjusted_rand=float(np.average([adjusted_rand_score(annotated[rows], found[rows]) for rows in groups], weights=weights)),
    )


def _normalized(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
