"""Frozen embeddings scored: classification, similarity and retrieval by the protocols of MTEB, entities by that of CoNLL; agreement of
found senses with annotated ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, v_measure_score

SEED = 42  # MTEB's, so that the draws are the same


class ClassificationScores(TypedDict):
    """Accuracies in 0..1: mean and standard deviation over few-shot draws, and of one classifier on the whole train set."""

    few_shot: float
    few_shot_std: float
    full: float


def few_shot_draws(
    labels: ArrayLike, samples_per_label: int = 8, num_draws: int = 10, seed: int = SEED
) -> list[np.ndarray]:
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
        raise ValueError(
            f"the test set has labels that the train set has not: {unseen[:5]}; check that both files use the same labels"
        )
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


class SimilarityScores(TypedDict):
    """Correlations, in -1..1, of cosine similarities with annotated scores."""

    spearman: float
    pearson: float


def evaluate_similarity(embeddings1: np.ndarray, embeddings2: np.ndarray, scores: ArrayLike) -> SimilarityScores:
    """Cosine similarity of pairs against annotated scores, as in MTEB's STS tasks, whose main score is Spearman's correlation.

    Args:
        embeddings1, embeddings2: `[pairs, hidden]`. scores: `[pairs]` numbers; only their order counts for Spearman's.

    Raises:
        ValueError: lengths differ, or the scores are all the same.
    """
    scores = np.asarray(scores, dtype=float)
    if not len(embeddings1) == len(embeddings2) == len(scores):
        raise ValueError(
            f"{len(embeddings1)} and {len(embeddings2)} embeddings but {len(scores)} scores: give one of each for every pair"
        )
    if len(np.unique(scores)) < 2:
        raise ValueError(
            f"{len(scores)} scores, none different from another: a correlation needs at least two different ones"
        )
    cosines = (_normalized(embeddings1) * _normalized(embeddings2)).sum(axis=1)
    return SimilarityScores(
        spearman=float(spearmanr(cosines, scores).statistic),
        pearson=float(pearsonr(cosines, scores).statistic),
    )


class RetrievalScores(TypedDict):
    """Means over queries, in 0..1."""

    ndcg_at_10: float
    accuracy_at_1: float
    recall_at_10: float


def evaluate_retrieval(
    query_embeddings: np.ndarray, corpus_embeddings: np.ndarray, relevant: Sequence[Sequence[int]]
) -> RetrievalScores:
    """Documents ranked by cosine similarity. nDCG@10, the main score of MTEB's retrieval tasks, is that of trec_eval with binary
    relevance: a relevant document at rank r counts 1 / log2(r + 1), divided by what the best ranking would have (Järvelin and Kekäläinen,
    TOIS 20, 2002).

    Args:
        query_embeddings: `[queries, hidden]`. corpus_embeddings: `[documents, hidden]`. Their product, `[queries, documents]`, has to fit
            into memory.
        relevant: for each query, the rows of the documents that answer it.

    Raises:
        ValueError: lengths differ, a query has no relevant document, or one that is not in the corpus.
    """
    num_queries, num_documents = len(query_embeddings), len(corpus_embeddings)
    if len(relevant) != num_queries:
        raise ValueError(f"{num_queries} query embeddings but {len(relevant)} lists of relevant documents")
    is_relevant = np.zeros((num_queries, num_documents), dtype=bool)
    for query, documents in enumerate(relevant):
        if not len(documents) or not 0 <= min(documents) <= max(documents) < num_documents:
            raise ValueError(
                f"query {query} has the relevant documents {list(documents)}: name one or more of 0 to {num_documents - 1}"
            )
        is_relevant[query, documents] = True
    ranking = np.argsort(-_normalized(query_embeddings) @ _normalized(corpus_embeddings).T, axis=1, kind="stable")[
        :, :10
    ]
    hits = np.take_along_axis(is_relevant, ranking, axis=1)
    num_relevant = is_relevant.sum(axis=1)
    gains = 1 / np.log2(np.arange(2, 12))
    ideal = np.cumsum(gains)[np.minimum(num_relevant, 10) - 1]
    return RetrievalScores(
        ndcg_at_10=float(np.mean(hits @ gains[: hits.shape[1]] / ideal)),
        accuracy_at_1=float(np.mean(hits[:, 0])),
        recall_at_10=float(np.mean(hits.sum(axis=1) / num_relevant)),
    )


class TokenScores(TypedDict):
    """Of entities, in 0..1: a predicted one is right if its words and its type are those of an annotated one."""

    f1: float
    precision: float
    recall: float


def evaluate_token_classification(
    train_features: Sequence[np.ndarray],
    train_tags: Sequence[Sequence[str]],
    test_features: Sequence[np.ndarray],
    test_tags: Sequence[Sequence[str]],
) -> TokenScores:
    """Logistic regression on the vectors of words; micro-averaged over entities as conlleval counts them (Tjong Kim Sang and Buchholz,
    CoNLL 2000), and seqeval by default.

    Args:
        train_features, test_features: one array `[words, hidden]` for each sentence. train_tags, test_tags: a BIO tag for each word.

    Raises:
        ValueError: lengths differ, or a tag of the test set is not `O`, `B-...` or `I-...`.
    """
    for name, features, tags in [("train", train_features, train_tags), ("test", test_features, test_tags)]:
        if len(features) != len(tags):
            raise ValueError(f"{name}: features of {len(features)} sentences but tags of {len(tags)}")
        for number, (vectors, words) in enumerate(zip(features, tags)):
            if len(vectors) != len(words):
                raise ValueError(f"{name}: sentence {number} has {len(vectors)} vectors but {len(words)} tags")
    annotated = _entities(test_tags)
    # C = 10 was the best of 1, 10 and 100 on held-out training sentences of WNUT17 and Snips; standardized vectors with C = 1 were worse.
    classifier = LogisticRegression(random_state=SEED, C=10, max_iter=1000)
    classifier.fit(_normalized(np.concatenate(train_features)), np.concatenate(train_tags))
    tags = classifier.predict(_normalized(np.concatenate(test_features)))
    found = _entities(np.split(tags, np.cumsum([len(words) for words in test_tags])[:-1]))
    right = len(found & annotated)
    return TokenScores(
        f1=2 * right / max(len(found) + len(annotated), 1),
        precision=right / max(len(found), 1),
        recall=right / max(len(annotated), 1),
    )


def _entities(sentences: Iterable[Iterable[str]]) -> set[tuple[int, int, int, str]]:
    """Entities in BIO tags: sentence, first word, the word behind the last, type. `I` of another type, or behind `O`, begins one too."""
    entities = set()
    for number, tags in enumerate(sentences):
        begin, kind = 0, None
        for place, tag in enumerate([*tags, "O"]):
            prefix, _, tag_kind = str(tag).partition("-")
            if prefix not in ("B", "I") and tag != "O":
                raise ValueError(
                    f"tag {tag!r} of sentence {number} is not BIO: write O, B-type for an entity's first word or I-type"
                )
            if kind is not None and (prefix != "I" or tag_kind != kind):
                entities.add((number, begin, place, kind))
                kind = None
            if prefix != "O" and kind is None:
                begin, kind = place, tag_kind
    return entities


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
    groups = [
        rows for token in np.unique(token_ids) if len(set(annotated[rows := np.flatnonzero(token_ids == token)])) > 1
    ]
    if not groups:
        raise ValueError(
            f"none of the {len(np.unique(token_ids))} tokens has two annotated senses: there is nothing to compare"
        )
    weights = [len(rows) for rows in groups]
    return SenseAgreement(
        v_measure=float(
            np.average([v_measure_score(annotated[rows], found[rows]) for rows in groups], weights=weights)
        ),
        adjusted_rand=float(
            np.average([adjusted_rand_score(annotated[rows], found[rows]) for rows in groups], weights=weights)
        ),
    )


def _normalized(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.result_type(x, np.float32), copy=False)  # in half precision squares underflow
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


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
        lambda train_vectors, test_vectors: evaluate_classification(
            train_vectors, train[label], test_vectors, test[label]
        ),
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
        raise ValueError(
            f"relevant documents that the corpus has not: {unknown[:5]}; check that both files use the same ids"
        )
    relevant = [[row_of[id] for id in ids] for ids in queries["relevant"]]
    titles = corpus.get("title", [""] * len(row_of))
    documents = [
        f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"])
    ]  # datasets fills in None for no title
    return EvaluationTask(
        (queries["text"], documents), lambda first, second: evaluate_retrieval(first, second, relevant)
    )


def token_task(train: Columns, test: Columns) -> EvaluationTask:
    """[`evaluate_token_classification`] of the columns `tokens` (words) and `tags` (BIO)."""
    return EvaluationTask(
        (train["tokens"], test["tokens"]),
        lambda train_vectors, test_vectors: evaluate_token_classification(
            train_vectors, train["tags"], test_vectors, test["tags"]
        ),
        of_words=True,
    )


TASKS: dict[str, Callable[..., EvaluationTask]] = {
    "classification": classification_task,
    "similarity": similarity_task,
    "retrieval": retrieval_task,
    "tokens": token_task,
}
