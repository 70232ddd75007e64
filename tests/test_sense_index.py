"""The sense index, against late interaction on the replaced vectors."""

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pymilvus
import pytest
import torch
from datasets import Dataset
from launching import launch, needs_fork
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sensedict_hf import SenseCollection, SenseIndex, SKDStudentModel, build_sense_dictionary
from sensedict_hf.cli import main
from sensedict_hf.retrieval import encoding, source, token_vectors
from sensedict_hf.retrieval.document_rows import DocumentRows, best_documents, rows_dtype
from sensedict_hf.retrieval.encoding import encode_documents, encode_queries
from sensedict_hf.retrieval.inverted_lists import InvertedLists
from sensedict_hf.retrieval.searching import Searcher, by_row
from sensedict_hf.retrieval.sparse import sparse_queries
from sensedict_hf.retrieval.token_vectors import TokenEncoder

QUERIES = ["w20 w25 w3", "w27", "w1 w2 w26 w24"]


def no_space(*_):
    raise OSError("no space")


def late_interaction(model, senses, documents, queries):
    """The scores by definition, with one vector a token: `[queries, documents]`."""
    encoder = TokenEncoder(model, senses)
    replaced = []
    for tokens, vectors in encode_queries(encoder, documents):
        output = senses(tokens[None], vectors[None], assignment="hard")
        replaced.append(F.normalize(output.hidden_states[0].float(), dim=-1))
    scores = [
        [float((F.normalize(vectors, dim=-1) @ document.T).amax(1).sum()) for document in replaced]
        for _, vectors in encode_queries(encoder, queries)
    ]
    return np.array(scores)


def test_scores_are_those_of_late_interaction(bert, senses, index, texts):
    expected = late_interaction(bert, senses, texts, QUERIES)
    ids, scores = index.search(QUERIES, top_k=len(texts))
    assert scores.dtype == np.float32 and index.num_own_rows == 0
    for best, found, reference in zip(ids, scores, expected):
        assert sorted(best) == list(range(len(texts)))
        np.testing.assert_allclose(found, reference[best], atol=1e-5)
        assert (np.diff(found) <= 0).all()


def test_special_tokens_are_left_out(bert, senses):
    encoder = TokenEncoder(bert, senses)
    tokens, vectors = next(encode_queries(encoder, ["w5 w6"]))
    assert tokens.tolist() == bert.tokenizer("w5 w6", add_special_tokens=False)["input_ids"]
    full = bert.last_hidden_state(torch.tensor([bert.tokenizer("w5 w6")["input_ids"]]))[0, 1:-1]
    torch.testing.assert_close(vectors, full)


def test_one_query_and_ties(bert, senses):
    index = SenseIndex.build(bert, senses, ["w1 w2", "w25", "w1 w2", "w25", "w25"], ids=["e", "d", "c", "b", "a"])
    ids, scores = index.search("w25", top_k=3)
    assert ids == ["d", "b", "a"] and scores.shape == (3,) and scores[0] == scores[2]
    assert index.search(["w25"], top_k=2)[0] == [["d", "b"]]
    assert index.search("w25", top_k=50)[1].shape == (5,)
    assert index.search([])[1].shape == (0, 5)


def test_tokens_without_senses_get_rows(bert, texts):
    few = build_sense_dictionary(bert, ["w1 w2 w3"] * 4, budget=5)
    index = SenseIndex.build(bert, few, texts)
    assert index.num_own_rows == 25 and index.num_rows == few.config.num_senses + 25
    before = index.search(QUERIES, top_k=60)
    match = index.explain("w27", index.search("w27", top_k=1)[0][0])[0]
    assert match.document_token == "w27" and match.sense_id == -1 and match.cosine > 0.5
    # Rows that are there do not change when documents are added.
    index.add(["w27 w27 w26"])
    index.remove([60])
    for one, other in zip(index.search(QUERIES, top_k=60)[1], before[1]):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_long_documents_are_cut_into_windows(bert, senses):
    words = [f"w{number % 28}" for number in range(150)]
    encoder = TokenEncoder(bert, senses)
    (row,) = encoder.tokenize([" ".join(words)])
    assert sum(len(batch.token_ids) for batch in encoder.batches([row])) == 150  # every token once
    (tokens, _), *_ = encode_queries(encoder, [" ".join(words)])
    assert sorted(tokens.tolist()) == sorted(row)
    index = SenseIndex.build(bert, senses, [" ".join(words[:140]) + " w9", "w1"])
    assert index.explain("w9", 0)[0].cosine > 0


def test_explain(index, texts):
    ids, scores = index.search(QUERIES[0], top_k=1)
    matches = index.explain(QUERIES[0], ids[0])
    assert [match.query_token for match in matches] == QUERIES[0].split()
    assert sum(match.cosine for match in matches) == pytest.approx(float(scores[0]), abs=1e-5)
    for match in matches:
        assert match.document_token in texts[ids[0]].split()
        assert 0 <= match.sense_id < len(index.senses.senses_of(match.document_token))


def test_add_and_remove(bert, senses, index, texts):
    grown = SenseIndex.build(bert, senses, texts[:20])
    grown.add(iter(texts[20:]))
    assert grown.ids == list(range(60)) and (grown.search(QUERIES)[1] == index.search(QUERIES)[1]).all()
    grown.remove(range(0, 60, 2))
    odd = SenseIndex.build(bert, senses, texts[1::2], ids=range(1, 60, 2))
    assert grown.search(QUERIES)[0] == odd.search(QUERIES)[0]
    assert grown.nbytes == odd.nbytes < index.nbytes
    with pytest.raises(ValueError, match="999"):
        grown.remove([999])
    grown.remove(list(grown.ids))
    with pytest.raises(ValueError, match="no documents"):
        grown.search("w1")


def test_a_failed_add_changes_nothing(index):
    before = index.search(QUERIES)[1]
    for documents, ids, message in [
        (["w1", ""], None, "document 1 .* no tokens"),
        (["w1", 3], None, "not a string"),
        ("w1", None, "one string"),
        (["w1", "w2"], [70, 70], "twice"),
        (["w1"], [5], "twice"),
        (["w1"], ["a"], "all strings or all integers"),
        (["w1"], [True], "bool"),
        (["w1", "w2"], [70], "1 ids for 2"),
        (["w1", "w2"], iter([70]), "fewer ids"),
        (["w1"], iter([70, 71]), "more ids"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.add(documents, ids)
        assert len(index) == len(index.ids) == 60
    assert (index.search(QUERIES)[1] == before).all()


def test_what_cannot_be_indexed_is_found_before_the_work(bert, senses, texts, monkeypatch):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0)
    monkeypatch.setattr(encoding, "CHUNK", 8)
    monkeypatch.setattr(type(bert), "hidden_states", lambda *arguments: pytest.fail("the teacher has run"))
    for documents in ([*texts, " "], Dataset.from_dict({"text": [*texts, ""]})):
        with pytest.raises(ValueError, match=f"document {len(texts)} .* has no tokens"):
            SenseIndex.build(bert, senses, documents)
    with pytest.raises(ValueError, match="the dictionary has no senses"):
        SenseIndex.build(bert, student.senses, texts)


def test_bad_queries(index):
    for arguments, message in [(("w1", 0), "top_k=0"), (("",), "no tokens"), (([3],), "not a string")]:
        with pytest.raises(ValueError, match=message):
            index.search(*arguments)
    with pytest.raises(ValueError, match="no document"):
        index.explain("w1", 60)


@pytest.mark.parametrize("kind", [int, str])
def test_saved_and_loaded(bert, senses, texts, tmp_path, kind):
    index = SenseIndex.build(bert, senses, texts, ids=[kind(number) for number in range(60)])
    index.save(tmp_path / "index")
    loaded = SenseIndex.load(tmp_path / "index", model=bert)
    assert loaded.ids == index.ids and loaded.search(QUERIES)[0] == index.search(QUERIES)[0]
    assert (loaded.search(QUERIES)[1] == index.search(QUERIES)[1]).all()
    # A changed index replaces the saved one, also while its file is mapped.
    loaded.remove(loaded.ids[:30])
    loaded.save(tmp_path / "index")
    assert len(SenseIndex.load(tmp_path / "index", model=bert)) == 30 == len(loaded)
    assert len(list((tmp_path / "index").glob("documents-*"))) == 1
    with pytest.raises(ValueError, match="does not know where its model"):
        SenseIndex.load(tmp_path / "index").search("w1")


def test_the_model_is_found_by_its_name(teacher_folder, senses, bert, texts, tmp_path):
    SenseIndex.build(teacher_folder, senses, texts).save(tmp_path / "index")
    loaded = SenseIndex.load(tmp_path / "index")
    assert loaded.search(QUERIES)[0] == SenseIndex.build(bert, senses, texts).search(QUERIES)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "model"),
        ("format", 2),
        ("num_documents", 59),
        ("num_documents", "60"),
        ("num_entries", 3),
        ("num_own_rows", 1),
        ("ids", "strings"),
        ("documents", "../documents.safetensors"),
        ("documents", "other.safetensors"),
        ("senses_fingerprint", "0"),
        ("unknown", 1),
    ],
)
def test_a_changed_manifest_is_refused(index, tmp_path, name, value):
    index.save(tmp_path / "index")
    path = tmp_path / "index" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match="index"):
        SenseIndex.load(tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rows", lambda rows: rows.to(torch.int32).clamp_min(60).to(rows.dtype), "rows outside the table"),
        ("offsets", lambda offsets: offsets.index_fill(0, torch.tensor([1]), 0), "documents without tokens"),
        ("rows", lambda rows: rows.to(torch.int32).roll(7).to(rows.dtype), "rows do not ascend"),
        ("own_vectors", lambda vectors: torch.full_like(vectors, float("nan")), "not finite"),
        ("own_tokens", lambda tokens: tokens + 10**6, "rows of wrong tokens"),
        ("own_tokens", lambda tokens: tokens.fill_(5), "rows of wrong tokens"),
        ("id_ends", lambda ends: ends.index_fill(0, torch.tensor([0]), 100), "broken ids"),
        ("id_bytes", lambda content: content.fill_(255), "broken ids"),
        ("id_bytes", lambda content: content.fill_(ord("a")), "one id for several documents"),
        ("probe", lambda vectors: torch.full_like(vectors, float("inf")), "not finite"),
    ],
)
def test_changed_documents_are_refused(bert, texts, tmp_path, name, change, message):
    few = build_sense_dictionary(bert, ["w1 w2 w3"] * 4, budget=5)
    SenseIndex.build(bert, few, texts, ids=[f"d{number}" for number in range(len(texts))]).save(tmp_path / "index")
    (path,) = (tmp_path / "index").glob("documents-*")
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name].clone())}, path)
    with pytest.raises(ValueError, match=message):
        SenseIndex.load(tmp_path / "index")


def test_a_first_save_that_was_interrupted_can_be_repeated(index, bert, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("sensedict_hf.retrieval.index_files.write_tensors", no_space)  # after the dictionary
        with pytest.raises(OSError, match="no space"):
            index.save(tmp_path / "index")
    (tmp_path / "index" / f"documents-{'0' * 32}.safetensors.partial").write_text("half")
    index.save(tmp_path / "index")
    assert len(SenseIndex.load(tmp_path / "index", model=bert)) == 60
    assert not list((tmp_path / "index").glob("*.partial"))


def test_vectors_that_are_not_finite_are_refused(bert, senses, texts):
    bert.model.encoder.layer[-1].output.LayerNorm.bias.data[0] = float("nan")
    encoder = TokenEncoder(bert, senses)
    with pytest.raises(ValueError, match="not finite"):
        next(encoder.batches(encoder.tokenize(texts)))


def test_folders_of_something_else(index, senses, tmp_path):
    senses.save_pretrained(tmp_path / "senses")
    with pytest.raises(ValueError, match="not empty"):
        index.save(tmp_path / "senses")
    with pytest.raises(ValueError, match="something else"):
        SenseIndex.load(tmp_path / "senses")
    with pytest.raises(ValueError, match="no finished sense index"):
        SenseIndex.load(tmp_path / "nothing")


def test_an_interrupted_save_leaves_the_old_index(index, bert, tmp_path, monkeypatch):
    index.save(tmp_path / "index")
    index.add(["w1"])
    monkeypatch.setattr("sensedict_hf.retrieval.index_files.write_tensors", no_space)
    with pytest.raises(OSError, match="no space"):
        index.save(tmp_path / "index")
    assert len(SenseIndex.load(tmp_path / "index", model=bert)) == 60


@pytest.mark.parametrize("layers", [0, 2])
def test_students_encode_documents_and_queries(bert, senses, texts, layers):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=layers)
    index = SenseIndex.build(student, senses, texts)
    expected = late_interaction(student, senses, texts, QUERIES)
    np.testing.assert_allclose(index.search(QUERIES)[1][:, 0], expected.max(axis=1), atol=1e-5)
    by_teacher = index.search(QUERIES, model=bert)[1]
    assert by_teacher.shape == (3, 10) and not np.allclose(by_teacher, index.search(QUERIES)[1])


def test_a_dictionary_of_another_model_is_refused(bert, senses, texts):
    other = build_sense_dictionary(bert, texts, budget=60, layer=1)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    with pytest.raises(ValueError, match="layer differs"):
        SenseIndex.build(student, other, texts)
    senses.config.tokenizer_fingerprint = "0"
    with pytest.raises(ValueError, match="tokenizer"):
        SenseIndex.build(bert, senses, texts)


def test_blocks_and_wide_rows(monkeypatch):
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 40)
    documents, rows = np.repeat(np.arange(40), sizes), generator.integers(0, 70_000, sizes.sum())
    lists = DocumentRows.join([DocumentRows.of(documents, rows, 40)], 70_000)
    assert lists.rows.dtype == rows_dtype(70_000) == np.int32 and rows_dtype(65_536) == np.uint16
    cosines = generator.normal(size=(70_000, 3)).astype(np.float32)
    expected = [cosines[rows[documents == number]].max(axis=0).sum() for number in range(40)]
    for elements in (1, 30, 1 << 20):
        monkeypatch.setattr("sensedict_hf.retrieval.document_rows.BLOCK_ELEMENTS", elements)
        np.testing.assert_allclose(lists.scores(cosines), expected, rtol=1e-6)


def test_best_documents():
    scores = np.array([1, 3, 2, 3, 0, 3], dtype=np.float32)
    assert best_documents(scores, 2).tolist() == [1, 3]
    assert best_documents(scores, 6).tolist() == [1, 3, 5, 2, 0, 4]


def test_the_command(capsys, senses, teacher_folder, texts, tmp_path):
    senses.save_pretrained(tmp_path / "senses")
    rows = [json.dumps({"name": f"d{number}", "text": text}) for number, text in enumerate(texts)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))

    def run(*arguments):
        status = main(["index", *map(str, arguments)])
        return status, *capsys.readouterr()

    build = ["build", "--model", teacher_folder, "--senses", tmp_path / "senses", "--texts", tmp_path / "texts.jsonl"]
    build += ["--output", tmp_path / "index", "--device", "cpu"]
    status, _, err = run(*build, "--id-column", "number")
    assert status == 2 and "no column 'number'" in err
    status, out, _ = run(*build, "--id-column", "name")
    assert status == 0 and "60 texts" in out
    status, _, err = run(*build)
    assert status == 2 and "holds an index already" in err

    expected, scores = SenseIndex.load(tmp_path / "index").search(QUERIES, top_k=3)
    search = ["search", tmp_path / "index"]
    status, out, _ = run(*search, "--queries", tmp_path / "queries.txt", "--json", "--top-k", 3)
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["ids"] for row in found] == expected and [row["query"] for row in found] == QUERIES
    np.testing.assert_allclose([row["scores"] for row in found], scores, atol=1e-4)
    status, out, _ = run(*search, QUERIES[0], "--explain")
    assert status == 0 and out.splitlines()[0] == f"{scores[0, 0]:.4f}\t{expected[0][0]}" and "w20 -> w" in out
    # Options may stand before the question.
    status, out, _ = run(*search, "--top-k", 2, QUERIES[1], "--device", "cpu")
    assert status == 0 and [line.split("\t")[1] for line in out.splitlines()] == expected[1][:2]
    assert run("search", "--top-k", 2, tmp_path / "index", QUERIES[1])[1] == out

    status, _, err = run(*search, QUERIES[0], "--engine", "embedded")
    assert status == 2 and "has 0 of 60 documents: call fill()" in err
    status, out, _ = run("fill", tmp_path / "index")
    assert status == 0 and out == "60 texts in the collection 'senses'\n"
    status, out, _ = run(*search, QUERIES[0], "--top-k", 3, "--engine", "embedded")
    assert status == 0 and [line.split("\t")[1] for line in out.splitlines()] == expected[0]
    status, _, err = run("fill", tmp_path / "index", "--engine", "http://localhost:1")
    assert status == 2 and "http://localhost:1" in err

    for part in (texts[:20], texts[20:]):
        (tmp_path / "part.jsonl").write_text("\n".join(json.dumps({"name": text, "text": text}) for text in part))
        output = tmp_path / f"part-{len(part)}"
        assert run(*build, "--texts", tmp_path / "part.jsonl", "--id-column", "name", "--output", output)[0] == 0
    folders = [tmp_path / "part-20", tmp_path / "part-40"]
    status, out, _ = run("merge", *folders, "--output", tmp_path / "merged")
    assert status == 0 and "60 texts" in out
    assert SenseIndex.load(tmp_path / "merged").ids == texts
    status, _, err = run("merge", *folders, "--output", tmp_path / "merged")
    assert status == 2 and "holds an index already" in err
    for wrong in [[], ["w1", "--queries", tmp_path / "queries.txt"], ["w1", "--json", "--explain"]]:
        assert run(*search, *wrong)[0] == 2


def made_up(sizes, num_rows, generator):
    """Documents whose rows are as uneven as words: some are in half of the documents, most in a few."""
    weights = 1 / np.arange(1, num_rows + 1)
    rows = generator.choice(num_rows, sizes.sum(), p=weights / weights.sum())
    return DocumentRows.of(np.repeat(np.arange(len(sizes)), sizes), rows, len(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 10, 600])
def test_rough_scores_and_lists_find_what_exact_scores_find(monkeypatch, top_k, dtype):
    generator = np.random.default_rng(0)
    documents = made_up(generator.integers(1, 7, 70_000), 300, generator)  # more than a block, and many ties
    table = torch.from_numpy(generator.normal(size=(300, 8)).astype(np.float32))
    queries = [torch.from_numpy(generator.normal(size=(size, 8)).astype(np.float32)) for size in (1, 2, 5, 40)]
    exact = [documents.scores(by_row(Searcher(table, documents).cosines(vectors))) for vectors in queries]
    for scanned in (0, 100_000):
        monkeypatch.setattr("sensedict_hf.retrieval.searching.SCANNED", scanned)
        searcher = Searcher(table, documents, dtype)
        for (numbers, scores), expected in zip(searcher.search(queries, top_k), exact):
            assert numbers.tolist() == best_documents(expected, top_k).tolist()
            np.testing.assert_allclose(scores, expected[numbers], atol=1e-5)
        assert (searcher.lists_nbytes > 2 * len(documents.rows)) == (scanned == 0)


def test_the_error_of_rough_scores_has_the_bound():
    generator = torch.Generator().manual_seed(0)
    table, documents = torch.randn(2000, 16, generator=generator), DocumentRows(np.arange(2000), np.arange(2001))
    searcher, query = Searcher(table, documents, torch.bfloat16), torch.randn(30, 16, generator=generator)
    error = (searcher.rough_cosines(query).double() - searcher.cosines(query).double()).abs().max().item()
    assert 0.001 < error < searcher._error(1)


def test_bounds_are_not_below_the_scores():
    generator = np.random.default_rng(1)
    documents = made_up(generator.integers(1, 9, 3000), 500, generator)
    cosines = torch.from_numpy(generator.uniform(-1, 1, (6, 500)).astype(np.float32))
    bounds, common = InvertedLists(documents, 500).bounds(cosines)
    scores = documents.scores(by_row(cosines))
    assert (bounds + common >= scores - 1e-5).all()
    # They tell documents apart: most cannot be the best.
    assert (bounds + common < scores.max()).mean() > 0.7


def test_a_large_index_is_searched_by_its_lists(index, monkeypatch):
    expected = index.search(QUERIES, top_k=3)
    for name, value in [("SCANNED", 0), ("CANDIDATES", 5)]:
        monkeypatch.setattr(f"sensedict_hf.retrieval.searching.{name}", value)
    found = index.search(QUERIES, top_k=3)
    assert found[0] == expected[0] and index._searcher.lists_nbytes
    # The lists follow the documents.
    index.remove([found[0][0][0]])
    assert index.search(QUERIES[0], top_k=2)[0] == expected[0][0][1:]


def test_merged_indexes(bert, texts, tmp_path):
    few = build_sense_dictionary(bert, ["w1 w2 w3"] * 4, budget=5)
    parts = [SenseIndex.build(bert, few, texts[a:b], ids=range(a, b)) for a, b in ((0, 20), (20, 30), (30, 60))]
    merged = SenseIndex.merge(parts)
    assert merged.ids == list(range(60)) and merged.num_own_rows == 25
    # The rows of the first index stay, so its documents keep their scores.
    for query in QUERIES:
        scores = dict(zip(*merged.search(query, top_k=60)))
        for name, score in zip(*parts[0].search(query, top_k=20)):
            assert scores[name] == pytest.approx(float(score), abs=1e-5)
    assert {match.document_token for match in merged.explain("w27", 45)} <= set(texts[45].split())
    # It makes no difference whether the indexes come from files.
    for number, part in enumerate(parts):
        part.save(tmp_path / str(number))
    again = SenseIndex.merge([SenseIndex.load(tmp_path / str(number), bert) for number in range(3)])
    for query in QUERIES:
        for found, expected in zip(again.search(query, top_k=60), merged.search(query, top_k=60)):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="id 0 is given twice"):
        SenseIndex.merge([parts[0], parts[0]])
    with pytest.raises(ValueError, match="no indexes"):
        SenseIndex.merge([])
    with pytest.raises(ValueError, match="different dictionaries"):
        other = build_sense_dictionary(bert, texts, budget=50)
        SenseIndex.merge([parts[0], SenseIndex.build(bert, other, texts[20:], ids=range(20, 60))])


def test_rounding_to_bfloat16_hides_no_document():
    """Numbers just above and below the middle of two that bfloat16 has: all are rounded in the worst way."""
    above, below = (1 + 2**-8 + 2e-5) / 16, (1 + 2**-8 - 2e-5) / 16
    query = torch.tensor([above] * 127 + [below] * 127)
    rest = (1 - query.double().square().sum()).sqrt().float()[None]
    document = torch.cat([torch.tensor([above] * 127 + [-below] * 127), -rest])
    documents = DocumentRows(np.array([0, 1], dtype=np.int32), np.array([0, 1, 2]))
    for dtype in (torch.float32, torch.bfloat16):
        searcher = Searcher(torch.stack([document, -document]), documents, dtype)
        ((best, _),) = searcher.search([torch.cat([query, rest])[None]], 1)
        assert best.tolist() == [1]


@pytest.mark.parametrize("dictionary", ["few", "all"])
def test_an_interrupted_build_continues_with_the_same_bytes(bert, senses, texts, tmp_path, monkeypatch, dictionary):
    if dictionary == "few":
        senses = build_sense_dictionary(bert, ["w1 w2 w3"] * 4, budget=5)
    monkeypatch.setattr("sensedict_hf.retrieval.encoding.CHUNK", 16)
    folder, calls = tmp_path / "index", []
    SenseIndex.build(bert, senses, texts, output_dir=tmp_path / "whole")
    assert not (tmp_path / "whole" / "parts").exists()

    def fails_in_the_third(*arguments):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_documents(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("sensedict_hf.retrieval.encoding.encode_documents", fails_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            SenseIndex.build(bert, senses, texts, output_dir=folder)
        assert len(list((folder / "parts").iterdir())) == 2
        for changed, settings in [(texts[1:], {}), (texts, {"batch_size": 7}), (texts, {"ids": range(1, 61)})]:
            with pytest.raises(ValueError, match="unfinished build of other texts"):
                SenseIndex.build(bert, senses, changed, output_dir=folder, **settings)
        other = copy.deepcopy(bert)
        other.model.config.hidden_act = "relu"
        with pytest.raises(ValueError, match="or with another model"):
            SenseIndex.build(other, senses, texts, output_dir=folder)
        index = SenseIndex.build(bert, senses, texts, output_dir=folder)
        assert len(calls) == 5  # two parts were there, and the third was begun twice
    for path in sorted((tmp_path / "whole").glob("*.*")):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert not (folder / "parts").exists() and index.ids == list(range(60))
    with pytest.raises(ValueError, match="holds an index already"):
        SenseIndex.build(bert, senses, texts, output_dir=folder)
    # A build that is stopped when its index is saved ends with the same call.
    with monkeypatch.context() as patched:
        patched.setattr("sensedict_hf.retrieval.index.remove_parts", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            SenseIndex.build(bert, senses, texts, output_dir=tmp_path / "late")
    with pytest.raises(ValueError, match="unfinished build of other texts"):
        SenseIndex.build(bert, senses, texts[1:], output_dir=tmp_path / "late")
    (tmp_path / "late" / "parts" / "000000000.safetensors").unlink()  # a removal that was stopped
    with pytest.raises(ValueError, match="unfinished build of other texts"):
        SenseIndex.build(bert, senses, texts[1:3], output_dir=tmp_path / "late")
    assert len(SenseIndex.load(tmp_path / "late")) == 60
    (tmp_path / "late" / "parts" / "000000000.safetensors").unlink()
    SenseIndex.build(bert, senses, texts, output_dir=tmp_path / "late")
    assert not (tmp_path / "late" / "parts").exists()
    # In memory, the result is the same.
    assert (SenseIndex.build(bert, senses, texts).search(QUERIES)[1] == index.search(QUERIES)[1]).all()


def test_a_model_is_compared_with_the_dictionary_once(index, senses, bert, monkeypatch):
    checked, check_model = [], token_vectors.check_model
    monkeypatch.setattr(token_vectors, "check_model", lambda *given: checked.append(given) or check_model(*given))
    for _ in range(3):
        index.search("w1 w2")
        index.explain("w1", 3)
    assert not checked  # the index was built with this model
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    for _ in range(3):
        index.search("w1 w2", model=student)
    assert len(checked) == 1
    copied = pickle.loads(pickle.dumps(index))
    assert copied.search("w1 w2")[0] == index.search("w1 w2")[0]


def test_threads_load_the_model_once(teacher_folder, senses, texts, tmp_path, monkeypatch):
    SenseIndex.build(teacher_folder, senses, texts).save(tmp_path / "index")
    index, loaded, load = SenseIndex.load(tmp_path / "index"), [], source.load_encoder
    monkeypatch.setattr(
        source, "load_encoder", lambda *given, **options: loaded.append(given) or load(*given, **options)
    )
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: index.search(query)[0], ["w1 w2"] * 8))
    assert len(loaded) == 1 and all(ids == found[0] for ids in found)


def test_index_and_model_move_together(teacher_folder, senses, texts, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "before" / "model")
    SenseIndex.build(tmp_path / "before" / "model", senses, texts).save(tmp_path / "before" / "index")
    assert json.loads((tmp_path / "before" / "index" / "config.json").read_text())["model"] == "../model"
    (tmp_path / "before").rename(tmp_path / "after")
    loaded = SenseIndex.load(tmp_path / "after" / "index")
    assert len(loaded.search("w1")[0]) == 10
    loaded.save(tmp_path / "after" / "index")
    assert json.loads((tmp_path / "after" / "index" / "config.json").read_text())["model"] == "../model"
    shutil.rmtree(tmp_path / "after" / "model")
    with pytest.raises(ValueError, match="not there: pass it as model="):
        SenseIndex.load(tmp_path / "after" / "index").search("w1")


def test_an_index_is_evaluated(bert, senses, teacher_folder, texts, tmp_path, capsys):
    index = SenseIndex.build(teacher_folder, senses, texts, ids=[f"d{number}" for number in range(60)])
    index.save(tmp_path / "index")
    queries = tmp_path / "queries.jsonl"
    found = index.search(QUERIES, top_k=10)[0]
    # The best document of one query, the second of another, and one that is not found.
    relevant = [[found[0][0]], [found[1][1]], [next(name for name in index.ids if name not in found[2])]]
    rows = [{"text": text, "relevant": names} for text, names in zip(QUERIES, relevant)]
    queries.write_text("\n".join(map(json.dumps, rows)))
    command = ["evaluate", "--task", "retrieval", "--index", str(tmp_path / "index"), "--queries", str(queries)]
    command += ["--device", "cpu", "--query-model", str(teacher_folder), "--output", str(tmp_path / "scores.json")]
    assert main(command) == 0
    ndcg = (1 + 1 / np.log2(3)) / 3
    assert f"| 60 | {ndcg:.4f} | {1 / 3:.4f} | {2 / 3:.4f} |" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["ndcg_at_10"] == pytest.approx(ndcg)
    for extra in (["--model", str(teacher_folder)], ["--corpus", str(queries)], ["--task", "similarity"]):
        assert main([*command, *extra]) == 2 and "--index needs --task retrieval" in capsys.readouterr().err
    # Ids are compared as strings.
    SenseIndex.build(teacher_folder, senses, texts).save(tmp_path / "numbered")
    rows = [row | {"relevant": [name.removeprefix("d") for name in row["relevant"]]} for row in rows]
    queries.write_text("\n".join(map(json.dumps, rows)))
    numbered = [str(tmp_path / "numbered") if part == str(tmp_path / "index") else part for part in command]
    assert main(numbered) == 0 and f"| 60 | {ndcg:.4f} |" in capsys.readouterr().out
    queries.write_text(json.dumps({"text": "w1", "relevant": ["x"]}))
    assert main(command) == 2 and "no document 'x'" in capsys.readouterr().err
    assert main(["evaluate", "--test", str(queries)]) == 2 and "give --model" in capsys.readouterr().err


def test_sparse_documents_and_queries(index):
    sparse = index.to_sparse()
    assert sparse.is_sparse and sparse.shape == (60, index.num_rows) and sparse.is_coalesced()
    for number in (0, 59):
        assert sparse[number].coalesce().indices()[0].tolist() == index.documents.of_document(number).tolist()
    queries = sparse_queries(index, QUERIES, rows_per_token=5)
    assert queries.is_sparse and queries.shape == (3, index.num_rows) and (queries.to_dense() >= 0).all()
    assert (queries.to_dense() > 0).sum(1).tolist()[1] == 5  # one token
    # The best documents are among those that sparse vectors find.
    scores = queries.to_dense() @ sparse.to_dense().T
    for best, row in zip(index.search(QUERIES, top_k=1)[0], scores):
        assert row[best[0]] >= row.sort().values[-10]
    assert sparse_queries(index, []).shape == (0, index.num_rows)
    with pytest.raises(ValueError, match="rows_per_token=0"):
        sparse_queries(index, QUERIES, rows_per_token=0)


def test_a_collection_of_milvus(bert, senses, texts, tmp_path, monkeypatch):
    client = pymilvus.MilvusClient(str(tmp_path / "texts.db"))
    index = SenseIndex.build(bert, senses, texts, ids=[f"d{number}" for number in range(60)])
    collection = SenseCollection(index, client, "texts")
    with pytest.raises(ValueError, match=r"has 0 of 60 documents: call fill\(\)"):
        collection.search("w1")

    # An interruption while documents are sent.
    monkeypatch.setattr("sensedict_hf.retrieval.engine.BATCH", 25)
    sent = []
    upsert = client.upsert
    monkeypatch.setattr(client, "upsert", lambda *args: sent.append(1) or (upsert(*args) if len(sent) < 2 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        collection.fill()
    assert len(collection) == 25
    monkeypatch.setattr(client, "upsert", upsert)
    collection.fill()
    assert len(collection) == 60

    for query in QUERIES:
        # With all documents as candidates the result is that of the index.
        ids, scores = collection.search(query, top_k=5, candidates=60, rows_per_token=60)
        expected = index.search(query, top_k=5)
        assert ids == expected[0]
        np.testing.assert_allclose(scores, expected[1], atol=1e-6)
    together = collection.search(QUERIES, top_k=5, candidates=60, rows_per_token=60)
    for place, query in enumerate(QUERIES):
        alone = collection.search(query, top_k=5, candidates=60, rows_per_token=60)
        assert together[0][place] == alone[0]
        np.testing.assert_allclose(together[1][place], alone[1], atol=1e-6)
    assert collection.search([]) == ([], [])
    with pytest.raises(ValueError, match="candidates=0"):
        collection.search("w1", candidates=0)

    # Neither the documents nor their ids may be others.
    renamed = SenseIndex.build(bert, senses, texts, ids=[f"e{number}" for number in range(60)])
    with pytest.raises(ValueError, match="'texts' has other documents"):
        SenseCollection(renamed, client, "texts")
    index.remove(["d3"])
    for use in (collection.fill, lambda: collection.search("w1")):
        with pytest.raises(ValueError, match="the index has changed, and the collection 'texts' has its old"):
            use()
    with pytest.raises(ValueError, match="'texts' has other documents"):
        SenseCollection(index, client, "texts")
    index.remove(index.ids)
    with pytest.raises(ValueError, match="the index has no documents: add some first"):
        SenseCollection(index, client, "empty").fill()


@needs_fork
def test_two_processes_build_the_same_index(capsys, senses, teacher_folder, texts, tmp_path, monkeypatch):
    senses.save_pretrained(tmp_path / "senses")
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    build = ["index", "build", "--model", str(teacher_folder), "--senses", str(tmp_path / "senses")]
    build += ["--texts", str(tmp_path / "texts.txt"), "--output"]
    monkeypatch.setattr("sensedict_hf.retrieval.encoding.CHUNK", 8)  # texts of a part
    assert main([*build, str(tmp_path / "one")]) == 0
    ended = launch(lambda _: main([*build, str(tmp_path / "two")]), tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert capsys.readouterr().out.replace("one", "two") == "".join(process.output for process in ended)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.*")} for name in ("one", "two"))
    assert one == two and len(one) == 2
