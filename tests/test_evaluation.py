import numpy as np
import pytest
import torch

from sensedict_hf import Teacher, evaluate_classification
from sensedict_hf.encoding import pool
from sensedict_hf.evaluation import few_shot_draws, sense_agreement


@pytest.fixture
def data():
    """Three noisy classes in eight dimensions: 90 rows to train on, 60 to test on."""
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    vectors = np.eye(3, 8)[labels] + 0.6 * generator.normal(size=(150, 8)) + 0.3
    return vectors[:90], labels[:90].tolist(), vectors[90:], labels[90:].tolist()


def test_few_shot_draws_are_balanced_and_differ(data):
    draws = few_shot_draws(data[1], 8, 10)
    assert len(draws) == 10 and len({tuple(draw) for draw in draws}) == 10
    for draw in draws:
        assert np.bincount(np.asarray(data[1])[draw]).tolist() == [8, 8, 8] and len(set(draw.tolist())) == 24


def test_scores(data):
    scores = evaluate_classification(*data)
    assert 0.5 < scores["few_shot"] < 1 and 0 < scores["few_shot_std"] < 0.2 and 0.6 < scores["full"] < 1
    scaled = evaluate_classification(data[0] * np.linspace(1, 9, 90)[:, None], data[1], data[2] * 5, data[3])
    assert scaled == pytest.approx(scores)  # lengths do not matter
    assert evaluate_classification(data[0], ["abc"[label] for label in data[1]], data[2], ["abc"[label] for label in data[3]]) == scores


def test_errors(data):
    with pytest.raises(ValueError, match="train: 90 embeddings but 89 labels"):
        evaluate_classification(data[0], data[1][1:], *data[2:])
    with pytest.raises(ValueError, match=r"labels that the train set has not: \[7\]"):
        evaluate_classification(*data[:3], [7] * 60)


def test_protocol_is_that_of_mteb(data):
    """The same embeddings through MTEB's own classification task."""
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.models.model_meta import ModelMeta

    class Task(AbsTaskClassification):
        metadata = mteb.TaskMetadata(
            name="Planted",
            dataset={"path": "none/none", "revision": "none"},
            description="test",
            reference=None,
            type="Classification",
            category="t2c",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation="",
        )

        def load_data(self, **_):
            splits = {"train": data[:2], "test": data[2:]}
            rows = {
                name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(len(labels))], "label": labels})
                for name, (_, labels) in splits.items()
            }
            self.dataset, self.data_loaded = DatasetDict(rows), True

    def normalized(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    class Lookup:
        mteb_model_meta = ModelMeta.create_empty({"name": "test/lookup", "revision": "none"})

        def encode(self, inputs, **_):
            texts = [text for batch in inputs for text in batch["text"]]
            vectors = {"train": data[0], "test": data[2]}
            return normalized(np.stack([vectors[text.split()[0]][int(text.split()[1])] for text in texts]))

        def similarity(self, first, second):
            raise NotImplementedError  # MTEB asks for the method and never calls it in classification

        similarity_pairwise = similarity

    task = Task()
    task.load_data()
    scores = task.evaluate(Lookup(), split="test", encode_kwargs={}, prediction_folder=None)["default"]
    ours = evaluate_classification(*data)
    assert ours["few_shot"] == pytest.approx(scores["accuracy"])


def test_sense_agreement():
    tokens, annotated = [1] * 6 + [2] * 4 + [3] * 5, list("aaabbb" + "xxyy" + "zzzzz")
    assert sense_agreement(tokens, annotated, annotated) == {"v_measure": 1, "adjusted_rand": 1}
    worse = sense_agreement(tokens, [0, 0, 0, 1, 1, 1] + [0, 1, 0, 1] + [0] * 5, annotated)
    assert worse["v_measure"] == pytest.approx(0.6) and worse["adjusted_rand"] == pytest.approx((6 - 4 * 0.5) / 10)
    with pytest.raises(ValueError, match="none of the 1 tokens has two annotated senses"):
        sense_agreement([1, 1], [0, 1], ["a", "a"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_reads_no_padding(side):
    rows, width = [[1.0, 2.0, 6.0], [5.0]], 3
    hidden, mask = torch.full((2, width, 1), 99.0), torch.zeros(2, width, dtype=torch.int64)
    for row, values in enumerate(rows):
        at = slice(width - len(values), width) if side == "left" else slice(0, len(values))
        hidden[row, at, 0], mask[row, at] = torch.tensor(values), 1
    expected = {"mean": [3, 5], "cls": [1, 5], "last": [6, 5], "max": [6, 5]}
    for pooling, values in expected.items():
        assert pool(hidden, mask, pooling).squeeze(-1).tolist() == values
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pool(hidden, mask, "median")
    with pytest.raises(ValueError, match="row 1 of the batch has no tokens"):
        pool(hidden, torch.tensor([[1, 1, 1], [0, 0, 0]]), "mean")


def test_teacher_encodes_like_sentence_transformers(texts, bert, teacher_folder):
    """Against the mean over tokens, one text at a time; long texts are truncated."""
    teacher = Teacher(bert.model, bert.tokenizer, name="tiny", max_seq_length=8)
    for text, vector in zip(texts, teacher.encode(texts)):
        ids = torch.tensor([bert.tokenizer(text, truncation=True, max_length=8)["input_ids"]])
        torch.testing.assert_close(vector, bert.last_hidden_state(ids)[0].mean(0), rtol=1e-4, atol=1e-5)
