"""Reading texts from files: the file that is named, and strings as they were written."""

import gzip
import io
import json
import logging
import os
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from sensedict_hf.data import iterate_texts, read_dataset
from sensedict_hf.evaluation.tasks import TASKS

streamed = pytest.mark.parametrize("streaming", [False, True])


def read(path: Path, content: str | bytes, streaming: bool = False) -> list[str]:
    """Write a file and return the texts that are read from it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(iterate_texts(read_dataset([str(path)], streaming=streaming)))


@streamed
@pytest.mark.parametrize(
    "text", ["NA", "null", "None", "nan", "2024-01-01", "0007", "1e5", "true", "2024-01-01T00:00:00Z"]
)
def test_a_text_stays_a_string_as_it_was_written(tmp_path, text, streaming):
    assert read(tmp_path / "a.csv", f"text,label\n{text},{text}\n", streaming) == [text]
    assert read(tmp_path / "a.jsonl", f'{{"text": "{text}", "label": "{text}"}}\n', streaming) == [text]
    assert read_dataset(str(tmp_path / "a.csv"))["label"][:] == [text]
    assert read_dataset(str(tmp_path / "a.jsonl"))["label"][:] == [text]


def test_numbers_in_json_stay_numbers_and_integers_go_with_fractions(tmp_path):
    lines = [f'{{"text": "a", "score": {score}}}' for score in [*range(1500), 0.5]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read_dataset(str(tmp_path / "a.jsonl"))["score"][-2:] == [1499.0, 0.5]


@streamed
def test_a_mark_and_line_ends_of_windows_are_no_text(tmp_path, streaming):
    mark = b"\xef\xbb\xbf"
    assert read(tmp_path / "a.txt", mark + b"one\r\n\r\n two \r\n", streaming) == ["one", " two "]
    assert read(tmp_path / "a.csv", mark + b"text\r\none\r\n", streaming) == ["one"]
    assert read(tmp_path / "a.jsonl", mark + b'{"text": "one"}\r\n', streaming) == ["one"]


@streamed
@pytest.mark.parametrize("name", ["[ab].txt", "*.txt", "?.csv", "a::b.jsonl", "{a,b}.parquet", "x#y%20.arrow"])
def test_the_file_that_is_named_is_the_file_that_is_read(tmp_path, name, streaming):
    from datasets import Dataset

    kind = Path(name).suffix
    for file, text in [(name, "right"), (f"a{kind}", "wrong")]:
        path = tmp_path / file
        if kind == ".parquet":
            Dataset.from_dict({"text": [text]}).to_parquet(str(path))
        elif kind == ".arrow":
            Dataset.from_dict({"text": [text]}).save_to_disk(str(tmp_path / text))
            next((tmp_path / text).glob("*.arrow")).replace(path)
        else:
            path.write_text({".txt": text, ".csv": f"text\n{text}\n", ".jsonl": f'{{"text": "{text}"}}'}[kind])
    assert list(iterate_texts(read_dataset(str(tmp_path / name), streaming=streaming))) == ["right"]


@streamed
def test_files_may_differ_in_the_columns_that_are_not_read(tmp_path, streaming):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": 1}\n{"text": "b", "more": [1]}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "k", "text": "c", "url": null}\n')
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert list(iterate_texts(read_dataset(files, streaming=streaming))) == ["a", "b", "c"]


@streamed
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl is empty"),
        ("a.csv", b"text\n", "a.csv is empty"),
        ("a.txt", b"\xef\xbb\xbf\r\n", "a.txt is empty"),
        ("a.txt", b"na\xefve\n", "a.txt is not UTF-8 in line 1"),
        ("a.csv", b"text\na\nna\xefve\n", "a.csv is not UTF-8 in line 3"),
        ("a.csv", b"text\na\nb,c\n", "a.csv as csv: line 3 has 2 cells"),
        ("a.csv", b"text,text\na,b\n", "a.csv as csv: two columns"),
        ("a.csv", b'text\n"a\n', "a.csv as csv: line 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "a.jsonl as json: line 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}\n', "a.jsonl as json: line 2 has a lone surrogate"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json as json: row 2 is int"),
        ("a.json", b'[{"text": "a"}, ', "a.json as json: Expecting"),
        ("a.json", b"[" * 100_000, "a.json as json"),
        ("a.parquet", b"PAR1", "a.parquet as parquet"),
        ("a.arrow", b"ARROW1", "a.arrow as arrow"),
    ],
)
def test_a_broken_file_is_refused_by_its_name(tmp_path, name, content, message, streaming):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, content, streaming)


def test_values_of_several_types_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": 1, "n": 1}\n{"text": "b", "id": "k", "n": 0.5}\n')
    assert read_dataset(str(tmp_path / "a.jsonl")).to_dict() == {"text": ["a", "b"], "n": [1.0, 0.5]}
    for name in ("b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{name}": 1}}\n')
    with pytest.raises(ValueError, match="no column in common"):
        read_dataset([str(tmp_path / "b.jsonl"), str(tmp_path / "c.jsonl"), str(tmp_path / "a.jsonl")])


@streamed
def test_a_folder_or_a_pattern_is_its_files_in_order(tmp_path, caplog, streaming):
    folder = tmp_path / "te[x]ts"
    (folder / "more").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "c.txt", "more/d.txt"):
        (folder / name).write_text(name)
    (folder / "README.md").write_text("no text")
    logging.getLogger("sensedict_hf").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "sensedict_hf"):
        assert list(iterate_texts(read_dataset(folder, streaming=streaming))) == ["a.txt", "b.txt", "c.txt"]
    assert f"{folder}: 3 files" in caplog.text
    patterns = [str(tmp_path / pattern) for pattern in ("*/[bc].txt", "**/d.*")]
    assert list(iterate_texts(read_dataset(patterns, streaming=streaming))) == ["b.txt", "c.txt", "more/d.txt"]


@pytest.mark.parametrize("name", ["gone.txt", "gone/*.txt", "a/gone/b.c/d", "empty", "a.bin"])
def test_a_name_without_files_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.bin").write_text("a")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        read_dataset(str(tmp_path / name))


def test_scores_and_ids_of_a_csv_file_are_numbers_where_they_are_needed(tmp_path):
    (tmp_path / "a.csv").write_text("sentence1,sentence2,score\na,b,10\nc,d,9\ne,f,1e1\n")
    task = TASKS["similarity"](read_dataset(str(tmp_path / "a.csv")).to_dict())
    vectors = np.eye(3)
    assert task.metric(vectors, vectors[[0, 2, 1]] + vectors)["spearman"] == pytest.approx(0.5)
    (tmp_path / "b.csv").write_text("id,text\n7,a\n8,b\n")
    TASKS["retrieval"](read_dataset(str(tmp_path / "b.csv")).to_dict(), {"text": ["a"], "relevant": [[7]]})


def test_a_file_that_has_changed_is_read_again(tmp_path):
    assert read(tmp_path / "a.txt", "one") == ["one"]
    assert read(tmp_path / "a.txt", "other") == ["other"]


def compress(content: bytes, ending: str) -> bytes:
    return gzip.compress(content) if ending == ".gz" else pa.compress(content, codec="zstd", asbytes=True)


@streamed
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_as_if_they_were_not(tmp_path, ending, streaming):
    """Also in several pieces one after the other, as `cat` and parallel programs make them."""
    contents = {
        "a.txt": ["Der Bär\r\n", "\n\u2028second\n"],
        "a.csv": ["text,label\n", '"Der Bär",1\n', '"\u2028second",2\n'],
        "a.jsonl": ['{"text": "Der Bär"}\n', '{"text": "\u2028second"}'],
        "a.json": ['[{"text": "Der Bär"},', '{"text": "\u2028second"}]'],
    }
    for name, pieces in contents.items():
        content = b"".join(compress(piece.encode(), ending) for piece in pieces)
        assert read(tmp_path / f"{name}{ending}", content, streaming) == ["Der Bär", "\u2028second"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_broken_compressed_file_is_refused_by_its_name(tmp_path, ending):
    whole = compress("".join(f"text {number}\n" for number in range(5000)).encode(), ending)
    for content in (whole[: len(whole) // 2], b"no such format", compress(b"a\n\xff\n", ending)):
        with pytest.raises(ValueError, match=rf"a\.txt\{ending}"):
            read(tmp_path / f"a.txt{ending}", content)
    with pytest.raises(ValueError, match="cannot read .*: give files ending in"):
        read(tmp_path / f"a.parquet{ending}", whole)


def test_texts_come_from_standard_input(monkeypatch):
    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    given("\ufeffDer Bär\r\n\nNA\n\u2028third".encode())
    assert read_dataset("-")["text"][:] == ["Der Bär", "NA", "\u2028third"]
    for content, message in ((b"", "is empty"), (b"\xff", "is not UTF-8")):
        given(content)
        with pytest.raises(ValueError, match=f"standard input {message}"):
            read_dataset(["-"])
    for names, streaming in ((["-", "a.txt"], False), (["-"], True)):
        with pytest.raises(ValueError, match="standard input"):
            read_dataset(names, streaming=streaming)


def test_a_name_tells_config_and_split(tmp_path, monkeypatch):
    parts = {name: Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    parts["test"].save_to_disk(tmp_path / "single")
    for name in ("saved::test", "single"):
        assert read_dataset(f"{tmp_path}/{name}")["text"][:] == ["test"]
        streamed = read_dataset(f"{tmp_path}/{name}", streaming=True)
        assert isinstance(streamed, IterableDataset) and list(streamed) == [{"text": "test"}]
    with pytest.raises(ValueError, match="saved::dev, and no dataset"):
        read_dataset(f"{tmp_path}/saved::dev")
    assert read_dataset(tmp_path / "saved", split="test")["text"][:] == ["test"]
    assert read_dataset(tmp_path / "saved")["text"][:] == ["train"]
    with pytest.raises(ValueError, match="saved, and no dataset of that name"):
        read_dataset(tmp_path / "saved", split="dev")
    asked = []
    monkeypatch.setattr("sensedict_hf.data.load_dataset", lambda *names, **more: asked.append((names, more["split"])))
    for name in ("org/v1.0", "wikitext:raw", "wikitext:raw:test", "wikitext::test"):
        read_dataset(name, split="validation")
    assert asked == [
        (("org/v1.0", None), "validation"),
        (("wikitext", "raw"), "validation"),
        (("wikitext", "raw"), "test"),
        (("wikitext", None), "test"),
    ]
    assert read(tmp_path / "a:b:c.txt", "named") == ["named"]  # a file of that name goes first


def test_the_same_name_in_another_folder_is_another_file(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
        os.utime(tmp_path / name / "a.txt", (10**9, 10**9))
        monkeypatch.chdir(tmp_path / name)
        assert read_dataset("a.txt")["text"][:] == [name]


def test_a_column_whose_type_is_not_known_is_left_out(tmp_path, caplog):
    pairs = pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"text": ["a", "b"], "pairs": pairs}), tmp_path / "a.parquet")
    assert read_dataset(str(tmp_path / "a.parquet")).column_names == ["text"]
    assert "left out pairs" in caplog.text


def test_a_value_of_another_type_is_named(tmp_path, caplog):
    rows = [{"text": None, "n": 1}, {"text": "a", "n": 2.5}, {"text": 5, "n": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_dataset(str(tmp_path / "a.jsonl")).column_names == ["n"]
    assert "left out text" in caplog.text and "a.jsonl has number 5 in row 2, after values that are str" in caplog.text


def test_a_folder_named_like_a_file_is_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "more.txt").mkdir()
    assert read_dataset(str(tmp_path)).to_list() == [{"text": "one"}]
