import dataclasses
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_models import SIZES, WORDS, make_model
from transformers import BertConfig, BertModel

from sensedict_hf import (
    Teacher,
    build_sense_dictionary,
    find_occurrences,
    load_teacher,
    plot_senses,
    report_senses,
)
from sensedict_hf.building.settings import BuildSettings


def test_one_sense_is_the_mean_of_all_vectors_of_a_token(teacher, texts):
    senses = build_sense_dictionary(
        teacher, texts, senses_per_token=1, senses_dtype="float32", sample_dtype="float32", batch_size=7
    )
    sums, counts = torch.zeros(32, 16), torch.zeros(32)
    for text in texts:
        ids = torch.tensor([teacher.tokenizer(text)["input_ids"]])
        sums.index_add_(0, ids[0], teacher.last_hidden_state(ids)[0])
        counts += torch.bincount(ids[0], minlength=32)
    for token in range(32):
        assert len(senses.senses_of(token)) == (counts[token] > 0)
        if counts[token]:
            torch.testing.assert_close(senses.senses_of(token)[0], sums[token] / counts[token], rtol=1e-4, atol=1e-5)
            assert senses.usage[senses.rows_of(token)].item() == counts[token]


def test_same_bytes_for_the_same_seed(bert, texts):
    first, second = (
        build_sense_dictionary(bert, texts, budget=90, max_samples_per_token=15, seed=1) for _ in range(2)
    )
    other = build_sense_dictionary(bert, texts, budget=90, max_samples_per_token=15, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers()))
    assert not torch.equal(first.senses, other.senses)


def test_batch_size_and_order_hardly_matter(bert, texts):
    first = build_sense_dictionary(bert, texts, budget=90, max_samples_per_token=15)
    second = build_sense_dictionary(bert, texts[::-1], budget=90, max_samples_per_token=15, batch_size=3)
    assert first.config.distortion == pytest.approx(second.config.distortion, rel=0.02)
    assert len(first.senses) == len(second.senses) == 90


def test_every_kind_of_corpus(bert, texts, teacher_folder):
    expected = build_sense_dictionary(bert, texts, budget=90)
    corpora = [
        (text for text in texts),
        Dataset.from_dict({"text": texts}),
        Dataset.from_dict({"text": texts}).to_iterable_dataset(),
    ]
    for corpus in corpora:
        assert torch.equal(build_sense_dictionary(bert, corpus, budget=90).senses, expected.senses)
    for teacher in (str(teacher_folder), load_teacher(teacher_folder).model):
        senses = build_sense_dictionary(teacher, texts, budget=90)
        assert torch.equal(senses.senses, expected.senses) and senses.config.base_model_name_or_path == "teacher"


def test_long_texts_are_cut_into_windows(bert):
    long = " ".join(np.random.default_rng(0).choice(WORDS, 500))
    senses = build_sense_dictionary(bert, [long], senses_per_token=3)
    assert senses.config.num_tokens == 502 == senses.usage.sum()
    cut = build_sense_dictionary(bert, [long], senses_per_token=3, max_length=16, truncation=True)
    assert cut.config.num_tokens == 16


def test_default_budget(bert, texts):
    senses = build_sense_dictionary(bert, texts)
    seen, tokens = int((senses.offsets.diff() > 0).sum()), senses.config.num_tokens
    assert len(senses.senses) == min(6 * seen, seen + (tokens - seen) // 4)


def test_the_saved_dictionary_is_what_saving_makes(bert, texts, tmp_path):
    """The files are written block by block, without the model; they must be those that the model would write."""
    for dtype in ("float16", "int8"):
        built = build_sense_dictionary(bert, texts, budget=90, senses_dtype=dtype, output_dir=tmp_path / dtype)
        built.save_pretrained(tmp_path / "saved")
        for path in (tmp_path / "saved").iterdir():
            if path.suffix != ".safetensors":
                assert path.read_bytes() == (tmp_path / dtype / path.name).read_bytes(), path.name
        ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in (dtype, "saved"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_rule_of_the_paper(bert, texts):
    senses = build_sense_dictionary(bert, texts, method="mcl", max_samples_per_token=15)
    sizes, samples = (
        senses.offsets.diff(),
        build_sense_dictionary(bert, texts, senses_per_token=15, max_samples_per_token=15).offsets.diff(),
    )
    assert senses.config.method == "mcl" and senses.config.method_value is None
    assert (
        (sizes <= samples).all()
        and (sizes[samples > 5] >= 5).all()
        and (sizes[samples < 5] == samples[samples < 5]).all()
    )


def test_texts_can_be_added_where_samples_were_kept(bert, texts, tmp_path):
    """The old samples are not gathered again; with room for all, the result is that of both corpora together."""
    settings = dict(senses_per_token=3, sample_dtype="float32", senses_dtype="float32")
    build_sense_dictionary(bert, texts[:40], output_dir=tmp_path / "old", keep_samples=True, **settings)
    counted = []
    original = type(bert).hidden_states
    counting = type(
        "Counting",
        (Teacher,),
        {"hidden_states": lambda self, ids, *args, **kw: counted.append(ids) or original(self, ids, *args, **kw)},
    )
    teacher = counting(**vars(bert))
    updated = build_sense_dictionary(
        teacher, texts[40:], update=tmp_path / "old", output_dir=tmp_path / "new", keep_samples=True, **settings
    )
    assert sum(len(ids) for ids in counted if ids.any()) == 20  # probes are zeros
    expected = build_sense_dictionary(bert, texts, **settings)
    assert torch.equal(updated.offsets, expected.offsets) and updated.usage.sum() == expected.usage.sum()
    assert updated.config.num_texts == 60 and updated.config.num_tokens == expected.config.num_tokens
    assert updated.config.distortion == pytest.approx(expected.config.distortion, rel=0.2)
    again = build_sense_dictionary(
        bert, texts[:5], update=tmp_path / "new", output_dir=tmp_path / "newer", max_samples_per_token=1000, **settings
    )
    assert again.config.num_texts == 65


def test_what_cannot_be_updated(bert, texts, tmp_path):
    build_sense_dictionary(bert, texts, budget=90, output_dir=tmp_path / "bare")
    with pytest.raises(ValueError, match="only one that was built with keep_samples can be updated"):
        build_sense_dictionary(bert, texts, update=tmp_path / "bare")
    build_sense_dictionary(bert, texts, budget=90, output_dir=tmp_path / "kept", keep_samples=True)
    with pytest.raises(ValueError, match="layer was -1, is 2; .*new samples would not fit the old ones"):
        build_sense_dictionary(bert, texts, update=tmp_path / "kept", layer=2)
    with pytest.raises(ValueError, match="give the updated dictionary a folder of its own"):
        build_sense_dictionary(bert, texts, update=tmp_path / "kept", output_dir=tmp_path / "kept")
    with pytest.raises(ValueError, match="give output_dir: samples are kept there"):
        build_sense_dictionary(bert, texts, keep_samples=True)


def test_clusters_planted_in_the_teacher_are_found(tokenizer, texts):
    """The teacher's vector depends on the token before: a token gets as many senses as it has such neighbours."""
    vectors = 10 * torch.randn(32, 16)

    class Neighbours(Teacher):
        def hidden_states(self, input_ids, attention_mask=None, layer=-1):
            before = torch.nn.functional.pad(input_ids[:, :-1], (1, 0))
            return vectors[before] + 0.01 * torch.randn(*input_ids.shape, 16)

    texts = ["w1 w2 w3 w2", "w3 w2 w5", "w5 w2"] * 20
    teacher = Neighbours(make_model("bert"), tokenizer, name="neighbours", max_window=64)
    senses = build_sense_dictionary(teacher, texts, budget=11)
    expected = {"[CLS]": 1, "[SEP]": 2, "w1": 1, "w2": 3, "w3": 2, "w5": 2}
    assert {token: len(senses.senses_of(token)) for token in expected} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 5}, r"budget=5 is below one sense for each of the 30 different tokens"),
        ({"budget": 90, "senses_per_token": 2}, "give one of them"),
        ({"senses_per_token": 0}, "senses_per_token=0: give an integer of at least 1"),
        ({"similarity": "euclid"}, "unknown similarity 'euclid': choose one of l2, cosine, dot"),
        ({"layer": 7}, "layer 7 of tiny-bert: choose one of 0 to 4"),
        ({"max_length": 65}, "max_length=65: the model takes 8 to 64 tokens"),
        ({"seed": -1}, "seed=-1: give an integer of at least 0 and below 4294967296"),
        ({"seed": 2**32}, "seed=4294967296: give an integer"),
        ({"method": "mcl", "budget": 90}, "do not belong together"),
        ({"method": "budget", "senses_per_token": 2}, "do not belong together"),
        ({"method": "senses_per_token"}, "method='senses_per_token' needs a number: give senses_per_token="),
        ({"method": "dbscan"}, "unknown method 'dbscan': choose one of budget, senses_per_token, mcl"),
        ({"batch_size": 0}, "batch_size=0: give an integer of at least 1"),
        ({"budget": float("nan")}, "budget=nan: give an integer of at least 1"),
        ({"budget": 90.0}, "budget=90.0: give an integer"),
        ({"budget": True}, "budget=True: give an integer"),
        ({"layer": "last"}, "layer='last': give an integer"),
        ({"max_length": 16.0}, "max_length=16.0: give an integer"),
        ({"truncation": "yes"}, "truncation='yes': give True or False"),
        ({"keep_samples": 1}, "keep_samples=1: give True or False"),
        ({"similarity": ["l2"]}, "unknown similarity"),
        ({"senses_dtype": "int4"}, "unknown senses_dtype 'int4': choose one of float16, bfloat16, float32, int8"),
    ],
)
def test_bad_settings(bert, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        build_sense_dictionary(bert, texts, **settings)


def test_settings_are_checked_before_the_teacher_is_loaded(texts):
    with pytest.raises(ValueError, match="budget=0: give an integer of at least 1"):
        build_sense_dictionary("there-is-no-such-teacher", texts, budget=0)


def test_integers_of_numpy_are_integers(bert, texts, tmp_path):
    """They are stored as Python's, so that the same call with those recognises the dictionary."""
    settings = {"budget": 90, "layer": -1, "seed": 3, "max_length": 16, "truncation": True}
    of_numpy = {name: np.array([value])[0] for name, value in settings.items()}
    first = build_sense_dictionary(bert, texts, output_dir=tmp_path, **of_numpy)
    second = build_sense_dictionary(bert, texts, output_dir=tmp_path, **settings)
    assert torch.equal(first.senses, second.senses)


def test_how_the_number_of_senses_was_set_is_recorded(bert, texts, tmp_path):
    config = build_sense_dictionary(bert, texts, senses_per_token=2, output_dir=tmp_path).config
    assert (config.method, config.method_value) == ("senses_per_token", 2)
    settings = json.loads((tmp_path / "manifest.json").read_text())["settings"]
    assert list(settings)[:3] == ["method", "senses_per_token", "budget"] and settings["senses_per_token"] == 2


@pytest.mark.parametrize("name", ["budget", "senses_per_token", "max_samples_per_token"])
def test_numbers_of_more_than_64_bits_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=1000.*: give an integer of at least 1"):
        BuildSettings(**{name: 10**20})


def test_settings_never_change():
    settings = BuildSettings(budget=90)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.budget = 100
    methods = [each.method for each in (settings, BuildSettings(senses_per_token=2), BuildSettings())]
    assert methods == ["budget", "senses_per_token", "budget"]


def test_bad_input(bert, texts):
    for empty in ([], ["", " "]):
        with pytest.raises(ValueError, match=f"corpus is empty: none of its {len(empty)} texts holds a token"):
            build_sense_dictionary(bert, empty)
    with pytest.raises(ValueError, match="texts is a mapping of train, test: "):
        build_sense_dictionary(bert, {"train": texts, "test": texts})
    small = dataclasses.replace(
        bert, model=BertModel(BertConfig(**{**SIZES, "vocab_size": 20}, max_position_embeddings=64)).eval()
    )
    with pytest.raises(ValueError, match="ids up to 31, tiny-bert has embeddings for 20 tokens"):
        build_sense_dictionary(small, texts)
    bert.model.encoder.layer[3].output.LayerNorm.bias.data[0] = 1e5
    with pytest.raises(ValueError, match="too large for float16: use sample_dtype='float32'"):
        build_sense_dictionary(bert, texts)
    bert.model.encoder.layer[3].output.LayerNorm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite vectors for text"):
        build_sense_dictionary(bert, texts)


def test_weights_that_a_checkpoint_lacks_are_not_invented(bert, tmp_path):
    state = {
        key: value for key, value in bert.model.state_dict().items() if "layer.3" not in key and "pooler" not in key
    }
    bert.model.save_pretrained(tmp_path, state_dict=state)
    bert.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of BertModel, which would be random: encoder.layer.3"):
        load_teacher(tmp_path)


def test_padding_outside_the_embeddings(tokenizer, texts):
    """A padding token that was added to a decoder's tokenizer without resizing the model."""
    teacher = Teacher(make_model("llama"), tokenizer, name="tiny", max_window=64)
    expected = build_sense_dictionary(teacher, texts, budget=90)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 32
    senses = build_sense_dictionary(teacher, texts, budget=90)
    assert torch.equal(senses.senses, expected.senses) and len(senses.senses_of("<pad>")) == 0
    assert torch.isfinite(teacher.encode(texts)).all()


def test_what_cannot_be_changed_in_a_teacher(bert, teacher_folder):
    with pytest.raises(ValueError, match="pooling.* given .* a Teacher"):
        load_teacher(bert, pooling="cls")
    assert load_teacher(bert, device="cpu") is bert
    assert load_teacher(str(teacher_folder), tokenizer=str(teacher_folder), pooling="cls").pooling == "cls"
    senses = build_sense_dictionary(bert, ["w1 w2"])
    senses.save_pretrained(teacher_folder.parent / "senses")
    with pytest.raises(ValueError, match="is a SenseEmbeddingModel, not a teacher"):
        load_teacher(teacher_folder.parent / "senses")


def test_a_plot_leaves_the_backend_and_the_figures_of_the_caller_alone(bert, texts, tmp_path):
    from matplotlib import pyplot

    pyplot.switch_backend("svg")
    senses = build_sense_dictionary(bert, texts, budget=90)
    occurrences = {word: find_occurrences(senses, bert, word, texts) for word in ("w20", "w21")}
    plot_senses(senses, occurrences, tmp_path / "senses.png")
    assert (tmp_path / "senses.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_backend() == "svg" and pyplot.get_fignums() == []
    once = find_occurrences(senses, bert, "w20", texts, max_occurrences=1)
    with pytest.raises(ValueError, match="w20 occurs only once"):
        plot_senses(senses, {"w20": once}, tmp_path / "senses.png")
    with pytest.raises(ValueError, match="give at least one token"):
        plot_senses(senses, {}, tmp_path / "senses.png")
    # Occurrences of another token.
    for call in (
        lambda: plot_senses(senses, {"w20": occurrences["w21"]}, tmp_path / "senses.png"),
        lambda: report_senses(senses, "w20", occurrences["w21"]),
    ):
        with pytest.raises(ValueError, match="the occurrences are of the token with id .*, not of 'w20'"):
            call()


def test_plotting_alone_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="plot_senses needs matplotlib: pip install matplotlib"):
        plot_senses(None, {}, "senses.png")


def test_contexts_of_the_senses_of_a_token(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    occurrences = find_occurrences(senses, bert, "w20", texts)
    assert occurrences.total == " ".join(texts).split().count("w20")
    assert all("[w20]" in context for context in occurrences.contexts)
    reports = report_senses(senses, "w20", occurrences, max_contexts=1)
    assert sum(report.found for report in reports) == occurrences.total
    assert sum(report.share for report in reports) == pytest.approx(1)
    assert [report.usage for report in reports] == sorted((report.usage for report in reports), reverse=True)
    with pytest.raises(ValueError, match="does not occur in the texts"):
        find_occurrences(senses, bert, "w20", ["w1 w2"])
    for wrong in (report_senses, partial(find_occurrences, teacher=bert, texts=texts)):
        with pytest.raises(ValueError, match="has no senses"):
            wrong(senses, token="[PAD]")
    with pytest.raises(ValueError, match="max_occurrences=0: give an integer of at least 1"):
        find_occurrences(senses, bert, "w20", texts, max_occurrences=0)


def test_a_folder_of_the_name_of_the_stages_is_kept(bert, texts, tmp_path):
    (tmp_path / "building").mkdir()
    (tmp_path / "building" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"building holds thesis\.txt, which no build has put there"):
        build_sense_dictionary(bert, texts, senses_per_token=2, output_dir=tmp_path)
    assert (tmp_path / "building" / "thesis.txt").exists()


def test_occurrences_are_read_in_windows_as_long_as_those_of_the_build(bert):
    long = [" ".join(f"w{(7 * number + place) % 30}" for place in range(40)) for number in range(12)]
    senses = build_sense_dictionary(bert, long, senses_per_token=4, max_length=12)
    found = find_occurrences(senses, bert, "w5", long)
    usage = senses.usage[senses.rows_of("w5")]
    assert np.bincount(found.sense_ids, minlength=len(usage)).tolist() == usage.tolist()
