"""Senses of the next token (`key="next"`): building, looking up, labels and training."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import SIZES, make_model, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sensedict_hf import (
    Prompt,
    SenseEmbeddingConfig,
    SenseEmbeddingModel,
    SenseIndex,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    attach_senses,
    build_sense_dictionary,
    encode_senses,
    find_occurrences,
)
from sensedict_hf.building.corpus import tokenize_in_memory
from sensedict_hf.building.gathering import teacher_vectors


@pytest.fixture
def llama(tokenizer):
    """A causal language model as a teacher, and the same model with its head."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0))
    sizes = dict(max_seq_length=64, max_window=64)
    return Teacher(model.eval().model, tokenizer, name="tiny-llama", **sizes, attention="causal"), model


def naive_states(teacher, texts):
    """The states of all texts, one text at a time, and the token after each."""
    states = {}
    for text in texts:
        ids = teacher.tokenizer(text, return_tensors="pt")["input_ids"]
        for state, token in zip(teacher.hidden_states(ids)[0], ids[0, 1:].tolist()):
            states.setdefault(token, []).append(state)
    return {token: torch.stack(vectors) for token, vectors in states.items()}


def pad(rows, side):
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    if side == "left":
        return torch.tensor([f + r for f, r in zip(fill, rows)]), torch.tensor([f + o for f, o in zip(fill, ones)])
    return torch.tensor([r + f for f, r in zip(fill, rows)]), torch.tensor([o + f for f, o in zip(fill, ones)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_token_of_each_position_in_padded_batches(side):
    rows = [[5, 6, 7, 8], [9], [0, 4, 0]]  # the padding token may be a real token too
    ids, mask = pad(rows, side)
    tokens, known = SenseEmbeddingConfig(vocab_size=10, key="next").key_tokens(ids, mask)
    for row, found, is_known, real in zip(rows, tokens, known, mask.bool()):
        assert found[is_known].tolist() == row[1:]
        assert is_known[real].tolist() == [True] * (len(row) - 1) + [False]
        assert not is_known[~real].any()
    unpadded, known = SenseEmbeddingConfig(vocab_size=10, key="next").key_tokens(ids)
    assert torch.equal(unpadded[:, :-1], ids[:, 1:]) and known.tolist() == [[True] * 3 + [False]] * 3
    assert SenseEmbeddingConfig(vocab_size=10).key_tokens(ids, mask) == (ids, mask)


def test_samples_are_the_states_before_each_token(llama, texts, tmp_path):
    teacher, _ = llama
    options = dict(key="next", budget=90, keep_samples=True, sample_dtype="float32")
    senses = build_sense_dictionary(teacher, texts, **options, output_dir=tmp_path / "a")
    store, expected = load_file(tmp_path / "a" / "samples.safetensors"), naive_states(teacher, texts)
    counts = store["counts"]
    assert {t: int(n) for t, n in enumerate(counts) if n} == {t: len(v) for t, v in expected.items()}
    assert counts[2] == 0  # every text begins with this token
    for token, vectors in expected.items():
        first, last = store["offsets"][token : token + 2].tolist()
        distances = (store["samples"][first:last, None] - vectors).norm(dim=-1)
        assert distances.min(1).values.max() < 1e-4 and distances.min(0).values.max() < 1e-4
    # The same bytes again, and those of a config that was saved.
    again = build_sense_dictionary(teacher, texts, **options, output_dir=tmp_path / "b")
    assert torch.equal(again.table, senses.table)
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"]
    assert settings["key"] == "next" and senses.config.key == "next" and senses.config.attention == "causal"
    with pytest.raises(ValueError, match="key"):
        build_sense_dictionary(
            teacher, texts, **options | {"key": "input"}, update=tmp_path / "a", output_dir=tmp_path / "c"
        )


@pytest.mark.parametrize("max_length", [6, 8, 16, 64])
def test_windows_give_each_token_the_state_before_it(llama, max_length):
    teacher, _ = llama
    lines = [" ".join(f"w{number % 28}" for number in range(size)) for size in (1, 40, 3, 17)]
    corpus = tokenize_in_memory(lines, teacher.tokenizer)
    settings = dict(layer=-1, max_length=max_length, batch_size=3)

    def vectors(corpus):
        known = np.flatnonzero(corpus.has_vectors(0, len(corpus.input_ids)))
        found = list(teacher_vectors(teacher, corpus, known, 0, len(corpus), **settings))
        return dict(zip(np.concatenate([p for p, _ in found]).tolist(), torch.cat([v for _, v in found])))

    own, keyed = vectors(corpus), vectors(corpus.keyed_by("next"))
    assert sorted(keyed) == [position for position in range(len(corpus.input_ids)) if position not in corpus.offsets]
    assert all(torch.allclose(vector, own[position - 1], atol=1e-6) for position, vector in keyed.items())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_states_of_a_prompt_give_no_senses(llama, chunk):
    teacher, _ = llama
    corpus = tokenize_in_memory(["w1 w2", "", "w3"], teacher.tokenizer, Prompt(template="w9 w9 {text} w8"))
    own, keyed = (
        np.concatenate([each.has_vectors(begin, min(begin + chunk, size)) for begin in range(0, size, chunk)])
        for each in (corpus, corpus.keyed_by("next"))
        for size in [len(corpus.input_ids)]
    )
    expected = np.append(False, own[:-1])
    expected[corpus.offsets[:-1]] = False
    assert own.any() and keyed.tolist() == expected.tolist()


def test_files_of_dictionaries_with_the_key_input_stay(llama, texts, tmp_path):
    teacher, _ = llama
    senses = build_sense_dictionary(teacher, texts, budget=90, output_dir=tmp_path / "senses")
    assert "key" not in json.loads((tmp_path / "senses" / "config.json").read_text())
    assert "key" not in json.loads((tmp_path / "senses" / "manifest.json").read_text())["settings"]
    fingerprint = senses.fingerprint()
    senses.config.key = "next"
    assert senses.fingerprint() != fingerprint
    senses.save_pretrained(tmp_path / "next")
    assert SenseEmbeddingModel.from_pretrained(tmp_path / "next").config.key == "next"
    student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=1)
    student.save_pretrained(tmp_path / "student")
    assert json.loads((tmp_path / "student" / "config.json").read_text())["sense_config"]["key"] == "next"
    assert SKDStudentModel.from_pretrained(tmp_path / "student").senses.config.key == "next"
    assert senses.to_dtype("int8").config.key == "next"
    with pytest.raises(ValueError, match="unknown key 'last'"):
        SenseEmbeddingConfig(key="last")


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_replaces_each_state_by_a_sense_of_the_next_token(llama, texts, side):
    teacher, _ = llama
    senses = build_sense_dictionary(teacher, texts, key="next", budget=90, senses_dtype="float32")
    ids, mask = pad([teacher.tokenizer(text)["input_ids"] for text in texts[:5]], side)
    hidden = teacher.hidden_states(ids, mask)
    output = senses(ids, hidden, mask, assignment="hard")
    for row, real in enumerate(mask.bool()):
        places = real.nonzero()[:, 0].tolist()
        for place, following in zip(places, places[1:]):
            own = senses.senses_of(int(ids[row, following])).double()
            best = int((own - hidden[row, place].double()).square().sum(1).argmin())
            assert int(output.sense_ids[row, place]) == best
            assert torch.equal(output.hidden_states[row, place], own[best].float())
        kept = [place for place in range(ids.shape[1]) if place not in places[:-1]]
        assert torch.equal(output.hidden_states[row, kept], hidden[row, kept])
        assert (output.sense_ids[row, kept] == -1).all()


def test_a_language_model_with_senses_scores_but_does_not_generate(llama, texts):
    teacher, model = llama
    senses = build_sense_dictionary(teacher, texts, key="next", budget=90, senses_dtype="float32")
    batch = teacher.tokenizer(texts[:4], padding=True, return_tensors="pt", return_token_type_ids=False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model.lm_head(senses(ids, teacher.hidden_states(ids, mask), mask).hidden_states)
    plain = model(**batch).logits
    one = teacher.tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    with attach_senses(model, senses):
        assert torch.allclose(model(**batch).logits, expected, atol=1e-5)
        for options in ({}, {"use_cache": False}):
            with pytest.raises(ValueError, match=r"remove\(\) them to generate"):
                model.generate(**one, max_new_tokens=2, do_sample=False, **options)
        with pytest.raises(ValueError, match="past_key_values"):
            model(ids[:1, :1], past_key_values=model.model(ids[:1, :3]).past_key_values)
    assert torch.equal(model(**batch).logits, plain)
    assert model.generate(**one, max_new_tokens=2, do_sample=False).shape[1] == one["input_ids"].shape[1] + 2
    # With senses of its own tokens the model generates.
    own = build_sense_dictionary(teacher, texts, budget=90)
    with attach_senses(model, own):
        assert model.generate(**one, max_new_tokens=2, do_sample=False).shape[1] == one["input_ids"].shape[1] + 2


@pytest.mark.parametrize("max_length", [None, 8, 12])
def test_labels_are_the_senses_of_the_next_token(llama, texts, max_length):
    teacher, _ = llama
    senses = build_sense_dictionary(teacher, texts, key="next", budget=90)
    rows = encode_senses(teacher, senses, texts[:6], max_length=max_length)
    if max_length is None:
        for text, row in zip(texts, rows):
            ids = teacher.tokenizer(text, return_tensors="pt")["input_ids"]
            assert row["labels"] == senses(ids, teacher.hidden_states(ids)).sense_ids[0].tolist()
    # Every state but the last of each text has one label, and rows show the token that it is a sense of.
    labels = [label for row in rows for label in row["labels"] if label >= 0]
    states = sum(len(teacher.tokenizer(text)["input_ids"]) - 1 for text in texts[:6])
    assert len(labels) == states or max_length == 8 and len(labels) > 0.9 * states  # windows that overlap by one token
    for row in rows:
        tokens, mask = senses.config.key_tokens(torch.tensor(row["input_ids"]))
        counts = senses.offsets[tokens + 1] - senses.offsets[tokens]
        assert all(label < 0 or (known and label < count) for label, known, count in zip(row["labels"], mask, counts))


def test_training_learns_the_senses_of_the_next_token(llama, texts, tmp_path):
    teacher, _ = llama
    senses = build_sense_dictionary(teacher, texts, key="next", budget=90)
    settings = dict(report_to="none", disable_tqdm=True, save_strategy="no", max_steps=30, learning_rate=1e-2)
    measured = {}
    for objective in ("sense", "sense+mse"):
        torch.manual_seed(0)
        student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=1)
        args = SKDTrainingArguments(str(tmp_path / objective), objective=objective, **settings)
        trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts, eval_dataset=texts)
        before = trainer.evaluate()
        trainer.train()
        measured[objective] = before, trainer.evaluate()
    # Labels that are stored and labels that are computed at every step are the same.
    stored, computed = measured["sense"][0], measured["sense+mse"][0]
    assert stored["eval_sense_accuracy"] == pytest.approx(computed["eval_sense_accuracy"], abs=1e-6)
    assert stored["eval_coverage"] == pytest.approx(computed["eval_coverage"], abs=1e-6)
    for before, after in measured.values():
        assert after["eval_loss"] < before["eval_loss"] / 2
    # The last position of a text is not covered.
    tokens = [len(teacher.tokenizer(text)["input_ids"]) for text in texts]
    assert stored["eval_coverage"] == pytest.approx(1 - len(tokens) / sum(tokens), abs=1e-6)


def test_occurrences_are_the_states_that_predict_a_token(llama, texts):
    teacher, _ = llama
    senses = build_sense_dictionary(teacher, texts, key="next", budget=90, senses_dtype="float32")
    token = teacher.tokenizer.convert_tokens_to_ids("w27")
    found, expected = find_occurrences(senses, teacher, token, texts), naive_states(teacher, texts)[token]
    assert found.total == len(expected)
    assert torch.allclose(found.vectors, expected, atol=1e-5)
    distances = torch.cdist(expected, senses.senses_of(token))
    assert found.sense_ids.tolist() == distances.argmin(1).tolist()
    assert np.allclose(found.distances, distances.min(1).values, atol=1e-4)
    with pytest.raises(ValueError, match=r"\[CLS\].* has no senses"):
        find_occurrences(senses, teacher, "[CLS]", texts)  # the first token of every text


def test_what_does_not_fit_is_refused(llama, bert, texts, tmp_path):
    teacher, _ = llama
    with pytest.raises(ValueError, match="tiny-bert, whose attention is bidirectional"):
        build_sense_dictionary(bert, texts, key="next")
    with pytest.raises(ValueError, match="unknown key 'last'"):
        build_sense_dictionary(teacher, texts, key="last")
    with pytest.raises(ValueError, match="tokens of another tokenizer"):
        build_sense_dictionary(teacher, texts, key="next", tokenizer=make_tokenizer(words=["w1", "w2", "w3"]))
    with pytest.raises(ValueError, match="the first of their text"):
        single = make_tokenizer()
        single.backend_tokenizer.post_processor = None
        model = Teacher(make_model("llama"), single, name="tiny", max_window=64)
        build_sense_dictionary(model, ["w1", "w2"], key="next")
    senses = build_sense_dictionary(teacher, texts, key="next", budget=90)
    with pytest.raises(ValueError, match="without layers"):
        SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=0)
    with pytest.raises(ValueError, match="its states have seen the next token"):
        SKDStudentModel.from_backbone(bert, senses)
    with pytest.raises(ValueError, match="build a dictionary with key='input' for an index"):
        SenseIndex.build(teacher, senses, texts[:5])
    with pytest.raises(ValueError, match="key differs"):
        senses.config.check_same_vectors(build_sense_dictionary(teacher, texts, budget=90).config)
