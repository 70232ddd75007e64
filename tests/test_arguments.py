"""Arguments are checked where they come in: by name, type and range. Numbers must be finite."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import build_once

from sensedict_hf import (
    Prompt,
    SenseIndex,
    SKDStudentConfig,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    adopt_tokenizer,
    attach_senses,
    build_sense_dictionary,
    distill_student,
    encode_senses,
    encode_vectors,
    evaluate_classification,
    evaluate_retrieval,
    evaluate_similarity,
    find_occurrences,
    load_senses,
    load_teacher,
    merge_sense_dictionaries,
    plot_senses,
    read_dataset,
    report_senses,
    sparse_queries,
)
from sensedict_hf.models.arguments import check_device, check_dtype, check_integer, check_number, check_path


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=90)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(1), math.nan, "1", None, [1], 0, 5, 10**400])
def test_what_is_no_integer_from_1_to_4(value):
    with pytest.raises(ValueError, match=r"name=.*: give an integer of at least 1 and below 5"):
        check_integer("name", value, 1, 5)


@pytest.mark.parametrize(
    "value", [True, np.True_, math.nan, math.inf, -math.inf, np.float16("nan"), "1", None, 0, -1e-9, 1.1, 10**400]
)
def test_what_is_no_number_above_0_and_of_at_most_1(value):
    with pytest.raises(ValueError, match="name=.*: give a finite number above 0 and of at most 1"):
        check_number("name", value, above=0, most=1)


def test_numbers_of_numpy_are_numbers():
    assert type(check_integer("name", np.int16(4), 1, 5)) is int
    assert type(check_number("name", np.float32(0.5), above=0, most=1)) is float and check_number("name", 3) == 3.0
    for path in ("", None, 3):
        with pytest.raises(ValueError, match="name="):
            check_path("name", path)


@pytest.mark.parametrize("number", [True, False, 2.0, math.nan, "2", 10**9, -1, [], [4], [True], [0.0]])
def test_layers(bert, senses, number):
    with pytest.raises(ValueError, match="num_hidden_layers="):
        SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=number)
    assert SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=np.int64(2)).config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.nan),
        ("learning_rate", 0),
        ("temperature", math.inf),
        ("label_temperature", math.nan),
        ("mse_weight", math.nan),
        ("sentence_weight", -1.0),
        ("weight_decay", math.nan),
        ("max_grad_norm", -1),
        ("warmup_steps", math.nan),
        ("num_train_epochs", 0),
        ("num_train_epochs", math.nan),
        ("max_steps", 0),
        ("max_steps", 1.5),
        ("seed", 1.5),
        ("seed", -1),
        ("seed", True),
        ("label_top_k", 2.0),
        ("label_top_k", 10**6),
        ("max_length", 0),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", True),
        ("gradient_accumulation_steps", 0),
        ("output_dir", ""),
    ],
)
def test_settings_of_training(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        SKDTrainingArguments(**{"output_dir": str(tmp_path), "report_to": "none", name: value})


def test_settings_of_numpy(tmp_path):
    args = SKDTrainingArguments(str(tmp_path), seed=np.int32(3), learning_rate=np.float32(0.5), report_to="none")
    assert type(args.seed) is int and args.learning_rate == 0.5


@pytest.mark.parametrize("value", [0, -1, 1.5, math.inf, None, True])
def test_lengths(value):
    with pytest.raises(ValueError, match="max_seq_length="):
        SKDStudentConfig(max_seq_length=value)


def test_other_doors(bert, senses, texts):
    for call, message in (
        (lambda: merge_sense_dictionaries([senses], math.nan), "budget="),
        (lambda: build_sense_dictionary(bert, texts, output_dir=""), "output_dir="),
        (lambda: build_sense_dictionary(bert, texts, update=""), "update="),
        (lambda: build_sense_dictionary(bert, texts, seed=1.5), "seed="),
        (lambda: distill_student(bert, senses, texts, output_dir=""), "output_dir="),
        (lambda: encode_senses(bert, senses, texts, top_k=10**6), "top_k="),
        (lambda: encode_senses(bert, senses, texts, temperature=math.nan), "temperature="),
        (lambda: encode_senses(bert, senses, texts, batch_size=2.0), "batch_size="),
        (lambda: bert.encode(texts, batch_size=True), "batch_size="),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_values_at_every_door(bert, senses, texts, tmp_path, monkeypatch):
    """Each argument, with values of wrong types, is refused by its name. Nothing is loaded or made."""
    monkeypatch.chdir(tmp_path)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    index = SenseIndex.build(bert, senses, texts[:5])
    found = find_occurrences(senses, bert, "w27", texts)
    vectors, half = bert.encode(texts[:8]), ["left", "right"] * 4
    flag, number, string, path = (5, "yes", []), (-1, 2.5, "8", math.nan, [], True), (5, [], True), (5, [], True, "")
    thing = (5, "x", [], None)
    optional = (5, "x", [])
    doors = [
        (build_sense_dictionary, (bert, texts), dict(overwrite=flag, truncation=flag, trust_remote_code=flag)),
        (build_sense_dictionary, (bert, texts), dict(output_dir=path, update=path, text_column=string)),
        (build_sense_dictionary, (bert, texts), dict(device=(99, "x", True, [], "meta"), tokenizer=(5, []))),
        (merge_sense_dictionaries, (), dict(dictionaries=thing[:2]), dict(budget=60)),
        (load_senses, (tmp_path,), dict(trust_remote_code=flag)),
        (load_teacher, (tmp_path,), dict(bidirectional=flag, revision=path, template=(5, "x"))),
        (load_teacher, (tmp_path,), dict(dtype=(5, "x", torch.int8), device=(99, "x", []), pooling=(3, []))),
        (load_teacher, (bert.model,), dict(tokenizer=(7, []), instruction=string, quantization_config=(5,))),
        (Teacher, (), dict(model=thing), dict(tokenizer=bert.tokenizer, name="tiny")),
        (Teacher, (bert.model, bert.tokenizer, "tiny"), dict(prompt=optional, max_seq_length=number, pooling=thing)),
        (attach_senses, (bert.model, senses), dict(tokenizer=optional, assignment=optional)),
        (find_occurrences, (senses, bert, "w27", texts), dict(batch_size=number, max_occurrences=number)),
        (find_occurrences, (senses,), dict(teacher=(5, [], None)), dict(token="w27", texts=texts)),
        (report_senses, (senses, "w27"), dict(occurrences=optional, max_contexts=number)),
        (plot_senses, (senses,), dict(occurrences=thing, path=path), dict(occurrences={"w27": found}, path="a.png")),
        (encode_senses, (bert, senses, texts), dict(output_dir=path, max_length=number, only_tokens=flag)),
        (encode_senses, (bert,), dict(senses=thing), dict(texts=texts)),
        (encode_vectors, (bert, texts), dict(output_dir=path, special_token_ids=(5, ["x"])), dict(output_dir="v")),
        (distill_student, (bert, senses, texts), dict(layers=(5, [1.5]), head=flag), dict(output_dir="s")),
        (distill_student, (bert, senses, texts), dict(args=optional)),
        (distill_student, (bert, senses, texts), dict(recorded=(5,), teacher_options=optional), dict(output_dir="s")),
        (adopt_tokenizer, (bert,), dict(tokenizer=thing)),
        (sparse_queries, (index, texts[:1]), dict(rows_per_token=number, batch_size=number, prompt_name=string)),
        (index.search, (texts[:1],), dict(top_k=number, batch_size=number, model=optional[:1])),
        (SenseIndex.build, (bert, senses, texts), dict(output_dir=path, ids=(5, None, 2.5)[:1], batch_size=number)),
        (index.save, (), dict(folder=path)),
        (bert.encode, (texts,), dict(convert_to_numpy=flag, normalize_embeddings=flag, show_progress_bar=flag)),
        (bert.encode, (texts,), dict(prompt_name=string, long_texts=thing, batch_size=number)),
        (student.encode, (texts,), dict(assignment=optional)),
        (bert.encode_words, ([["w1"]],), dict(show_progress_bar=flag, batch_size=number)),
        (student.senses_in, (), dict(text=(5, [], None))),
        (student.replace_senses, (), dict(senses=thing)),
        (student.save_pretrained, (), dict(save_directory=path)),
        (student.save_pretrained, ("s",), dict(with_code=flag, license=string, is_main_process=flag)),
        (SKDTrainingArguments, ("s",), dict(objective=string, cache_vectors=flag)),
        (SKDStudentConfig, (), dict(text_config=optional, sense_config=optional, dtype=("x", 5))),
        (Prompt, (), dict(max_text_length=number, pooled=thing)),
        (evaluate_classification, (vectors, half, vectors, half), dict(num_draws=number, full=flag, normalize=flag)),
        (evaluate_similarity, (vectors, vectors), dict(scores=thing)),
        (read_dataset, ("t.txt",), dict(split=string, streaming=flag)),
    ]  # fmt: skip
    for call, given, wrong, *others in doors:
        for name, values in wrong.items():
            for value in values:
                arguments = {**(others[0] if others else {}), name: value}
                with pytest.raises(ValueError, match=name) as caught:
                    call(*given, **arguments)
                assert str(caught.value), (call, name, value)
    for call in (senses.save_pretrained, index.save, lambda path: encode_vectors(bert, texts, path), load_senses):
        with pytest.raises(ValueError, match="is a file"):
            call(__file__)
    with pytest.raises(TypeError, match="a teacher has no senses: leave out assignment="):
        bert.encode(texts, assignment="soft")
    assert list(tmp_path.iterdir()) == []


def test_what_is_right_stays_right(bert, texts):
    assert (
        load_teacher(bert.model, tokenizer=bert.tokenizer, device=torch.device("cpu"), pooling="cls").pooling == "cls"
    )
    assert check_device("device", "cpu") == torch.device("cpu")
    for dtype in (None, "auto", "float16", "torch.bfloat16", torch.float32, {"text_config": "float16"}):
        check_dtype("dtype", dtype)
    assert bert.encode(texts, normalize_embeddings=np.True_, show_progress_bar=False).shape == (60, 16)


def test_vectors_that_are_not_finite_get_no_scores(bert, texts):
    vectors = bert.encode(texts[:4], convert_to_numpy=True)
    vectors[1, 1] = math.nan
    for call in (
        lambda: evaluate_similarity(vectors, vectors, [1, 2, 3, 4]),
        lambda: evaluate_retrieval(vectors, vectors, [[0], [1], [2], [3]]),
        lambda: evaluate_classification(vectors, [0, 1, 0, 1], vectors, [0, 1, 0, 1]),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call()


def spoil(teacher, word):
    """Make the teacher's vectors of one word NaN."""
    with torch.no_grad():
        teacher.model.embeddings.word_embeddings.weight[teacher.tokenizer.convert_tokens_to_ids(word)] = math.nan


def arguments(tmp_path, **settings):
    return SKDTrainingArguments(
        str(tmp_path / "run"), **{"save_strategy": "no", "report_to": "none", "disable_tqdm": True, **settings}
    )


def test_vectors_of_the_teacher_while_labels_are_made(bert, senses, texts):
    spoil(bert, "w0")
    first = next(number for number, text in enumerate(texts) if "w0" in text.split())
    with pytest.raises(ValueError, match=f"NaN or infinite vectors for text {first}:"):
        encode_senses(bert, senses, texts, batch_size=1)


@pytest.mark.parametrize("objective", ["sense+mse", "mse", "sentence"])
def test_vectors_of_the_teacher_while_training(bert, senses, texts, tmp_path, objective):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    args = arguments(tmp_path, objective=objective, per_device_train_batch_size=4, max_steps=9)
    trainer = SKDTrainer(student, args, bert, ["w5 w6 w7"] * 40 + ["w0"] * 8)
    spoil(bert, "w0")
    with pytest.raises(ValueError, match="step [1-9]: the teacher yields NaN or infinite vectors"):
        trainer.train()


@pytest.mark.parametrize("num_hidden_layers", [1, 0])
def test_a_student_that_explodes(bert, senses, texts, tmp_path, num_hidden_layers):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=num_hidden_layers)
    args = arguments(
        tmp_path, learning_rate=1e30, table_learning_rate=1e30, warmup_steps=0, max_steps=9, max_grad_norm=0
    )
    with pytest.raises(ValueError, match=r"step \d: .*lower learning rate"):
        SKDTrainer(student, args, bert, texts).train()


def test_soft_labels_that_are_not_finite(bert, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    encoded = encode_senses(bert, senses, texts, top_k=2)
    columns = encoded.to_dict()
    columns["probabilities"][3][2] = math.nan
    spoilt = Dataset.from_dict(columns, features=encoded.features, info=encoded.info)
    args = arguments(tmp_path, objective="sense", label_top_k=2)
    assert SKDTrainer(student, args, train_dataset=encoded)
    with pytest.raises(ValueError, match="probabilities that are negative or not finite"):
        SKDTrainer(student, args, train_dataset=spoilt)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_student_about_to_be_saved(bert, senses, tmp_path, bad):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    student.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(student.parameters())[1, 2] = bad
    with pytest.raises(ValueError, match="is NaN or infinite, so the model is not saved"):
        student.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    senses.offsets[5] = 1000
    with pytest.raises(ValueError, match="offsets do not rise"):
        senses.save_pretrained(tmp_path)
