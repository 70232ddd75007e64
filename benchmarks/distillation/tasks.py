"""The tasks on which ways to distil a teacher are compared, and a baseline from another package.

Each task has the texts that a student learns from and a score for what encodes texts and words. A data folder holds a folder for each, of
JSON Lines: six with `train.jsonl` and `test.jsonl` of `text` and `label`; `stsb` with `train`, `dev` and `test` of `sentence1`,
`sentence2` and `score`; `wnut17` with the same three of `tokens` and `tags`; `xquad_retrieval` with `corpus` (`id`, `title`, `text`) and
`queries` (`text`, `relevant`), and for its students `wikipedia_en_sample/train.jsonl` of `text`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sensedict_hf.evaluation import (
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
ARTICLE_CHARACTERS = 600  # of each article, a paragraph; whole articles would be more text than all else together
NAMES = (*CLASSIFICATION, "stsb", "xquad_retrieval", "wnut17")
DEV_NAMES = tuple(name for name in NAMES if name != "xquad_retrieval")


@dataclass(frozen=True)
class DistillationTask:
    """
    Attributes:
        train_texts: what students learn from, without labels.
        evaluation: what is encoded, and how it is scored.
    """

    name: str
    train_texts: list[str]
    evaluation: EvaluationTask

    def score(self, encode: Encode, encode_words: EncodeWords) -> dict[str, float]:
        """Classification: `few_shot`, `few_shot_std`, `full` (accuracy); stsb: `spearman`, `pearson`; xquad_retrieval: `ndcg_at_10`,
        `accuracy_at_1`, `recall_at_10`; wnut17: `f1`, `precision`, `recall`; all in 0..1 but for correlations."""
        return self.evaluation.score(encode, encode_words)

    def score_outputs(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        names: Sequence[str],
        width: int,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> dict[str, dict[str, float]]:
        """The scores of several outputs of one forward pass, by name. They are pooled to means, and the means of all are means of each.

        Args:
            forward: token ids and mask, `[batch, positions]`, to the outputs beside each other, `[batch, positions, names x width]`.
            settings: of `BatchEncoder`.
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
    """
    Args:
        name: one of `NAMES`. data: the folder of all data.
        dev: score on data to develop on, without a look at any test file: `dev.jsonl`, or a stratified fifth of the training rows of a
            classification, which its `train_texts` are then without.

    Raises:
        ValueError: there is no such task, or it has nothing to develop on.
    """
    if name not in (DEV_NAMES if dev else NAMES):
        raise ValueError(
            f"there is no task {name!r}{' to develop on' * dev}: choose one of {', '.join(DEV_NAMES if dev else NAMES)}"
        )
    if name == "xquad_retrieval":
        articles = [
            text[:ARTICLE_CHARACTERS] for text in read_columns(data / "wikipedia_en_sample" / "train.jsonl")["text"]
        ]
        corpus, queries = (read_columns(data / name / f"{part}.jsonl") for part in ("corpus", "queries"))
        return DistillationTask(name, articles, retrieval_task(corpus, queries))
    train = read_columns(data / name / "train.jsonl")
    if dev and name in CLASSIFICATION:
        train, test = hold_out_fifth(train)
    else:
        test = read_columns(data / name / ("dev.jsonl" if dev else "test.jsonl"))
    if name == "stsb":
        return DistillationTask(name, train["sentence1"] + train["sentence2"], similarity_task(test))
    if name == "wnut17":
        return DistillationTask(name, [" ".join(words) for words in train["tokens"]], token_task(train, test))
    return DistillationTask(name, train["text"], classification_task(train, test))


def read_columns(path: Path) -> Columns:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {name: [row[name] for row in rows] for name in rows[0]}


def hold_out_fifth(columns: Columns) -> tuple[Columns, Columns]:
    """Four fifths of labelled rows and the fifth that is held out, both in the order of the rows."""
    rows = np.arange(len(columns["label"]))
    parts = train_test_split(rows, test_size=0.2, random_state=0, stratify=columns["label"])
    four_fifths, fifth = (
        {name: [values[row] for row in np.sort(part)] for name, values in columns.items()} for part in parts
    )
    return four_fifths, fifth


def best_learning_rate(rates: Sequence[float], held_out: Callable[[float], float]) -> float:
    """The rate with the highest score on held-out texts, of some and of those beyond them as long as the best is the first or the last."""
    tried = sorted(rates)
    best = max(tried, key=held_out)
    while best in (tried[0], tried[-1]):
        beyond = best / 2 if best == tried[0] else best * 2
        if held_out(beyond) <= held_out(best):
            break
        tried, best = sorted([*tried, beyond]), beyond
    return best


def distill_model2vec(teacher: str, folder: Path) -> "StaticModel":
    """The static model that model2vec makes of a teacher's tokens, with that package's own settings; or the one that is in the folder."""
    # Imported here: only this baseline needs the package.
    from model2vec import StaticModel
    from model2vec.distill import distill

    if not folder.exists():
        distill(teacher).save_pretrained(folder)
    return StaticModel.from_pretrained(
        folder, quantize_to="float32"
    )  # stored in float16, whose means and lengths lose digits


def model2vec_encoders(model: "StaticModel") -> tuple[Encode, EncodeWords]:
    """How a static model encodes texts, and words: each as the mean of its tokens' vectors."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), use_multiprocessing=False)

    def encode_words(sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        words = [word for sentence in sentences for word in sentence]
        vectors = model.encode(words, normalize=False, use_multiprocessing=False)
        return np.split(vectors, np.cumsum([len(sentence) for sentence in sentences])[:-1])

    return encode, encode_words
