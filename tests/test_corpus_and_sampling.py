import numpy as np
import pytest
from conftest import WORDS, make_tokenizer
from datasets import Dataset

from sensedict_hf.corpus import iterate_texts, read_dataset, tokenize_corpus, tokenizer_fingerprint
from sensedict_hf.sampling import plan_samples


@pytest.fixture
def corpus(texts, tokenizer, tmp_path):
    return tokenize_corpus(texts, tokenizer, tmp_path)


def occurrences(corpus, plan):
    """The planned occurrences as (token, digest of the text, position in it), whatever the order of the texts."""
    text = np.searchsorted(corpus.offsets, plan.positions, side="right") - 1
    places = plan.positions - corpus.offsets[text]
    return sorted(zip(corpus.input_ids[plan.positions].tolist(), corpus.digests[text].tolist(), places.tolist()))


def test_token_ids_are_the_tokenizers(corpus, texts, tokenizer):
    for number, text in enumerate(texts):
        assert corpus.input_ids[corpus.offsets[number] : corpus.offsets[number + 1]].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("max_length", [8, 9, 16, 64])
def test_windows_own_every_position_once_and_show_it(tokenizer, tmp_path, max_length):
    texts = [" ".join(WORDS[i % 28] for i in range(n)) for n in (1, 6, 7, 8, 20, 61, 62, 63)] + [""]
    corpus = tokenize_corpus(texts, tokenizer, tmp_path)
    windows = corpus.windows(max_length)
    owned = np.zeros(len(corpus.input_ids), dtype=int)
    for index in range(len(windows)):
        ids = corpus.window_ids(windows, index)
        assert len(ids) <= max_length and ids[0] == 2 and ids[-1] == 3
        begin = corpus.offsets[windows.text[index]]
        for position in range(windows.own_start[index], windows.own_stop[index]):
            assert ids[position - windows.start[index]] == corpus.input_ids[begin + position]
            owned[begin + position] += 1
    assert (owned == 1).all()


def test_truncation_keeps_the_end_token_and_counts_what_it_drops(tokenizer, tmp_path):
    corpus = tokenize_corpus([" ".join(WORDS), "w1 w2"], tokenizer, tmp_path, truncate_at=10)
    assert corpus.dropped == 28 + 2 - 10
    assert np.diff(corpus.offsets).tolist() == [10, 4] and corpus.input_ids[9] == 3


def test_plan_takes_all_below_the_cap_and_the_cap_above(corpus):
    plan = plan_samples(corpus, 32, 10, seed=0)
    counts = np.bincount(corpus.input_ids, minlength=32)
    assert (plan.counts == counts).all() and (np.diff(plan.offsets) == np.minimum(counts, 10)).all()
    assert (corpus.input_ids[plan.positions] == np.repeat(np.arange(32), np.diff(plan.offsets))).all()
    assert len(set(plan.positions.tolist())) == len(plan.positions)


def test_plan_does_not_depend_on_the_order_of_texts_or_on_chunks(texts, tokenizer, tmp_path, monkeypatch):
    texts = texts + texts[:20]  # equal texts
    first = tokenize_corpus(texts, tokenizer, tmp_path)
    plan = plan_samples(first, 32, 10, seed=3)
    expected = occurrences(first, plan)
    monkeypatch.setattr("sensedict_hf.sampling.CHUNK", 17)
    assert (plan_samples(first, 32, 10, seed=3).positions == plan.positions).all()
    (tmp_path / "other").mkdir()
    second = tokenize_corpus(texts[::-1], tokenizer, tmp_path / "other", batch_size=7)
    assert occurrences(second, plan_samples(second, 32, 10, seed=3)) == expected
    assert occurrences(first, plan_samples(first, 32, 10, seed=4)) != expected


def test_sample_is_uniform_over_positions_and_over_equal_texts(tokenizer, tmp_path):
    """A hundred equal texts with the token in five places: every place and every text is drawn equally often over many seeds."""
    corpus = tokenize_corpus(["w5 w5 w5 w5 w5"] * 100, tokenizer, tmp_path)
    drawn = np.concatenate([plan_samples(corpus, 32, 50, seed=seed).positions for seed in range(100)])
    drawn = drawn[corpus.input_ids[drawn] == 9]
    assert len(drawn) == 5000
    by_place, by_half = np.bincount(drawn % 7, minlength=7)[1:6], np.bincount(drawn // 350)
    assert np.abs(by_place - 1000).max() < 120  # 4 standard deviations
    assert np.abs(by_half - 2500).max() < 150


def test_padding_and_foreign_tokens(corpus):
    assert plan_samples(corpus, 32, 10, exclude=(5,)).counts[5] == 0
    with pytest.raises(ValueError, match="token id .* is outside the vocabulary of 10 tokens"):
        plan_samples(corpus, 10, 10)


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(make_tokenizer(model_max_length=8))
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(make_tokenizer(WORDS[::-1]))


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
    (tmp_path / "c.txt").write_text("four\nfive\n")
    assert read_dataset(str(tmp_path / "a.jsonl"))["text"][:] == ["one", "two"]
    assert read_dataset([str(tmp_path / "b.csv")])["text"][:] == ["three"]
    assert read_dataset([str(tmp_path / "c.txt")] * 2)["text"][:] == ["four", "five"] * 2
    for files, message in [
        (["a.pdf"], "cannot read"),
        (["none.txt"], "there is no file"),
        ([str(tmp_path / "a.jsonl"), str(tmp_path / "c.txt")], "different kinds"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_dataset(files)
