"""Senses that a teacher picks, as data sets: what is in them, interruptions, processes, what is refused."""

import multiprocessing
import os
import signal

import pytest
import torch
from datasets import load_from_disk
from test_alignment import make_other
from test_resuming import contents
from tiny_models import WORDS, build_once
from tokenizers.processors import TemplateProcessing

from sensedict_hf import SKDStudentModel, SKDTrainer, SKDTrainingArguments, build_sense_dictionary, encode_senses
from sensedict_hf.distillation import labels, teacher_runs
from sensedict_hf.models.fingerprints import tokenizer_fingerprint


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=120)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(teacher_runs, "PART_TOKENS", 100)


def test_labels_are_the_teachers_choices(bert, senses, texts):
    encoded = encode_senses(bert, senses, texts)
    assert len(encoded) == len(texts) and encoded.features["labels"].feature.dtype == "int16"
    for text, row in zip(texts, encoded):
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        assert row["input_ids"] == ids[0].tolist()
        assert row["labels"] == senses(ids, bert.last_hidden_state(ids)).sense_ids[0].tolist()


def test_posteriors(bert, senses, texts):
    """Against a loop over positions: the best senses, their probabilities in proportion, and what is left empty."""
    encoded = encode_senses(bert, senses, texts[:5], top_k=3, temperature=0.7)
    for text, row in zip(texts, encoded):
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        vectors = bert.last_hidden_state(ids)[0]
        found = torch.tensor(row["sense_ids"]).view(-1, 3), torch.tensor(row["probabilities"]).view(-1, 3)
        assert row["labels"] == found[0][:, 0].tolist()
        for token, vector, numbers, probabilities in zip(ids[0].tolist(), vectors, *found):
            own = senses.senses_of(token).float()
            scores = -(vector - own).square().sum(-1) / (0.7 * senses.config.distortion)
            best = scores.topk(min(3, len(own)))
            assert numbers.tolist() == best.indices.tolist() + [-1] * (3 - len(own))
            expected = torch.nn.functional.pad(best.values.softmax(0), (0, 3 - len(best.values)))
            torch.testing.assert_close(probabilities, expected, rtol=1e-2, atol=1e-3)


def test_a_temperature_must_be_above_0(bert, senses, texts):
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"temperature={temperature}: give a finite number above 0"):
            encode_senses(bert, senses, texts, top_k=3, temperature=temperature)


def test_long_texts_are_counted_once(bert, senses):
    text = " ".join(WORDS * 4)
    encoded = encode_senses(bert, senses, [text], max_length=30, top_k=2)
    counted = [token for row in encoded for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
    assert counted == bert.tokenizer(text)["input_ids"] and len(encoded) > 3
    assert all(len(row["sense_ids"]) == 2 * len(row["input_ids"]) for row in encoded)


def test_texts_without_tokens_are_left_out(bert, senses):
    bert.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    senses.config.tokenizer_fingerprint = tokenizer_fingerprint(bert.tokenizer)
    assert len(encode_senses(bert, senses, ["w1 w2", "", "w3"])) == 2


def test_an_interrupted_call_goes_on(bert, senses, texts, tmp_path, monkeypatch):
    """Killed behind each of the first parts; what was done is not done again, and the bytes are the same."""
    encode_senses(bert, senses, texts, output_dir=tmp_path / "straight", top_k=2)
    encode_part = labels._encode_part
    done = multiprocessing.Value("i", 0)

    def count_and_kill(*arguments):
        if done.value in (1, 3):
            done.value += 1
            os.kill(os.getpid(), signal.SIGKILL)
        done.value += 1
        return encode_part(*arguments)

    monkeypatch.setattr(labels, "_encode_part", count_and_kill)
    fork = multiprocessing.get_context("fork")
    for expected in (-signal.SIGKILL, -signal.SIGKILL, 0):

        def run():
            torch.set_num_threads(1)
            encode_senses(bert, senses, texts, output_dir=tmp_path / "killed", top_k=2)

        process = fork.Process(target=run)
        process.start()
        process.join(120)
        assert process.exitcode == expected
    parts = -(-sum(len(bert.tokenizer(text)["input_ids"]) for text in texts) // 100)
    assert parts + 2 <= done.value <= parts + 4  # two kills; parts end with whole texts
    names = {"dataset_info.json", "state.json", "manifest.json"}
    one, other = contents(tmp_path / "straight"), contents(tmp_path / "killed")
    assert one.keys() == other.keys() > names and all(one[name] == other[name] for name in one.keys() - names)
    assert load_from_disk(tmp_path / "killed").to_dict() == encode_senses(bert, senses, texts, top_k=2).to_dict()


def test_a_finished_folder_is_loaded_or_refused(bert, senses, texts, tmp_path, monkeypatch):
    first = encode_senses(bert, senses, texts, output_dir=tmp_path)
    monkeypatch.setattr(labels, "teacher_vectors", None)
    assert encode_senses(bert, senses, texts, output_dir=tmp_path).to_dict() == first.to_dict()
    with pytest.raises(ValueError, match="holds a dataset with other settings: top_k was 1, is 2"):
        encode_senses(bert, senses, texts, output_dir=tmp_path, top_k=2)
    with pytest.raises(ValueError, match="other settings: corpus was"):
        encode_senses(bert, senses, texts[1:], output_dir=tmp_path)
    other = build_sense_dictionary(bert, texts, budget=100)
    with pytest.raises(ValueError, match="other settings: senses was"):
        encode_senses(bert, other, texts, output_dir=tmp_path)
    again = encode_senses(bert, senses, texts[1:], output_dir=tmp_path, overwrite=True, only_tokens=True)
    assert len(again) == len(texts) - 1 and {label for row in again["labels"] for label in row} == {-1}


def test_what_is_of_another_kind_is_not_replaced(bert, senses, texts, tmp_path):
    build_sense_dictionary(bert, texts, budget=120, output_dir=tmp_path / "senses")
    encode_senses(bert, senses, texts, output_dir=tmp_path / "encoded")
    before = contents(tmp_path / "senses"), contents(tmp_path / "encoded")
    with pytest.raises(ValueError, match="holds a dictionary: give the dataset another folder"):
        encode_senses(bert, senses, texts, output_dir=tmp_path / "senses")
    with pytest.raises(ValueError, match="holds a dataset: give the dictionary another folder"):
        build_sense_dictionary(bert, texts, budget=120, output_dir=tmp_path / "encoded")
    assert before == (contents(tmp_path / "senses"), contents(tmp_path / "encoded"))


@pytest.mark.parametrize("pattern", [".", r"\S+|\s"])
def test_a_student_with_another_tokenizer(bert, texts, tmp_path, pattern):
    """Labels are the senses nearest to the vectors of the teacher's tokens over the same characters; it trains too."""
    other = make_other(pattern, texts)
    senses = build_sense_dictionary(bert, texts, tokenizer=other, budget=150)
    encoded = encode_senses(bert, senses, texts[:8])
    for text, row in zip(texts, encoded):
        mine, theirs = other(text, return_offsets_mapping=True), bert.tokenizer(text, return_offsets_mapping=True)
        vectors = bert.last_hidden_state(torch.tensor([theirs["input_ids"]]))[0]
        assert row["input_ids"] == mine["input_ids"]
        for place, (begin, end) in enumerate(mine["offset_mapping"][1:-1], start=1):
            pairs = enumerate(theirs["offset_mapping"])
            covering = [
                number
                for number, (a, b) in pairs
                if any(a <= c < b and not text[c].isspace() for c in range(begin, end))
            ]
            if not covering:
                assert row["labels"][place] == -1
                continue
            ids = torch.tensor([[mine["input_ids"][place]]])
            assert row["labels"][place] == senses(ids, vectors[covering].mean(0)[None, None]).sense_ids.item()
    small = type(bert.model)(
        type(bert.model.config)(**{**bert.model.config.to_dict(), "vocab_size": len(other), "hidden_size": 8})
    )
    student = SKDStudentModel.from_backbone(small, senses)
    args = SKDTrainingArguments(str(tmp_path), report_to="none", save_strategy="no", max_steps=2, objective="sense")
    trainer = SKDTrainer(student, args, teacher=bert, train_dataset=texts)
    trainer.train()
    assert student.encode(texts[:2]).shape == (2, 16)
    for data in (texts, encoded):
        with pytest.raises(ValueError, match="cannot read the student's tokens"):
            SKDTrainer(
                student, SKDTrainingArguments(str(tmp_path), objective="sense+mse"), teacher=bert, train_dataset=data
            )
    same = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts))
    with pytest.raises(ValueError, match="encoded with tokenizer="):
        SKDTrainer(
            same, SKDTrainingArguments(str(tmp_path), objective="sense+mse"), teacher=bert, train_dataset=encoded
        )
