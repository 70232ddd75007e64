"""Dictionaries for another tokenizer than the teacher's."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from launching import launch, needs_fork
from test_resuming import build, contents
from tiny_models import WORDS, make_tokenizer
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, BertModel, ByT5Tokenizer, PreTrainedTokenizerFast

from sensedict_hf import SKDStudentModel, Teacher, attach_senses, build_sense_dictionary
from sensedict_hf.building.alignment import align_spans, align_texts
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.gathering import teacher_vectors
from sensedict_hf.building.inspection import find_occurrences
from sensedict_hf.cli import main
from sensedict_hf.models.fingerprints import tokenizer_fingerprint
from sensedict_hf.models.matching import check_teacher

TEMPLATES = {"both": "[CLS] $A [SEP]", "after": "$A [SEP]", "none": "$A", "two": "[CLS] [CLS] $A [SEP]"}


def make_other(pattern, texts, template="both"):
    """A tokenizer whose tokens are the matches of a regular expression, or single bytes.

    `template` says which special tokens it adds, a key of `TEMPLATES`.
    """
    splitter = ByteLevel(add_prefix_space=False) if pattern == "bytes" else Split(Regex(pattern), "isolated")
    pieces = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    pieces = sorted(set("".join(pieces)) if pattern == "bytes" else pieces)
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces])}
    model = BPE(vocabulary, [], unk_token="[UNK]") if pattern == "bytes" else WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(
        single=TEMPLATES[template], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


@pytest.fixture
def characters(texts):
    return make_other(".", texts)


def naive_vectors(teacher, tokenizer, text, max_length):
    """The token ids of a text and their vectors (None where there is none), by loops over characters and windows."""
    theirs, ours = (each(text, return_offsets_mapping=True) for each in (teacher.tokenizer, tokenizer))
    ids, spans = theirs["input_ids"], theirs["offset_mapping"]
    width, overlap = max_length - 2, (max_length - 2) // 4
    last = max(len(ids) - 2 - width, 0)
    starts = [*range(0, last, width - overlap), last]
    shown, owner = [], {}
    for number, start in enumerate(starts):
        content = ids[1:-1][start : start + width]
        hidden = teacher.hidden_states(torch.tensor([[ids[0], *content, ids[-1]]]))[0]
        places = [*range(1 + start, 1 + start + len(content))]
        places = [0] * (number == 0) + places + [len(ids) - 1] * (start == last)
        shown.append({place: hidden[place - start] for place in places})
        first_owned = 0 if number == 0 else (start + starts[number - 1] + width + 1) // 2 + 1
        owner |= {place: number for place in range(first_owned, len(ids))}
    vectors = []
    for number, (begin, end) in enumerate(ours["offset_mapping"]):
        covered = {place for place in range(begin, end) if not text[place].isspace()}
        aligned = [place for place, span in enumerate(spans) if covered & set(range(*span))]
        if number == 0 and ours["input_ids"][0] == 2:
            aligned = [0]
        elif number == len(ours["input_ids"]) - 1 and ours["input_ids"][-1] == 3:
            aligned = [len(ids) - 1]
        seen = [shown[owner[aligned[0]]].get(place) for place in aligned]
        seen = [vector for vector in seen if vector is not None]
        vectors.append(torch.stack(seen).mean(0) if seen else None)
    return ours["input_ids"], vectors


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("pattern", [".", ".{1,3}", ".{1,11}", r"\s*\S+", "bytes"])
def test_vectors_are_the_means_of_what_a_naive_loop_finds(bert, texts, tmp_path, monkeypatch, pattern, template):
    """Tokens smaller than words, across words, and of several words; texts longer than a window; several chunks."""
    texts = [
        *texts[:8],
        " ".join(texts[:5]),
        "",
        "  ",
        " w1  \tw2 naïve 😀\u00a0w3 ",
        "ẅ" * 3 + " w1",
        " ".join(texts[5:20]),
        "w1",
    ]
    tokenizer = make_other(pattern, texts, template)
    monkeypatch.setattr("sensedict_hf.building.gathering.CHUNK", 50)
    monkeypatch.setattr("sensedict_hf.building.corpus.BATCH_TEXTS", 3)
    corpus = tokenize_corpus(texts, tokenizer, tmp_path, teacher_tokenizer=bert.tokenizer)
    found = {}
    known = np.flatnonzero(corpus.has_vectors(0, len(corpus.input_ids)))
    settings = dict(layer=-1, max_length=10, batch_size=4)
    for positions, vectors in teacher_vectors(bert, corpus, known, 0, len(texts), **settings):
        assert not found.keys() & set(positions.tolist())
        found |= dict(zip(positions.tolist(), vectors))
    unaligned = 0
    for number, text in enumerate(texts):
        ids, expected = naive_vectors(bert, tokenizer, text, max_length=10)
        begin, end = corpus.offsets[number : number + 2]
        assert corpus.input_ids[begin:end].tolist() == ids
        if template == "two":  # the teacher has no second [CLS]
            expected[1] = None
        for position, vector in enumerate(expected, start=begin):
            assert (vector is None) == (position not in found)
            if vector is not None:
                torch.testing.assert_close(found[position], vector, rtol=1e-4, atol=1e-5)
        inner = expected[corpus.prefix : len(expected) - corpus.suffix]
        unaligned += sum(vector is None for vector in inner)
    assert corpus.alignment.unaligned == unaligned > 0


def test_the_example_of_alignment():
    """The example in the module's docstring: un|readab|le and unread|able."""
    sizes, places = align_spans(np.array([[0, 2], [2, 8], [8, 10]]), np.array([[0, 6], [6, 10]]))
    assert sizes.tolist() == [1, 2, 1] and places.tolist() == [0, 0, 1, 1]


def test_one_tokenizer_for_both_aligns_with_itself(bert, texts, tmp_path):
    same = tokenize_corpus(texts, bert.tokenizer, tmp_path / "same")
    aligned = tokenize_corpus(texts, bert.tokenizer, tmp_path / "aligned", teacher_tokenizer=bert.tokenizer)
    for corpus in (same, aligned):
        assert (corpus.input_ids == same.input_ids).all() and (corpus.shown.input_ids == same.input_ids).all()
        counts, places = corpus.all_shown(np.arange(len(same.input_ids)))
        assert (counts == 1).all() and (places == np.arange(len(same.input_ids))).all()


def test_truncation_cuts_both_at_the_same_character(bert, texts, characters):
    text = "w11 w12 w13 w14"
    (cut,) = align_texts([text], characters, bert.tokenizer, truncate_at=4)
    assert bert.tokenizer.decode(cut.teacher_ids) == "[CLS] w11 w12 [SEP]"
    assert characters.convert_ids_to_tokens(cut.input_ids) == ["[CLS]", *"w11 w12", "[SEP]"] and cut.dropped == len(
        " w13 w14"
    )
    assert (
        cut.places.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
        and cut.sizes.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1]
        and cut.unaligned == 1
    )


def test_a_dictionary_for_another_tokenizer(bert, texts, characters, tmp_path, caplog):
    """A single sense is the mean of a token's vectors; the dictionary saves, loads and finds its own tokens."""
    settings = dict(senses_per_token=1, senses_dtype="float32", sample_dtype="float32")
    senses = build_sense_dictionary(bert, texts, tokenizer=characters, output_dir=tmp_path, **settings)
    found = defaultdict(list)
    for text in texts:
        for token, vector in zip(*naive_vectors(bert, characters, text, 64)):
            if vector is not None:
                found[token].append(vector)
    assert senses.config.vocab_size == len(
        characters
    ) and senses.config.tokenizer_fingerprint == tokenizer_fingerprint(characters)
    for token in range(len(characters)):
        assert senses.usage[senses.rows_of(token)].sum() == len(found[token])
        if found[token]:
            torch.testing.assert_close(
                senses.senses_of(token)[0], torch.stack(found[token]).mean(0), rtol=1e-4, atol=1e-5
            )
    spaces = sum(text.count(" ") for text in texts)
    assert (
        len(senses.senses_of(" ")) == 0 and senses.config.num_tokens == sum(len(text) + 2 for text in texts) - spaces
    )
    assert f"{spaces:,} of {sum(map(len, texts)):,} tokens" in caplog.text and "get no senses" in caplog.text
    loaded = AutoModel.from_pretrained(tmp_path)
    assert len(loaded.tokenizer) == len(characters) and torch.equal(loaded.senses, senses.senses)
    assert loaded.config.teacher_tokenizer_fingerprint == tokenizer_fingerprint(bert.tokenizer)
    occurrences = find_occurrences(loaded, bert, "7", texts)
    assert occurrences.total == sum(text.count("7") for text in texts) and "[7]" in occurrences.contexts[0]
    torch.testing.assert_close(occurrences.vectors.mean(0), senses.senses_of("7")[0], rtol=1e-4, atol=1e-5)


def test_special_tokens_without_a_counterpart(bert, texts, caplog):
    senses = build_sense_dictionary(bert, texts, tokenizer=make_other(".", texts, "two"))
    assert senses.usage[senses.rows_of("[CLS]")].sum() == len(texts)
    assert "1 of 3 special tokens of each text have no counterpart" in caplog.text


def test_texts_can_be_added(bert, texts, characters, tmp_path):
    settings = dict(senses_per_token=2, sample_dtype="float32", senses_dtype="float32")
    build_sense_dictionary(
        bert, texts[:40], tokenizer=characters, output_dir=tmp_path / "old", keep_samples=True, **settings
    )
    updated = build_sense_dictionary(
        bert, texts[40:], tokenizer=characters, update=tmp_path / "old", max_samples_per_token=1000, **settings
    )
    assert (
        updated.config.num_tokens
        == build_sense_dictionary(bert, texts, tokenizer=characters, **settings).config.num_tokens
    )
    with pytest.raises(
        ValueError, match="tokenizer was .*, is .*; teacher_tokenizer was .*, is None; .*would not fit"
    ):
        build_sense_dictionary(bert, texts, update=tmp_path / "old", **settings)


def test_a_student_with_its_own_tokenizer(bert, texts, characters, tmp_path):
    senses = build_sense_dictionary(bert, texts, tokenizer=characters, budget=40)
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    student = SKDStudentModel.from_backbone(BertModel(config), senses)
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(texts[:3]), student.encode(texts[:3])) and loaded.encode(texts[:3]).shape == (
        3,
        16,
    )
    assert loaded.tokenizer("w1")["input_ids"] == characters("w1")["input_ids"]


def test_who_may_use_it(bert, texts, characters):
    senses = build_sense_dictionary(bert, texts, tokenizer=characters)
    check_teacher(senses, bert)
    other = Teacher(bert.model, make_tokenizer(WORDS[::-1]), name="tiny-bert")
    with pytest.raises(ValueError, match="the teacher's tokenizer .* is not that of the teacher of this dictionary"):
        check_teacher(senses, other)
    with pytest.raises(
        ValueError, match="the teacher's layers cannot use it; make a student .* by SKDStudentModel.from_backbone"
    ):
        attach_senses(bert.model, senses)
    with pytest.raises(ValueError, match="the teacher's layers cannot use it"):
        SKDStudentModel.from_teacher(bert, senses)
    with pytest.raises(ValueError, match="is not the dictionary's"):
        SKDStudentModel.from_backbone(bert, senses)


def test_tokenizers_that_do_not_align(bert, texts, characters):
    with pytest.raises(ValueError, match="ByT5Tokenizer .* does not tell which characters its tokens cover"):
        build_sense_dictionary(bert, texts, tokenizer=ByT5Tokenizer())
    with pytest.raises(ValueError, match=r"only 25.0% of 480 tokens cover a character .* at least 50% must"):
        build_sense_dictionary(bert, ["w1      "] * 60, tokenizer=characters)
    with pytest.raises(ValueError, match="corpus is empty"):
        build_sense_dictionary(bert, ["", ""], tokenizer=characters)
    small = Teacher(
        BertModel(BertConfig(vocab_size=20, hidden_size=16, num_attention_heads=2)),
        bert.tokenizer,
        name="small",
        max_window=64,
    )
    with pytest.raises(ValueError, match="ids up to 31, small has embeddings for 20 tokens"):
        build_sense_dictionary(small, texts, tokenizer=characters)


@pytest.mark.parametrize("changed", ["tokenizer", "teacher_tokenizer"])
def test_another_tokenizer_is_refused_by_name(bert, texts, characters, tmp_path, monkeypatch, changed):
    settings = dict(output_dir=tmp_path, budget=90)
    with monkeypatch.context() as patch:
        patch.setattr("sensedict_hf.building.build.gather_samples", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_sense_dictionary(bert, texts, tokenizer=characters, **settings)
    if changed == "tokenizer":
        tokenizer, teacher = make_other(".{1,2}", texts), bert
    else:
        tokenizer, teacher = (
            characters,
            Teacher(bert.model, make_tokenizer(WORDS[::-1]), name="tiny-bert", max_window=64),
        )
    for _ in range(2):
        with pytest.raises(
            ValueError, match=f"with other settings: {changed} was [0-9a-f]*, is [0-9a-f]*; give the same"
        ):
            build_sense_dictionary(teacher, texts, tokenizer=tokenizer, **settings)
        # The second time, the folder holds the finished dictionary.
        build_sense_dictionary(bert, texts, tokenizer=characters, **settings)


@needs_fork
@pytest.mark.slow
def test_killed_anywhere_the_same_call_ends_in_the_same_bytes(bert, texts, characters, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    monkeypatch.setattr("sensedict_hf.building.corpus.BATCH_TEXTS", 10)
    settings = dict(tokenizer=characters, max_length=10)
    lines = build(bert, texts, tmp_path / "whole", **settings)
    expected = contents(tmp_path / "whole")
    for number in range(6):
        folder = tmp_path / str(number)
        kill_at = lines * (2 * number + 1) // 12
        assert build(bert, texts, folder, kill_at, **settings) is None, "it was not killed"
        assert build(bert, texts, folder, **settings) is not None
        assert contents(folder) == expected, f"killed at line {kill_at} of {lines}"


@needs_fork
def test_two_processes_make_the_same_bytes(texts, characters, teacher_folder, tmp_path):
    """On the command line."""
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    characters.save_pretrained(tmp_path / "tokenizer")
    build = ["build", "--teacher", str(teacher_folder), "--texts", str(tmp_path / "texts.jsonl")]
    build += ["--tokenizer", str(tmp_path / "tokenizer"), "--budget", "40", "--max-samples-per-token", "15"]
    build += ["--batch-size", "8", "--output"]
    assert main([*build, str(tmp_path / "one")]) == 0
    ended = launch(lambda _: main([*build, str(tmp_path / "two")]), tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "40 senses of 13 tokens, from 60 texts" in ended[0].output
