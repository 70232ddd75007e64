"""Scores of frozen embeddings.

Classification, similarity and retrieval follow MTEB, so that scores can be compared with published ones. Token
classification counts entities as in the shared tasks of CoNLL.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, v_measure_score

from ..models.arguments import check_flags, check_integer, check_kind
from .checks import (
    check_label_sets,
    check_labels,
    check_relevant,
    check_scores,
    check_tags,
    check_vectors,
    check_widths,
)

SEED = 42  # the seed of MTEB, so that the same rows are drawn


class ClassificationScores(TypedDict):
    """Accuracies between 0 and 1.

    Attributes:
        few_shot: Mean over classifiers that are trained on a few rows of each label.
        few_shot_std: Standard deviation over these classifiers.
        full: Accuracy of one classifier that is trained on all rows; NaN if there is none.
    """

    few_shot: float
    few_shot_std: float
    full: float


def evaluate_classification(
    train_embeddings: NDArray[Any],
    train_labels: ArrayLike,
    test_embeddings: NDArray[Any],
    test_labels: ArrayLike,
    *,
    normalize: bool = True,
    samples_per_label: int = 8,
    num_draws: int = 10,
    full: bool = True,
) -> ClassificationScores:
    """Score embeddings by logistic regression: few-shot as in MTEB, and on the whole training set.

    Args:
        train_embeddings: `[n, hidden]`, an array or a tensor on the CPU.
        train_labels: `n` integers or strings.
        test_embeddings: `[m, hidden]`.
        test_labels: `m` integers or strings.
        normalize: Divide each embedding by its length.
        samples_per_label: Training rows of each label in a few-shot draw.
        num_draws: Number of few-shot draws.
        full: Also train on the whole training set, with weaker regularization (`C=10`).

    Raises:
        ValueError: Lengths differ, or the training set lacks a label of the test set.

    Example:
        >>> import numpy as np
        >>> vectors, labels = np.array([[2.0, 0.1], [0.1, 1.0], [3.0, 0.2], [0.3, 2.0]]), ["left", "right"] * 2
        >>> evaluate_classification(vectors, labels, vectors, labels, num_draws=2)
        {'few_shot': 1.0, 'few_shot_std': 0.0, 'full': 1.0}
    """
    check_flags(normalize=normalize, full=full)
    samples_per_label = check_integer("samples_per_label", samples_per_label, 1)
    num_draws = check_integer("num_draws", num_draws, 1)
    labels, expected = check_labels("train_labels", train_labels), check_labels("test_labels", test_labels)
    train_embeddings = check_vectors("train_embeddings", train_embeddings)
    test_embeddings = check_vectors("test_embeddings", test_embeddings)
    for name, vectors, known in [("train", train_embeddings, labels), ("test", test_embeddings, expected)]:
        if len(vectors) != len(known):
            raise ValueError(f"{name}: {len(vectors)} embeddings but {len(known)} labels: give one of each per text")
    check_label_sets(labels, expected)
    train, test = (_normalized(x) if normalize else x for x in (train_embeddings, test_embeddings))

    def accuracy(rows: NDArray[Any] | slice, **settings: float) -> float:
        classifier = LogisticRegression(random_state=SEED, **settings).fit(train[rows], labels[rows])
        return float(classifier.score(test, expected))

    scores = [accuracy(rows, max_iter=100) for rows in few_shot_draws(labels, samples_per_label, num_draws)]
    return ClassificationScores(
        few_shot=float(np.mean(scores)),
        few_shot_std=float(np.std(scores)),
        full=accuracy(slice(None), C=10, max_iter=1000) if full else float("nan"),
    )


def few_shot_draws(labels: ArrayLike, samples_per_label: int = 8, num_draws: int = 10) -> list[NDArray[Any]]:
    """Draw the rows on which MTEB's classification tasks train.

    For each draw MTEB shuffles the order of the previous one, always with the same seed, and takes the first rows of
    every label.

    Args:
        labels: Label of each row, `[n]`.
        samples_per_label: Rows of each label in a draw.
        num_draws: Number of draws.

    Returns:
        For each draw, the indices of its rows, in MTEB's order.
    """
    labels = np.asarray(labels)
    order, draws = np.arange(len(labels)), []
    for _ in range(num_draws):
        np.random.RandomState(SEED).shuffle(order)
        # The first rows of each label, in the shuffled order.
        by_label = order[np.argsort(labels[order], kind="stable")]
        _, starts = np.unique(labels[by_label], return_index=True)
        chosen = np.concatenate([part[:samples_per_label] for part in np.split(by_label, starts[1:])])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        draws.append(chosen[np.argsort(place[chosen])])
    return draws


class SimilarityScores(TypedDict):
    """Correlations between -1 and 1 of cosine similarities with annotated scores."""

    spearman: float
    pearson: float


def evaluate_similarity(embeddings1: NDArray[Any], embeddings2: NDArray[Any], scores: ArrayLike) -> SimilarityScores:
    """Compare cosine similarities of pairs with annotated scores, as in the STS tasks of MTEB.

    MTEB's main score is Spearman's correlation, which depends on the order of the scores only.

    Args:
        embeddings1: First text of each pair, `[pairs, hidden]`.
        embeddings2: Second text of each pair, `[pairs, hidden]`.
        scores: `[pairs]` numbers, higher for pairs that are more similar.

    Raises:
        ValueError: Lengths differ, or all scores or all cosine similarities are equal.

    Example:
        >>> import numpy as np
        >>> first, second = np.array([[1.0, 0.0]] * 3), np.array([[2.0, 0.1], [1.0, 1.0], [0.0, 3.0]])
        >>> round(evaluate_similarity(first, second, [5, 3, 0])["spearman"], 3)
        1.0
    """
    embeddings1, embeddings2 = check_vectors("embeddings1", embeddings1), check_vectors("embeddings2", embeddings2)
    annotated = check_scores(scores)
    pairs = len(annotated)
    if not len(embeddings1) == len(embeddings2) == pairs:
        lengths = f"{len(embeddings1)} and {len(embeddings2)} embeddings but {pairs} scores"
        raise ValueError(f"{lengths}: give one of each for every pair")
    check_widths(embeddings1, embeddings2)
    cosines = (_normalized(embeddings1) * _normalized(embeddings2)).sum(axis=1)
    if np.ptp(cosines) < 8 * np.finfo(cosines.dtype).eps:  # which is rounding
        raise ValueError(f"all {pairs} pairs have the cosine {cosines[0]:g}: a correlation needs two different ones")
    return SimilarityScores(
        spearman=float(spearmanr(cosines, annotated).statistic), pearson=float(pearsonr(cosines, annotated).statistic)
    )


class RetrievalScores(TypedDict):
    """Means over all queries, between 0 and 1."""

    ndcg_at_10: float
    accuracy_at_1: float
    recall_at_10: float


def evaluate_retrieval(
    query_embeddings: NDArray[Any], corpus_embeddings: NDArray[Any], relevant: Sequence[Sequence[int]]
) -> RetrievalScores:
    """Rank documents by cosine similarity to each query, and score the ranking.

    nDCG@10, the main score of MTEB's retrieval tasks, is computed as in trec_eval with binary relevance: a relevant
    document at rank r counts 1 / log2(r + 1), and the sum is divided by the sum of the best ranking (Järvelin and
    Kekäläinen, TOIS 20, 2002).

    Args:
        query_embeddings: `[queries, hidden]`.
        corpus_embeddings: `[documents, hidden]`. All similarities, `[queries, documents]`, are held in memory.
        relevant: For each query, the row numbers of its relevant documents.

    Raises:
        ValueError: Lengths differ, or a query has no relevant document, or one that is not in the corpus.

    Example:
        >>> import numpy as np
        >>> queries, documents = np.eye(2), np.array([[1.0, 0.1], [0.9, 0.2], [0.1, 1.0]])
        >>> evaluate_retrieval(queries, documents, [[0, 1], [2]])
        {'ndcg_at_10': 1.0, 'accuracy_at_1': 1.0, 'recall_at_10': 1.0}
    """
    query_embeddings = check_vectors("query_embeddings", query_embeddings)
    corpus_embeddings = check_vectors("corpus_embeddings", corpus_embeddings)
    check_widths(query_embeddings, corpus_embeddings)
    check_relevant(relevant)
    num_queries, num_documents = len(query_embeddings), len(corpus_embeddings)
    if len(relevant) != num_queries:
        raise ValueError(
            f"{num_queries} query embeddings but {len(relevant)} lists of relevant documents: give one of each for "
            "every query"
        )
    if not num_documents:
        raise ValueError("corpus_embeddings has no rows: give a vector for each document")
    for query, documents in enumerate(relevant):
        if not all(isinstance(row, Integral) and 0 <= row < num_documents for row in documents):
            given = f"query {query} has the relevant documents {list(documents)}"
            raise ValueError(f"{given}: name one or more of 0 to {num_documents - 1}")
    cosines = _normalized(query_embeddings) @ _normalized(corpus_embeddings).T
    return score_ranking(np.argsort(-cosines, axis=1, kind="stable")[:, :10], relevant)


def score_ranking(ranking: ArrayLike, relevant: Sequence[Sequence[int]]) -> RetrievalScores:
    """Score the best documents of each query, as :func:`evaluate_retrieval` does.

    Args:
        ranking: Row numbers of the ten best documents of each query, best first, `[queries, 10]`; all documents if
            there are fewer.
        relevant: For each query, the row numbers of its relevant documents.

    Raises:
        ValueError: A query has no relevant document.
    """
    check_relevant(relevant)
    ranked = np.asarray(ranking)
    hits = np.array([np.isin(found, list(documents)) for found, documents in zip(ranked, relevant)])
    num_relevant = np.array([len(set(documents)) for documents in relevant])
    gains = 1 / np.log2(np.arange(2, 12))
    ideal = np.cumsum(gains)[np.minimum(num_relevant, 10) - 1]
    return RetrievalScores(
        ndcg_at_10=float(np.mean(hits @ gains[: hits.shape[1]] / ideal)),
        accuracy_at_1=float(np.mean(hits[:, 0])),
        recall_at_10=float(np.mean(hits.sum(axis=1) / num_relevant)),
    )


class TokenScores(TypedDict):
    """Scores of predicted entities, between 0 and 1. An entity is right if its words and its type are."""

    f1: float
    precision: float
    recall: float


def evaluate_token_classification(
    train_embeddings: Sequence[NDArray[Any]],
    train_tags: Sequence[Sequence[str]],
    test_embeddings: Sequence[NDArray[Any]],
    test_tags: Sequence[Sequence[str]],
) -> TokenScores:
    """Score the vectors of words by logistic regression of their tags.

    Entities are counted over all sentences, as conlleval (Tjong Kim Sang and Buchholz, CoNLL 2000) and seqeval do.

    Args:
        train_embeddings: For each sentence, the vectors of its words, `[words, hidden]`.
        train_tags: For each sentence, a BIO tag per word: `O`, `B-type` or `I-type`.
        test_embeddings: Like `train_embeddings`.
        test_tags: Like `train_tags`.

    Raises:
        ValueError: Lengths differ, a tag is not BIO, or all words of the training set have the same tag.

    Example:
        >>> import numpy as np
        >>> tags = [["B-city", "O"], ["O", "B-city"]]
        >>> embeddings = [np.array([[0.1, 1.0], [1.0, 0.1]]), np.array([[1.0, 0.2], [0.2, 1.0]])]
        >>> evaluate_token_classification(embeddings, tags, embeddings, tags)
        {'f1': 1.0, 'precision': 1.0, 'recall': 1.0}
    """
    checked = []
    for name, sentences, tags in [("train", train_embeddings, train_tags), ("test", test_embeddings, test_tags)]:
        for part, given in (("embeddings", sentences), ("tags", tags)):
            check_kind(f"{name}_{part}", given, Collection, "a list with one entry for each sentence")
        checked.append([check_vectors(f"{name}_embeddings", vectors) for vectors in sentences])
        check_tags(name, checked[-1], tags, "embeddings")
    train, test = checked
    annotated = find_entities(test_tags)
    # C = 10 was the best of 1, 10 and 100 on held-out training sentences of WNUT17 and Snips.
    classifier = LogisticRegression(random_state=SEED, C=10, max_iter=1000)
    classifier.fit(_normalized(np.concatenate(train)), np.concatenate(train_tags))
    predicted = classifier.predict(_normalized(np.concatenate(test)))
    found = find_entities(np.split(predicted, np.cumsum([len(words) for words in test_tags])[:-1]))
    right = len(found & annotated)
    return TokenScores(
        f1=2 * right / max(len(found) + len(annotated), 1),
        precision=right / max(len(found), 1),
        recall=right / max(len(annotated), 1),
    )


def find_entities(sentences: Iterable[Iterable[str]]) -> set[tuple[int, int, int, str]]:
    """Find entities in BIO tags, as conlleval does: an `I` tag that continues no entity of its type begins one.

    Args:
        sentences: The tags of each sentence, see :func:`check_tags`.

    Returns:
        For each entity: sentence, first word, the word after its last one, type.
    """
    entities = set()
    for number, tags in enumerate(sentences):
        begin, kind = 0, None
        for place, tag in enumerate([*tags, "O"]):  # the last O ends an entity at the end of the sentence
            prefix, _, tag_kind = str(tag).partition("-")
            if kind is not None and (prefix != "I" or tag_kind != kind):
                entities.add((number, begin, place, kind))
                kind = None
            if prefix != "O" and kind is None:
                begin, kind = place, tag_kind
    return entities


class SenseAgreement(TypedDict):
    """Agreement of two partitions: 1 if they are the same, about 0 if they are unrelated."""

    v_measure: float
    adjusted_rand: float


def sense_agreement(token_ids: ArrayLike, found: ArrayLike, annotated: ArrayLike) -> SenseAgreement:
    """Measure how well found senses agree with annotated ones.

    The V-measure (Rosenberg and Hirschberg, EMNLP 2007) and the adjusted Rand index (Hubert and Arabie, Journal of
    Classification 2, 1985) are computed for each token with at least two annotated senses, and averaged over these
    tokens, weighted by their occurrences.

    Args:
        token_ids: Token of each occurrence, `[n]`.
        found: Sense that was found for each occurrence, `[n]`.
        annotated: Annotated sense of each occurrence, `[n]`.

    Raises:
        ValueError: No token has two annotated senses, or the lengths differ.
    """
    tokens, guesses, truth = np.asarray(token_ids), np.asarray(found), np.asarray(annotated)
    if not len(tokens) == len(guesses) == len(truth):
        lengths = f"{len(tokens)} tokens, {len(guesses)} found and {len(truth)} annotated senses"
        raise ValueError(f"{lengths}: give one of each for every occurrence")
    groups = [np.flatnonzero(tokens == token) for token in np.unique(tokens)]
    groups = [rows for rows in groups if len(np.unique(truth[rows])) > 1]
    if not groups:
        number = len(np.unique(tokens))
        raise ValueError(f"none of the {number} tokens has two annotated senses: there is nothing to compare")
    weights = [len(rows) for rows in groups]

    def mean(score: Callable[..., float]) -> float:
        return float(np.average([score(truth[rows], guesses[rows]) for rows in groups], weights=weights))

    return SenseAgreement(v_measure=mean(v_measure_score), adjusted_rand=mean(adjusted_rand_score))


def _normalized(x: NDArray[Any]) -> NDArray[Any]:
    """Divide vectors `[n, hidden]` by their lengths, in float32 at least: in half precision squares underflow."""
    x = x.astype(np.result_type(x, np.float32), copy=False)
    unit: NDArray[Any] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
