"""The sets of the benchmark: documents, queries, and which documents are relevant."""

from dataclasses import dataclass
from pathlib import Path

from ..distillation.tasks import read_columns

# A passage is a paragraph of an article with at least so many characters, and is cut off after so many.
SHORTEST, LONGEST = 400, 1000
# Documents and queries of the sets of intents, and the score that makes a pair of sentences paraphrases.
INTENT_DOCUMENTS, INTENT_QUERIES, PARAPHRASE = 3000, 400, 4.0
EVERY = 3  # of the questions of xquad_retrieval
# Where the first parts of the passages of Wikipedia end, and how many parts are among the documents of a set.
PASSAGES = (700, 2000)
XQUAD = {"xquad_retrieval": 0, "xquad_retrieval + 700": 1, "xquad_retrieval + 2,000": 2, "xquad_retrieval + all": 3}
NAMES = ("stsb", "hwu64", "banking77", *XQUAD)  # the cheapest first


@dataclass(frozen=True)
class RetrievalSet:
    """Documents and queries.

    Attributes:
        parts: The texts of the documents, by the names of their parts. Sets share parts.
        queries: The texts of the queries.
        relevant: For each query, the numbers of its relevant documents.
    """

    parts: dict[str, list[str]]
    queries: list[str]
    relevant: list[list[int]]

    @property
    def documents(self) -> list[str]:
        """The texts of all documents."""
        return [text for texts in self.parts.values() for text in texts]

    @property
    def first(self) -> str:
        """Name of the first part. Sets with the same first part have the same queries."""
        return next(iter(self.parts))


def load_set(name: str, data: Path, *, held_out: bool = False) -> RetrievalSet:
    """Load a set.

    - `xquad_retrieval`: every third question, and the paragraph that answers it.
    - `banking77`, `hwu64`: texts of the test part as queries, and training texts with the same label.
    - `stsb`: the first sentences of pairs with a score of 4 or more as queries, and the second ones. The documents are
      the second sentences of all pairs.

    Args:
        name: One of `NAMES`.
        data: The folder of all tasks.
        held_out: Take queries that no other result is of: training texts that are no documents, or every third
            question, beginning with the second one. Not for `stsb`.
    """
    if name in XQUAD:
        corpus, questions = (
            read_columns(data / "xquad_retrieval" / f"{part}.jsonl") for part in ("corpus", "queries")
        )
        numbers = {key: number for number, key in enumerate(corpus["id"])}
        chosen = slice(int(held_out), None, EVERY)
        relevant = [[numbers[key] for key in keys] for keys in questions["relevant"][chosen]]
        parts = {"xquad_retrieval": corpus["text"], **dict(list(passage_parts(data).items())[: XQUAD[name]])}
        return RetrievalSet(parts, questions["text"][chosen], relevant)
    if name == "stsb":
        files = [read_columns(data / name / f"{part}.jsonl") for part in ("train", "dev", "test")]
        pairs = [pair for part in files for pair in zip(part["sentence1"], part["sentence2"], part["score"])]
        documents = list(dict.fromkeys(second for _, second, _ in pairs))
        numbers = {text: number for number, text in enumerate(documents)}
        found: dict[str, list[int]] = {}
        for first, second, score in pairs:
            if float(score) >= PARAPHRASE and first not in numbers:
                found.setdefault(first, []).append(numbers[second])
        return RetrievalSet({name: documents}, list(found), list(found.values()))
    train = read_columns(data / name / "train.jsonl")
    rows = _spread(list(range(len(train["text"]))), INTENT_DOCUMENTS)
    by_label: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_label.setdefault(train["label"][row], []).append(number)
    asked, known = (train, set(rows)) if held_out else (read_columns(data / name / "test.jsonl"), set())
    others = [row for row in range(len(asked["text"])) if row not in known]
    if held_out:
        others = [row for row in others if asked["label"][row] in by_label]
    asking = [row for row in _spread(others, INTENT_QUERIES) if asked["label"][row] in by_label]
    return RetrievalSet(
        {name: [train["text"][row] for row in rows]},
        [asked["text"][row] for row in asking],
        [by_label[asked["label"][row]] for row in asking],
    )


def _spread(rows: list[int], count: int) -> list[int]:
    """Choose so many rows, at equal distances."""
    return [rows[int(len(rows) / count * i)] for i in range(count)]


def wikipedia_passages(data: Path) -> list[str]:
    """Return passages of Wikipedia: the first of every article, then the second of every article, and so on.

    Args:
        data: The folder of all tasks.
    """
    articles = read_columns(data / "wikipedia_en_sample" / "train.jsonl")["text"]
    paragraphs = [[text[:LONGEST] for text in article.split("\n") if len(text) >= SHORTEST] for article in articles]
    longest = max(map(len, paragraphs))
    return [texts[place] for place in range(longest) for texts in paragraphs if len(texts) > place]


def passage_parts(data: Path) -> dict[str, list[str]]:
    """Return the parts of the passages, by name."""
    passages = wikipedia_passages(data)
    ends = (*PASSAGES, len(passages))
    return {f"passages {begin} to {end}": passages[begin:end] for begin, end in zip((0, *PASSAGES), ends)}
