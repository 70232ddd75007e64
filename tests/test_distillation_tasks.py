"""The tasks of the comparison: which files they read, and what they score."""

import json

import numpy as np
import pytest

from benchmarks.distillation import tasks


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def texts_of(prefix, number):
    return [
        {"text": f"{prefix} {'yes' if row % 2 else 'no'} {row}", "label": "yes" if row % 2 else "no"}
        for row in range(number)
    ]


def pairs_of(prefix):
    return [
        {"sentence1": f"{prefix} yes", "sentence2": f"{prefix} {word}", "score": score}
        for word, score in [("yes", 5), ("no", 1)]
    ]


def words_of(prefix):
    return [{"tokens": [prefix, "no", "yes"], "tags": ["O", "O", "B-a"]}] * 2


@pytest.fixture
def data(tmp_path):
    """A data folder without test files."""
    for name in tasks.CLASSIFICATION:
        write(tmp_path / name / "train.jsonl", texts_of("train", 50))
    for part in ("train", "dev"):
        write(tmp_path / "stsb" / f"{part}.jsonl", pairs_of(part))
        write(tmp_path / "wnut17" / f"{part}.jsonl", words_of(part))
    return tmp_path


def encode(texts):
    return np.array([[1.0, "yes" in text, "no" in text] for text in texts])


def encode_words(sentences):
    return [encode(words) for words in sentences]


def test_developing_needs_no_test_file(data):
    for name in tasks.DEV_NAMES:
        task = tasks.load_task(name, data, dev=True)
        scores = task.evaluation.score(encode, encode_words)
        assert scores[{"stsb": "spearman", "wnut17": "f1"}.get(name, "full")] == pytest.approx(1)
        if name in tasks.CLASSIFICATION:
            learned, held_out = task.evaluation.inputs
            assert task.train_texts == learned and (len(learned), len(held_out)) == (40, 10)
            assert sorted(learned + held_out) == sorted(row["text"] for row in texts_of("train", 50))
            assert sum("yes" in text for text in held_out) == 5
    assert tasks.load_task("stsb", data, dev=True).train_texts == ["train yes", "train yes", "train yes", "train no"]
    assert tasks.load_task("wnut17", data, dev=True).train_texts == ["train no yes"] * 2
    with pytest.raises(ValueError, match="no task 'xquad_retrieval' to develop on: choose one of banking77"):
        tasks.load_task("xquad_retrieval", data, dev=True)


def test_scores_are_of_the_test_files(data):
    for name in tasks.CLASSIFICATION:
        write(data / name / "test.jsonl", texts_of("test", 10))
    write(data / "stsb" / "test.jsonl", pairs_of("test"))
    write(data / "wnut17" / "test.jsonl", words_of("test"))
    write(data / "wikipedia_en_sample" / "train.jsonl", [{"text": "An article."}])
    write(
        data / "xquad_retrieval" / "corpus.jsonl", [{"id": word, "title": "", "text": word} for word in ("no", "yes")]
    )
    write(
        data / "xquad_retrieval" / "queries.jsonl",
        [{"text": f"{word}?", "relevant": [word]} for word in ("yes", "no")],
    )
    for name in tasks.NAMES:
        task = tasks.load_task(name, data)
        seen = []

        def encode_and_note(texts, seen=seen):
            seen.append(texts)
            return encode(texts)

        scores = task.evaluation.score(
            encode_and_note, lambda sentences, note=encode_and_note: [note(words) for words in sentences]
        )
        assert max(scores.values()) == pytest.approx(1)
        last = ["no", "yes"] if name == "xquad_retrieval" else seen[-1]
        assert seen[-1] == last and (name == "xquad_retrieval" or "test" in last[0])
    assert tasks.load_task("xquad_retrieval", data).train_texts == ["An article."]
    assert len(tasks.load_task("snips", data).train_texts) == 50  # all of them


def test_model2vec_words_are_means_of_their_tokens(teacher_folder, tmp_path):
    pytest.importorskip("model2vec.distill", reason="the extra named benchmark is not installed")
    model = tasks.distill_model2vec(str(teacher_folder), tmp_path / "static")
    encode, encode_words = tasks.model2vec_encoders(model)
    one, both = encode_words([["w1", "w2"], ["w1 w2"]])
    np.testing.assert_allclose(both[0], one.mean(0), rtol=1e-3, atol=1e-4)
    cosine = both[0] @ encode(["w1 w2"])[0] / np.linalg.norm(both[0])
    assert cosine == pytest.approx(1, abs=1e-3)
    again = tasks.distill_model2vec("no such model", tmp_path / "static")
    np.testing.assert_array_equal(again.embedding, model.embedding)
