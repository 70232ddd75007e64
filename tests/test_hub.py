"""A round through the Hub: push, load by name in a fresh process with an empty cache, and read the card."""

import json
import logging
import os
import subprocess
import sys

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import torch
import transformers
from hub_server import serve
from huggingface_hub import HfApi, ModelCard
from test_folder_code import HIDE, ROOT
from transformers import AutoModel, AutoTokenizer

from sensedict_hf import (
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.cli import main

TEXTS = ["w1 w2 w3", "w27 w26 w26 w9", "w5"]
LOAD = """
import json
from transformers import AutoModel, pipeline
options = {options}
found = {{}}
for revision in ("main", "next"):
    student = AutoModel.from_pretrained("me/student", revision=revision, **options)
    found[revision] = student.encode({texts!r}).tolist()
senses = AutoModel.from_pretrained("me/senses", **options)
found["senses"] = len(senses.senses_of("w5"))
classify = pipeline("text-classification", model="me/head", **options)
found["classes"] = [row["score"] for row in classify({texts!r})]
found["modules"] = sorted({{type(model).__module__.split(".")[0] for model in (student, senses, classify.model)}})
print("\\n" + json.dumps(found))
"""


@pytest.fixture
def hub(monkeypatch):
    with serve() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Clients that know another address already: those of transformers, now and in earlier versions.
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # another way to upload large files
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield hub


def start(hub, folder, with_package):
    """Load everything in a fresh process with an empty cache."""
    options = {} if with_package else {"trust_remote_code": True}
    script = LOAD.format(options=options, texts=TEXTS)
    script = "import sensedict_hf\n" + script if with_package else HIDE.format(root=str(ROOT)) + script
    unset = {"HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_OFFLINE", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(ROOT)} if with_package else {}
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_what_is_pushed_loads_by_its_name(hub, bert, texts, tmp_path):
    bert.name, bert.card_data = "me/teacher", {"license": "mit"}
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses, assignment="soft")
    student.save_pretrained(tmp_path / "student")
    head = SKDStudentForSequenceClassification.from_pretrained(tmp_path / "student", num_labels=3)
    senses.push_to_hub("me/senses", max_shard_size="1KB")
    head.push_to_hub("head", private=True, license="cc-by-4.0")
    commit = student.push_to_hub("me/student", commit_message="First", commit_description="why", tags=["mine"])
    assert hub.messages[commit.oid] == {"summary": "First", "description": "why"} and hub.tokens == {"Bearer secret"}
    expected = {"main": student.encode(TEXTS)}
    with torch.no_grad():
        next(student.backbone.parameters()).mul_(2)
    student.push_to_hub("me/student", revision="next")
    expected["next"] = student.encode(TEXTS)

    # Both ways to load, at the same time.
    processes = [start(hub, tmp_path / str(with_package), with_package) for with_package in (False, True)]
    for process, module in zip(processes, ("transformers_modules", "sensedict_hf")):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        found = json.loads(output.splitlines()[-1])
        assert found["modules"] == [module] and len(found["classes"]) == 3
        assert found["senses"] == len(senses.senses_of("w5"))
        for revision, vectors in expected.items():
            torch.testing.assert_close(torch.tensor(found[revision]), vectors)

    # The cards name what they are about.
    for name, license in [("senses", "mit"), ("student", "mit"), ("head", "cc-by-4.0")]:
        card = ModelCard(hub.files(f"me/{name}")["README.md"].decode())
        assert (card.data.license, card.data.base_model) == (license, "me/teacher")
        assert f'"me/{name}"' in card.text and str(tmp_path) not in card.content
    assert "mine" in ModelCard(hub.files("me/student")["README.md"].decode()).data.tags


def test_a_training_pushes_through_the_arguments(hub, bert, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    options = {"max_steps": 2, "save_steps": 1, "report_to": "none", "use_cpu": True, "hub_token": "other"}
    args = SKDTrainingArguments(str(tmp_path), push_to_hub=True, hub_model_id="me/trained", **options)
    trainer = SKDTrainer(student, args, teacher=bert, train_dataset=texts)
    assert hub.files("me/trained") == {}  # a wrong name or token is found out before the work
    trainer.train()
    assert "distilled with" in hub.files("me/trained")["README.md"].decode()
    trainer.push_to_hub("Again", tags=["mine"])
    assert [entry["summary"] for entry in hub.messages.values()] == ["End of training", "Again"]
    assert hub.tokens == {"Bearer other"}


def test_a_teacher_by_its_name(hub, bert, tokenizer, tmp_path, monkeypatch, caplog):
    """It says the commit that it was read at. Without a connection it tells what it cannot know."""
    folder = tmp_path / "teacher"
    bert.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1", "type": "x.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1").mkdir()
    (folder / "1" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    commit = HfApi().upload_folder(repo_id=HfApi().create_repo("me/teacher").repo_id, folder_path=folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for loader in (AutoModel, AutoTokenizer):
        loader.from_pretrained("me/teacher")  # which asks for no file of sentence-transformers
    monkeypatch.setattr(logging.getLogger("sensedict_hf"), "propagate", True)
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert load_teacher("me/teacher").pooling == "mean"
        assert "whether me/teacher has files of sentence-transformers is not known" in caplog.text
        caplog.clear()
        assert load_teacher("me/teacher", pooling="cls").pooling == "cls" and not caplog.text
    teacher = load_teacher("me/teacher")
    assert (teacher.pooling, teacher.revision) == ("cls", commit.oid) and not caplog.text
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert load_teacher("me/teacher").pooling == "cls"


def test_commands_push_what_is_finished(hub, teacher_folder, texts, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    common = ["--teacher", str(teacher_folder), "--texts", str(tmp_path / "texts.txt")]
    out, senses = str(tmp_path / "student"), str(tmp_path / "senses")
    assert main(["build", *common, "--output", senses, "--push-to-hub", "me/senses"]) == 0
    command = [
        "distill",
        *common,
        "--senses",
        senses,
        "--output",
        out,
        "--max-steps=1",
        "--report-to=none",
        "--use-cpu",
    ]
    assert main([*command, "--push-to-hub", "--hub-model-id", "me/student"]) == 0
    for name in ("senses", "student"):
        saved = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        pushed = hub.files(f"me/{name}")
        assert pushed["model.safetensors"] == saved["model.safetensors"] and "_distilling.json" not in pushed
    # A later command uploads the student that is finished already.
    assert main([*command, "--push-to-hub", "me/again"]) == 0
    assert hub.files("me/again").keys() == hub.files("me/student").keys()
    assert main([*command, "--push-to-hub", "me/a/b"]) == 2
