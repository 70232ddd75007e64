"""Small files of a saved folder that are empty, broken or hostile: refused, and no obstacle to overwriting."""

import json

import pytest
import torch

from sensedict_hf import build_sense_dictionary, distill_student
from sensedict_hf.building.manifest import read_manifest
from sensedict_hf.distillation.training_args import SKDTrainingArguments
from sensedict_hf.models.files import read_object, write_object

BROKEN = ["", "[]", "\0" * 40, "[" * 100_000]


@pytest.fixture
def dictionary(bert, texts, tmp_path):
    build_sense_dictionary(bert, texts, senses_per_token=2, output_dir=tmp_path / "senses")
    return tmp_path / "senses"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def good(files):
    return dict(next(iter(files.values())))


@pytest.mark.parametrize("name", ["../victim", "{outside}/victim", "inner/victim", "..", ".", "", "link", "folder"])
def test_a_manifest_names_files_of_its_folder_alone(dictionary, bert, texts, tmp_path, name):
    victims = [tmp_path / "victim", dictionary / "inner" / "victim", dictionary / "folder" / "victim"]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_text("precious")
    (dictionary / "link").symlink_to(tmp_path / "victim")
    named = name.format(outside=tmp_path)
    edit(dictionary / "manifest.json", lambda content: content["files"].update({named: good(content["files"])}))
    # A build of other texts, an update, and a build after an interruption before the last file was there.
    for options in ({"output_dir": dictionary}, {"update": dictionary}):
        with pytest.raises(ValueError, match=r"manifest\.json is broken"):
            build_sense_dictionary(bert, texts[:30], senses_per_token=2, **options)
    (dictionary / "config.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json is broken.*overwrite"):
        build_sense_dictionary(bert, texts[:30], senses_per_token=2, output_dir=dictionary)
    senses = build_sense_dictionary(bert, texts[:30], senses_per_token=2, output_dir=dictionary, overwrite=True)
    assert senses.config.num_texts == 30
    assert all(victim.read_text() == "precious" for victim in victims)
    assert named not in read_manifest(dictionary).files


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"size": 1},
        {"size": -1, "sha256": "0" * 64},
        {"size": True, "sha256": "0" * 64},
        {"size": 1.5, "sha256": "0" * 64},
        {"size": 1, "sha256": "0" * 63},
        {"size": 1, "sha256": "G" * 64},
        {"size": 1, "sha256": 0},
        {"size": 1, "sha256": "0" * 64, "more": 0},
    ],
)
def test_a_manifest_tells_sizes_and_digests(dictionary, entry):
    edit(dictionary / "manifest.json", lambda content: content["files"].update({"README.md": entry}))
    with pytest.raises(ValueError, match=r"manifest\.json is broken"):
        read_manifest(dictionary)


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["manifest.json", "building/settings.json", "building/corpus/progress.json"])
def test_overwrite_gets_past_a_broken_file(dictionary, bert, texts, name, content, monkeypatch):
    expected = (dictionary / "model.safetensors").read_bytes()
    path = dictionary / name
    if name != "manifest.json":  # a build that stops after the texts were read
        with monkeypatch.context() as patch:
            patch.setattr("sensedict_hf.building.planning.plan_samples", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build_sense_dictionary(bert, texts, senses_per_token=3, output_dir=dictionary, overwrite=True)
        (dictionary / "config.json").unlink()
    path.write_text(content)
    arguments = {"senses_per_token": 3, "output_dir": dictionary}
    with pytest.raises(ValueError, match="overwrite"):
        build_sense_dictionary(bert, texts, **arguments)
    if name == "manifest.json":
        assert (dictionary / "model.safetensors").read_bytes() == expected
    senses = build_sense_dictionary(bert, texts, **arguments, overwrite=True)
    assert senses.config.method_value == 3
    assert read_manifest(dictionary).changed_file(dictionary) is None


def test_a_corpus_that_lost_bytes_is_not_filled_with_zeros(bert, texts, tmp_path, monkeypatch):
    arguments = {"senses_per_token": 3, "output_dir": tmp_path / "senses"}
    with monkeypatch.context() as patch:
        patch.setattr("sensedict_hf.building.planning.plan_samples", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_sense_dictionary(bert, texts, **arguments)
    path = tmp_path / "senses" / "building" / "corpus" / "input_ids.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"input_ids\.bin has less than .* overwrite"):
        build_sense_dictionary(bert, texts, **arguments)
    assert build_sense_dictionary(bert, texts, **arguments, overwrite=True).config.num_texts == len(texts)


def test_a_folder_where_a_file_must_go_is_found_before_the_work(bert, texts, tmp_path, monkeypatch):
    (tmp_path / "senses" / "model.safetensors").mkdir(parents=True)
    monkeypatch.setattr("sensedict_hf.building.build.gather_samples", lambda *_, **__: pytest.fail("it has begun"))
    with pytest.raises(ValueError, match="is a folder"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path / "senses", overwrite=True)


@pytest.mark.parametrize("content", [*BROKEN, "{}", '{"finished": true}'])
def test_overwrite_gets_past_a_broken_state_of_a_run(bert, texts, tmp_path, content):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    args = SKDTrainingArguments(
        str(tmp_path / "student"), max_steps=1, save_strategy="no", report_to="none", disable_tqdm=True
    )
    before = distill_student(bert, senses, texts[:8], args=args)
    (tmp_path / "student" / "_distilling.json").write_text(content)
    with pytest.raises(ValueError, match=r"_distilling\.json is broken.*overwrite"):
        distill_student(bert, senses, texts[:8], args=args)
    assert (tmp_path / "student" / "config.json").is_file()  # nothing was touched
    after = distill_student(bert, senses, texts[:8], args=args, overwrite=True)
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())


def test_json_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "state.json", []
    write_object(path, {"old": 1})
    monkeypatch.setattr("os.fsync", lambda number: synced.append((read_object(path), path.exists())))
    write_object(path, {"new": 2})
    assert synced == [({"old": 1}, True)] and read_object(path) == {"new": 2}
