"""The folder of a sense index: what is kept, what is refused, and the model that is found by its name."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest
import torch
from launching import needs_fork
from tiny_models import make_model

from sensedict_hf import Prompt, SenseCollection, SenseIndex, build_sense_dictionary, load_teacher


@pytest.mark.parametrize("name", ["documents-0.jsonl", "parts/precious.txt", "parts/0.safetensors"])
def test_files_of_the_user_are_kept(bert, senses, texts, index, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for write in (lambda: SenseIndex.build(bert, senses, texts, output_dir=tmp_path), lambda: index.save(tmp_path)):
        with pytest.raises(ValueError, match="not empty and holds no sense index"):
            write()
    assert (tmp_path / name).read_text() == "mine"


def test_files_beside_an_index_are_kept(index, tmp_path):
    index.save(tmp_path)
    (tmp_path / "documents-original.jsonl").write_text("mine")
    index.add(["w1"])
    index.save(tmp_path)
    assert (tmp_path / "documents-original.jsonl").read_text() == "mine"
    assert len(list(tmp_path.glob("documents-*.safetensors"))) == 1


def test_another_dictionary_is_not_replaced(bert, texts, index, tmp_path):
    other = build_sense_dictionary(bert, texts, budget=40)
    other.save_pretrained(tmp_path / "senses")
    with pytest.raises(ValueError, match="not empty and holds no sense index"):
        index.save(tmp_path)
    index.senses.save_pretrained(tmp_path / "senses")  # as an interrupted save leaves it
    index.save(tmp_path)


def test_a_lost_dictionary_is_written_again(bert, index, tmp_path):
    index.save(tmp_path)
    (tmp_path / "senses" / "config.json").unlink()
    index.save(tmp_path)
    assert len(SenseIndex.load(tmp_path, model=bert)) == 60


@needs_fork
def test_processes_that_save_one_index_leave_it_whole(bert, index, tmp_path):
    index.save(tmp_path)
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)

    def save(number):
        own = SenseIndex.load(tmp_path, model=bert)
        for turn in range(8):
            own.remove([7 * turn + number])
            barrier.wait()
            own.save(tmp_path)
            assert len(SenseIndex.load(tmp_path, model=bert)) == 60 - turn - 1

    processes = [fork.Process(target=save, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors"} == {"config.json", "senses"}


def test_a_model_that_has_changed_is_refused(teacher_folder, senses, texts, tmp_path):
    SenseIndex.build(load_teacher(teacher_folder), senses, texts).save(tmp_path / "index")
    assert SenseIndex.load(tmp_path / "index").search(texts[5], 1)[0] == [5]
    torch.manual_seed(9)
    make_model("bert").save_pretrained(teacher_folder)
    loaded = SenseIndex.load(tmp_path / "index")
    for use in (loaded.search, loaded.add):
        with pytest.raises(ValueError, match="makes other vectors than the model that the index was built with"):
            use([texts[5]])
    loaded.save(tmp_path / "again")  # knows the model no better
    with pytest.raises(ValueError, match="makes other vectors"):
        SenseIndex.load(tmp_path / "again").search(texts[5])


def test_a_prompt_that_was_given_is_not_forgotten(teacher_folder, senses, texts, tmp_path):
    prompted = dataclasses.replace(load_teacher(teacher_folder), prompt=Prompt("w3 w4 {text} w5"))
    SenseIndex.build(prompted, senses, texts).save(tmp_path / "index")
    with pytest.raises(ValueError, match="its weights or its prompt have changed"):
        SenseIndex.load(tmp_path / "index").search(texts[5])
    assert SenseIndex.load(tmp_path / "index", model=prompted).search(texts[5], 1)[0] == [5]


def test_another_precision_is_the_same_model(teacher_folder, senses, texts, tmp_path):
    SenseIndex.build(load_teacher(teacher_folder, dtype="bfloat16"), senses, texts).save(tmp_path / "index")
    assert SenseIndex.load(tmp_path / "index").search(texts[5], 1)[0] == [5]


def test_a_path_begins_at_the_index(bert, senses, texts, tmp_path, monkeypatch):
    for folder in ("one/model", "other/model"):
        for part in (bert.model, bert.tokenizer):
            part.save_pretrained(tmp_path / folder)
    SenseIndex.build(load_teacher(tmp_path / "one" / "model"), senses, texts).save(tmp_path / "one" / "index")
    assert json.loads((tmp_path / "one" / "index" / "config.json").read_text())["model"] == "../model"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "one" / "index").rename(tmp_path / "deep" / "er" / "index")
    (tmp_path / "other" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "other" / "here")  # ../model is another model
    with pytest.raises(ValueError, match="deep/er/model"):
        SenseIndex.load(tmp_path / "deep" / "er" / "index").search(texts[5])


def test_empty_indexes_do_not_hide_the_kind_of_ids(bert, senses, texts):
    empty, numbers, names = (SenseIndex.build(bert, senses, texts[:1], ids=[id]) for id in (0, 1, "1"))
    empty.remove([0])
    for order in ([empty, names, numbers], [empty, numbers, names]):
        with pytest.raises(ValueError, match="ids are all strings or all integers"):
            SenseIndex.merge(order)


@pytest.mark.parametrize(
    ("ids", "message"),
    [(3, "ids is 3: pass a list"), ([[3]], "ids are strings or integers"), ([True, 2.0], "id True is a bool")],
)
def test_ids_to_remove_are_checked(index, ids, message):
    with pytest.raises(ValueError, match=message):
        index.remove(ids)
    assert len(index) == 60


def test_ids_are_a_list(bert, senses):
    with pytest.raises(ValueError, match="ids is one string"):
        SenseIndex.build(bert, senses, ["w1", "w2"], ids="ab")
    with pytest.raises(ValueError, match="ids is a set: pass a list, in the order of the documents"):
        SenseIndex.build(bert, senses, ["w1", "w2"], ids={"a", "b"})
    with pytest.raises(ValueError, match="texts is a set, whose order changes"):
        SenseIndex.build(bert, senses, {"w1", "w2"})
    index = SenseIndex.build(bert, senses, ["w1", "w2"], ids=np.arange(2))
    index.remove(np.arange(1))
    assert index.ids == [1]


def test_ids_are_checked_before_documents_are_encoded(bert, senses, monkeypatch):
    monkeypatch.setattr("sensedict_hf.retrieval.encoding.CHUNK", 2)
    monkeypatch.setattr("sensedict_hf.retrieval.encoding.encode_documents", None)
    with pytest.raises(ValueError, match="id 'a' is given twice"):
        SenseIndex.build(bert, senses, ["w1"] * 5, ids=["a", "b", "c", "d", "a"])


def test_a_half_filled_collection_is_not_searched(bert, index, tmp_path, monkeypatch):
    pymilvus = pytest.importorskip("pymilvus")
    client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
    monkeypatch.setattr("sensedict_hf.retrieval.engine.BATCH", 20)
    collection, upsert = SenseCollection(index, client), client.upsert
    sent = []

    def interrupt(*given):
        if sent:
            raise KeyboardInterrupt
        sent.append(upsert(*given))

    monkeypatch.setattr(client, "upsert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collection.fill()
    monkeypatch.undo()
    again = SenseCollection(index, client)
    with pytest.raises(ValueError, match="has 20 of 60 documents"):
        again.search("w20 w25")
    again.fill()
    assert again.search("w20 w25", 3)[0] == index.search("w20 w25", 3)[0]
    client.close()
