"""Corpora on disk, windows, sampling plans, and reading files of texts."""

import numpy as np
import pytest
from datasets import Dataset
from safetensors.torch import load_file
from tiny_models import WORDS, make_tokenizer
from tokenizers.normalizers import Lowercase

from sensedict_hf.building import corpus as corpus_module
from sensedict_hf.building import corpus_files
from sensedict_hf.building.corpus import CorpusChangedError, read_progress, tokenize_corpus
from sensedict_hf.building.sampling import count_tokens, plan_samples
from sensedict_hf.data import iterate_texts, read_dataset
from sensedict_hf.models.fingerprints import tokenizer_fingerprint


@pytest.fixture
def corpus(texts, tokenizer, tmp_path):
    return tokenize_corpus(texts, tokenizer, tmp_path)


def plan_of(corpus, folder, cap, *, vocab_size=32, exclude=(), **settings):
    return plan_samples(corpus, count_tokens(corpus, vocab_size, exclude), cap, folder, **settings)


def occurrences(corpus, plan):
    """The sampled occurrences as (token, digest of the text, place in the text), sorted."""
    text = np.searchsorted(corpus.offsets, plan.positions, side="right") - 1
    places = plan.positions - corpus.offsets[text]
    return sorted(zip(corpus.input_ids[plan.positions].tolist(), corpus.digests[text].tolist(), places.tolist()))


def test_token_ids_are_the_tokenizers(corpus, texts, tokenizer):
    for number, text in enumerate(texts):
        assert (
            corpus.input_ids[corpus.offsets[number] : corpus.offsets[number + 1]].tolist()
            == tokenizer(text)["input_ids"]
        )


@pytest.mark.parametrize("max_length", [8, 9, 16, 64])
def test_windows_own_every_position_once_and_show_it(tokenizer, tmp_path, max_length):
    texts = [" ".join(WORDS[i % 28] for i in range(n)) for n in (1, 6, 7, 8, 20, 61, 62, 63)] + [""]
    corpus = tokenize_corpus(texts, tokenizer, tmp_path)
    windows = corpus.windows(max_length)
    owned = np.zeros(len(corpus.input_ids), dtype=int)
    for index in range(len(windows)):
        ids = corpus.window_ids(windows.text[index], windows.start[index], windows.stop[index])
        assert len(ids) <= max_length and ids[0] == 2 and ids[-1] == 3
        begin = corpus.offsets[windows.text[index]]
        for position in range(windows.own_start[index], windows.own_stop[index]):
            assert ids[position - windows.start[index]] == corpus.input_ids[begin + position]
            owned[begin + position] += 1
    assert (owned == 1).all()


def test_the_example_of_windows(tokenizer, tmp_path):
    """The picture in the module's docstring."""
    windows = tokenize_corpus([" ".join(WORDS[:12])], tokenizer, tmp_path).windows(10)
    assert windows.start.tolist() == [0, 4] and windows.stop.tolist() == [8, 12]
    assert windows.own_start.tolist() == [0, 7] and windows.own_stop.tolist() == [7, 14]  # [CLS] is place 0


def test_truncation_keeps_the_end_token_and_counts_what_it_drops(tokenizer, tmp_path):
    corpus = tokenize_corpus([" ".join(WORDS), "w1 w2"], tokenizer, tmp_path, truncate_at=10)
    assert corpus.dropped == 28 + 2 - 10
    assert np.diff(corpus.offsets).tolist() == [10, 4] and corpus.input_ids[9] == 3


def test_plan_takes_all_below_the_cap_and_the_cap_above(corpus, tmp_path):
    plan = plan_of(corpus, tmp_path, 10)
    counts = np.bincount(corpus.input_ids, minlength=32)
    assert (plan.counts == counts).all() and (np.diff(plan.offsets) == np.minimum(counts, 10)).all()
    by_slot = plan.positions[np.argsort(plan.slots)]
    assert (corpus.input_ids[by_slot] == np.repeat(np.arange(32), np.diff(plan.offsets))).all()
    assert (np.diff(plan.positions) > 0).all()
    within_a_token = np.setdiff1d(np.arange(1, len(by_slot)), plan.offsets)
    assert (plan.priorities[within_a_token] > plan.priorities[within_a_token - 1]).all()
    assert sorted(path.name for path in tmp_path.iterdir() if "plan" in path.name) == ["plan.safetensors"]


@pytest.mark.parametrize("setting", [("CHUNK", 17), ("BLOCK", 23), ("MARGIN", -2.0)])
def test_plan_does_not_depend_on_the_order_of_texts_or_on_chunks(texts, tokenizer, tmp_path, monkeypatch, setting):
    """Nor on the number of candidates: with a negative margin, the first pass finds too few and there is a second."""
    texts = texts + texts[:20]  # equal texts
    first = tokenize_corpus(texts, tokenizer, tmp_path)
    plan = plan_of(first, tmp_path, 10, seed=3)
    expected = occurrences(first, plan)
    monkeypatch.setattr(f"sensedict_hf.building.sampling.{setting[0]}", setting[1])
    again = plan_of(first, tmp_path, 10, seed=3)
    assert (again.positions == plan.positions).all() and (again.slots == plan.slots).all()
    monkeypatch.setattr("sensedict_hf.building.corpus.BATCH_TEXTS", 7)
    second = tokenize_corpus(texts[::-1], tokenizer, tmp_path / "other")
    assert occurrences(second, plan_of(second, tmp_path, 10, seed=3)) == expected
    assert occurrences(first, plan_of(first, tmp_path, 10, seed=4)) != expected


def test_sample_is_uniform_over_positions_and_over_equal_texts(tokenizer, tmp_path):
    """A hundred equal texts with one token in five places: each place and text is drawn equally often."""
    corpus = tokenize_corpus(["w5 w5 w5 w5 w5"] * 100, tokenizer, tmp_path)
    drawn = np.concatenate([plan_of(corpus, tmp_path, 50, seed=seed).positions for seed in range(100)])
    drawn = drawn[corpus.input_ids[drawn] == 9]
    assert len(drawn) == 5000
    by_place, by_half = np.bincount(drawn % 7, minlength=7)[1:6], np.bincount(drawn // 350)
    assert np.abs(by_place - 1000).max() < 120  # 4 standard deviations
    assert np.abs(by_half - 2500).max() < 150


def test_a_later_plan_draws_from_both_corpora(tokenizer, tmp_path):
    """Each occurrence in either corpus has the same chance; earlier ones keep their samples and priorities."""
    old, new = (tokenize_corpus(["w5 w5"] * number, tokenizer, tmp_path / str(number)) for number in (300, 100))
    kept, drawn = [], []
    for seed in range(40):
        plan_of(old, tmp_path / "300", 50, seed=seed)
        earlier = load_file(tmp_path / "300" / "plan.safetensors")
        plan = plan_samples(new, count_tokens(new, 32), 50, tmp_path / "100", seed=seed + (1 << 32), earlier=earlier)
        assert plan.counts[9] == 800 and np.diff(plan.offsets)[9] == 50
        before = plan.positions < 0
        slots = -1 - plan.positions[before]
        assert (earlier["priorities"].numpy()[slots] == plan.priorities[plan.slots[before]]).all()
        token = np.searchsorted(plan.offsets, plan.slots, side="right") - 1 == 9
        kept.append((token & before).sum())
        drawn.append((token & ~before).sum())
    assert sum(kept) + sum(drawn) == 2000 and abs(sum(kept) - 1500) < 80  # 4 standard deviations


def test_padding_and_foreign_tokens(corpus):
    assert count_tokens(corpus, 32, exclude=(5,))[5] == 0
    with pytest.raises(ValueError, match="token id .* is outside the vocabulary of 10 tokens"):
        count_tokens(corpus, 10)


def test_interrupted_tokenization_goes_on(texts, tokenizer, tmp_path, monkeypatch):
    """Texts that are done are not tokenized again, and the files are the same as without an interruption."""
    monkeypatch.setattr(corpus_module, "BATCH_TEXTS", 10)
    monkeypatch.setattr(corpus_files, "COMMIT_SECONDS", 0)
    whole = tokenize_corpus(texts, tokenizer, tmp_path / "whole")

    def stops():
        yield from texts[:35]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(stops(), tokenizer, tmp_path / "part")
    assert read_progress(tmp_path / "part").texts == 30
    with pytest.raises(CorpusChangedError, match="its first 30 texts were others"):
        tokenize_corpus(texts[::-1], tokenizer, tmp_path / "part")
    seen = []
    original = corpus_files.blake2b
    monkeypatch.setattr(
        corpus_files, "blake2b", lambda content, **kwargs: seen.append(content) or original(content, **kwargs)
    )
    part = tokenize_corpus(texts, tokenizer, tmp_path / "part")
    assert len(seen) == len(texts) - 30
    for name in ("input_ids", "offsets", "digests"):
        assert (getattr(part, name) == getattr(whole, name)).all()
    assert read_progress(tmp_path / "part") == read_progress(tmp_path / "whole")
    with pytest.raises(CorpusChangedError, match="it had 60 texts, now it has more"):
        tokenize_corpus(texts + ["w1"], tokenizer, tmp_path / "part")
    with pytest.raises(CorpusChangedError, match="its first 60 texts were others"):
        tokenize_corpus(texts[:59], tokenizer, tmp_path / "part")


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(make_tokenizer(model_max_length=8))
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(make_tokenizer(WORDS[::-1]))
    small = make_tokenizer()
    small.backend_tokenizer.normalizer = Lowercase()
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(small)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", "one string"),
        (["a", None], "text 1 is NoneType"),
        (Dataset.from_dict({"sentence": ["a"]}), "no column 'text', only sentence"),
    ],
)
def test_texts_that_are_none(texts, message):
    with pytest.raises(ValueError, match=message):
        list(iterate_texts(texts))


def test_empty_corpus(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="corpus is empty"):
        tokenize_corpus([], tokenizer, tmp_path)


def test_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.csv").write_text("text\nthree\n")
    (tmp_path / "c.txt").write_text("four\n\nfive\n")
    Dataset.from_dict({"text": ["six"]}).save_to_disk(tmp_path / "saved")
    Dataset.from_dict({"text": ["seven"]}).to_parquet(tmp_path / "d.parquet")
    assert read_dataset(str(tmp_path / "a.jsonl"))["text"][:] == ["one", "two"]
    assert read_dataset([str(tmp_path / "b.csv")])["text"][:] == ["three"]
    assert read_dataset([str(tmp_path / "c.txt")] * 2)["text"][:] == ["four", "five"] * 2
    assert read_dataset(str(tmp_path / "saved"))["text"][:] == ["six"]
    assert read_dataset(str(next((tmp_path / "saved").glob("*.arrow"))))["text"][:] == ["six"]
    assert read_dataset([str(tmp_path / "d.parquet")])["text"][:] == ["seven"]
    assert list(iterate_texts(read_dataset([str(tmp_path / "c.txt")] * 2, streaming=True))) == ["four", "five"] * 2
    (tmp_path / "empty.jsonl").touch()
    for files, message in [
        ([str(tmp_path / "empty.jsonl")], "is empty: give files"),
        (["a.pdf"], "there is no file"),
        (["none.txt"], "there is no file"),
        ([str(tmp_path / "a.jsonl"), str(tmp_path / "c.txt")], "different kinds"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_dataset(files)
