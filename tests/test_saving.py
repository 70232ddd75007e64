"""A saved model replaces another as a whole: the old one, the new one, or none that loads."""

import json
import os

import pytest
import torch
from tiny_models import WORDS, build_once, make_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

import sensedict_hf.building.workspace as workspace
import sensedict_hf.processes as processes
from sensedict_hf import (
    SenseEmbeddingModel,
    SKDStudentConfig,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    distill_student,
    load_senses,
)
from sensedict_hf.cli import main
from sensedict_hf.models import files


class Killed(BaseException):
    pass


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=90)


@pytest.fixture
def student(bert, senses):
    return SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)


def die_at(monkeypatch, number):
    """Let the process die at an operation on files, the first being 0. Nothing after it happens."""
    done = []
    dead = []

    def dying(function):
        def call(*args, **kwargs):
            if dead or len(done) == number:
                dead.append(True)
                raise Killed
            done.append(function)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "unlink"):
        monkeypatch.setattr(files.Path, name, dying(getattr(files.Path, name)))
    monkeypatch.setattr(files.os, "fsync", dying(os.fsync))
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: dead or shutil_rmtree(path, ignore_errors=True))
    return dead


shutil_rmtree = files.shutil.rmtree


def test_a_save_that_dies_leaves_the_old_or_the_new_model_or_none(senses, tmp_path, monkeypatch):
    new = senses.to_dtype("int8")
    senses.save_pretrained(tmp_path)
    found = set()
    for number in range(100):
        senses.save_pretrained(tmp_path)
        with monkeypatch.context() as patch:
            died = die_at(patch, number)
            try:
                new.save_pretrained(tmp_path)
            except Killed:
                pass
        try:
            loaded = load_senses(tmp_path)
            expected = senses if loaded.config.senses_dtype == "float16" else new
            assert loaded.fingerprint() == expected.fingerprint()
            found.add(loaded.config.senses_dtype)
        except ValueError as error:
            assert "no finished model" in str(error)  # noqa: PT017
            assert files.is_unfinished(tmp_path)
        if not died:
            break
    assert number > 5 and found == {"float16", "int8"}


def test_saving_into_the_folder_that_is_mapped(senses, student, tmp_path):
    for model in (senses, student):
        model.save_pretrained(tmp_path / "saved")
        loaded = AutoModel.from_pretrained(tmp_path / "saved")
        loaded.save_pretrained(tmp_path / "saved")
        again = AutoModel.from_pretrained(tmp_path / "saved").state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
        assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.state_dict().items())
        assert not (tmp_path / "saved" / files.SAVING).exists()


def test_a_save_removes_the_files_that_it_replaces(student, tmp_path):
    student.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with torch.no_grad():
        next(student.parameters()).add_(1)
    for size in ("4KB", "1GB"):  # shards over a whole file, a whole file over shards
        student.save_pretrained(tmp_path, max_shard_size=size)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(next(loaded.parameters()), next(student.parameters()))
    assert sorted(path.name for path in tmp_path.glob("*model*.*") if path.suffix != ".py") == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        student.save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SKDStudentModel)  # nothing was touched


def test_a_save_keeps_what_lies_beside_a_model(student, tmp_path):
    for name in ("manifest.json", "vocab.tsv", "model_epoch3.safetensors"):
        (tmp_path / name).write_text("{}")
    student.save_pretrained(tmp_path)
    for size in ("4KB", "1GB"):  # of a variant too, the new weights replace the old ones
        with torch.no_grad():
            next(student.parameters()).add_(1)
        student.save_pretrained(tmp_path, variant="other", max_shard_size=size)
        loaded = AutoModel.from_pretrained(tmp_path, variant="other")
        assert torch.equal(next(loaded.parameters()), next(student.parameters()))
    plain = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(next(plain.parameters()) + 2, next(student.parameters()))
    for name in ("manifest.json", "vocab.tsv", "model_epoch3.safetensors"):
        assert (tmp_path / name).read_text() == "{}"


def test_adapters_are_saved_beside_their_model(student, texts, tmp_path):
    peft = pytest.importorskip("peft")
    student.save_pretrained(tmp_path)
    adapted = AutoModel.from_pretrained(tmp_path)
    adapted.add_adapter(peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    loaded = AutoModel.from_pretrained(tmp_path)  # with its adapters
    expected = {
        name: model.encode(texts[:2], assignment="none") for name, model in (("old", student), ("new", adapted))
    }
    assert torch.equal(loaded.encode(texts[:2], assignment="none"), expected["new"])
    assert not torch.equal(expected["old"], expected["new"])


def test_what_was_exported_goes_with_the_weights_that_it_was_made_of(student, tmp_path):
    (tmp_path / "onnx").mkdir()
    for name in ("model.onnx", "model_quantized.onnx", "notes.txt"):
        (tmp_path / "onnx" / name).write_text("old")
    student.save_pretrained(tmp_path, variant="other")
    assert len(list((tmp_path / "onnx").iterdir())) == 3
    student.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("command", [["convert", "--dtype", "int8"], ["merge", "--budget", "50"]])
def test_a_command_that_was_stopped_can_be_repeated(senses, tmp_path, monkeypatch, command):
    senses.save_pretrained(tmp_path / "senses")
    command = [command[0], str(tmp_path / "senses"), *command[1:], "--output", str(tmp_path / "out")]
    for number in (0, 3, 20):
        with monkeypatch.context() as patch:
            die_at(patch, number)
            with pytest.raises(Killed):
                main(command)
    assert main(command) == 0
    assert load_senses(tmp_path / "out").config.num_senses == (90 if command[0] == "convert" else 50)
    assert main(command) == 2  # it is finished


def test_another_tokenizer_is_refused_where_it_is_set(bert, senses, student, texts, tmp_path):
    other = make_tokenizer(words=list(reversed(WORDS)))
    for model in (senses, student):
        with pytest.raises(ValueError, match="is not the dictionary's"):
            model.tokenizer = other
    args = SKDTrainingArguments(str(tmp_path), report_to="none", max_steps=1)
    with pytest.raises(ValueError, match="is not the dictionary's"):
        SKDTrainer(student, args, teacher=bert, train_dataset=texts, processing_class=other)


def test_the_number_of_tokens_stays(student, senses, bert, tmp_path):
    student.save_pretrained(tmp_path)
    free = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0, text_hidden_size=4, context_size=0)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for model in (student, classifier, free, free.backbone):
        size = model.get_input_embeddings().weight.shape
        with pytest.raises(ValueError, match="cannot be replaced"):
            model.resize_token_embeddings(40)
        assert model.get_input_embeddings().weight.shape == size
        assert model.resize_token_embeddings(len(student.tokenizer)) is model.get_input_embeddings()
        assert model.resize_token_embeddings() is model.get_input_embeddings()


def test_a_config_that_is_given_stays_as_it_is(bert):
    bert.model.config.use_cache, bert.model.config.name_or_path = True, "me/bert"
    SKDStudentConfig(text_config=bert.model.config)
    assert bert.model.config.use_cache and bert.model.config.name_or_path == "me/bert"


def test_another_tokenizer_in_the_folder(senses, student, tmp_path):
    for model in (senses, student):
        model.save_pretrained(tmp_path)
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["w3"], vocabulary["w4"] = vocabulary["w4"], vocabulary["w3"]
        path.write_text(json.dumps(content))
        loaded = AutoModel.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is not the dictionary's"):
            loaded.tokenizer  # noqa: B018


def test_a_finished_dictionary_on_a_read_only_disk(bert, texts, tmp_path, monkeypatch):
    expected = build_sense_dictionary(bert, texts, budget=90, output_dir=tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    for module, name in ((processes, "FileLock"), (workspace, "write_object")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it writes"))
    found = build_sense_dictionary(bert, texts, budget=90, output_dir=tmp_path)
    assert torch.equal(found.table, expected.table)


def test_training_does_not_go_on_without_its_optimizer(bert, senses, student, texts, tmp_path):
    settings = {"report_to": "none", "disable_tqdm": True, "save_steps": 2, "save_only_model": True, "max_steps": 4}
    args = SKDTrainingArguments(str(tmp_path / "run"), save_strategy="steps", **settings)
    SKDTrainer(student, args, bert, texts).train()
    for resumed in (True, str(tmp_path / "run" / "checkpoint-2")):
        with pytest.raises(ValueError, match=r"checkpoint-\d holds no optimizer"):
            SKDTrainer(student, args, bert, texts).train(resume_from_checkpoint=resumed)
    with pytest.raises(ValueError, match="save_only_model=True: an interrupted run could not go on"):
        distill_student(bert, senses, texts, args=args)


def test_files_of_a_plan_are_allocated(bert, texts, tmp_path, monkeypatch):
    """A write to a map of a file with holes would end the process on a full disk."""
    sizes = []
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda file, begin, size: sizes.append(size) or real(file, begin, size))
    senses = build_sense_dictionary(bert, texts, budget=90)
    assert 8 * len(texts) in sizes  # keys.bin
    assert isinstance(senses, SenseEmbeddingModel)
