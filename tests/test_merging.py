from dataclasses import replace

import pytest
import torch

from sensedict_hf import Prompt, SKDStudentModel, build_sense_dictionary, merge_sense_dictionaries


@pytest.fixture
def halves(bert, texts):
    return [
        build_sense_dictionary(bert, part, budget=150, senses_dtype="float32") for part in (texts[:15], texts[15:])
    ]


def test_one_sense_for_each_token_is_the_mean_by_usage(halves):
    seen = (sum(senses.offsets.diff() for senses in halves) > 0).sum()
    merged = merge_sense_dictionaries(halves, int(seen))
    for token in range(32):
        senses = torch.cat([half.senses_of(token) for half in halves])
        usage = torch.cat([half.usage[half.rows_of(token)] for half in halves])
        assert merged.usage[merged.rows_of(token)].sum() == usage.sum()
        if len(senses):
            torch.testing.assert_close(
                merged.senses_of(token)[0], (senses * usage[:, None]).sum(0) / usage.sum(), rtol=1e-4, atol=1e-5
            )
    assert merged.config.num_texts == 60 and merged.config.num_tokens == sum(half.config.num_tokens for half in halves)


def test_with_room_for_all_every_sense_stays(halves):
    merged = merge_sense_dictionaries(halves, 1000)
    expected = torch.cat([half.senses[half.usage > 0] for half in halves])
    assert len(merged.senses) == len(expected)
    assert torch.equal(merged.senses.sort(0).values, expected.sort(0).values)
    tokens = [half.config.num_tokens for half in halves]
    mean = sum(half.config.distortion * number for half, number in zip(halves, tokens)) / sum(tokens)
    assert merged.config.distortion == pytest.approx(mean, rel=1e-5)


def test_hardly_worse_than_building_from_all_texts(bert, texts, halves):
    """The distortion that the merged dictionary claims is what it has, and close to what all texts at once give."""
    merged, whole = (
        merge_sense_dictionaries(halves, 120),
        build_sense_dictionary(bert, texts, budget=120, senses_dtype="float32"),
    )
    error = count = 0.0
    for text in texts:
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        hidden = bert.last_hidden_state(ids)
        error += float((merged(ids, hidden).hidden_states - hidden).square().sum())
        count += ids.numel()
    assert len(merged.senses) == 120
    assert (
        error / count <= 1.05 * merged.config.distortion
    )  # the nearest sense may be nearer than the one a sample was merged into
    assert merged.config.distortion <= 1.35 * whole.config.distortion


def test_one_is_made_smaller(bert, texts):
    """Its distortion grows as its size falls, to little more than that of a dictionary which is built as small."""
    whole = build_sense_dictionary(bert, texts, budget=120, senses_dtype="float32")
    smaller = merge_sense_dictionaries([whole], 60)
    assert len(smaller.senses) == 60 and smaller.usage.sum() == whole.usage.sum()
    assert (
        whole.config.distortion < smaller.config.distortion < merge_sense_dictionaries([whole], 40).config.distortion
    )
    built = build_sense_dictionary(bert, texts, budget=60, senses_dtype="float32")
    assert smaller.config.distortion <= 1.35 * built.config.distortion
    # Without a budget each token has one sense: the mean of its senses, weighted by their usage.
    least = merge_sense_dictionaries([whole])
    assert torch.equal(least.offsets.diff(), (whole.offsets.diff() > 0).long())
    token = int(whole.offsets.diff().argmax())
    rows = slice(*whole.offsets[token : token + 2].tolist())
    weights = whole.usage[rows].float()
    mean = (whole.senses[rows] * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(least.senses[int(least.offsets[token])], mean)


def test_what_cannot_be_merged(bert, texts, halves):
    other = build_sense_dictionary(bert, texts, budget=90, layer=2)
    with pytest.raises(ValueError, match="layer differs \\(-1, 2\\)"):
        merge_sense_dictionaries([halves[0], other], 100)
    prompted = replace(bert, prompt=Prompt(instruction="w1"))
    with pytest.raises(ValueError, match="prompt differs"):
        merge_sense_dictionaries([halves[0], build_sense_dictionary(prompted, texts, budget=90)], 100)
    # Another name of the same teacher does not count, other weights do.
    moved = build_sense_dictionary(replace(bert, name="elsewhere/bert"), texts, budget=90)
    assert merge_sense_dictionaries([halves[0], moved], 100).config.base_model_name_or_path == bert.name
    moved.config.base_model_fingerprint = None
    with pytest.raises(ValueError, match="base_model_name_or_path differs"):
        merge_sense_dictionaries([halves[0], moved], 100)
    bert.model.encoder.layer[0].output.dense.bias.data += 1
    with pytest.raises(ValueError, match="base_model_fingerprint differs"):
        merge_sense_dictionaries([halves[0], build_sense_dictionary(bert, texts, budget=90)], 100)
    with pytest.raises(ValueError, match="give a budget"):
        merge_sense_dictionaries(halves)
    with pytest.raises(ValueError, match="budget=5 is below one sense for each of the 30"):
        merge_sense_dictionaries(halves, 5)
    with pytest.raises(ValueError, match="budget=nan: give an integer of at least 1"):
        merge_sense_dictionaries(halves, float("nan"))
    with pytest.raises(ValueError, match="no dictionaries"):
        merge_sense_dictionaries([], 100)


def test_a_merged_dictionary_reads_windows_of_the_same_length(bert, texts):
    whole = build_sense_dictionary(bert, texts, budget=90, max_length=12)
    assert merge_sense_dictionaries([whole]).config.window_length == whole.config.window_length == 12
    other = build_sense_dictionary(bert, texts, budget=90, max_length=16)
    assert merge_sense_dictionaries([whole, other], 100).config.window_length is None
    student = SKDStudentModel.from_teacher(bert, whole, num_hidden_layers=0)
    with pytest.raises(ValueError, match="no senses, like that of a student without layers"):
        merge_sense_dictionaries([student.senses])
