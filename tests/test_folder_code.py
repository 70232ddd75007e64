"""Saved folders load where the package is not imported, and where it is not installed."""

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, build_once
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from sensedict_hf import (
    SKDStudentForCausalLM,
    SKDStudentForSequenceClassification,
    SKDStudentForTokenClassification,
    SKDStudentModel,
)

ROOT = Path(__file__).parents[1]
TEXTS = ["w1 w2 w3", "w27 w26 w26 w9", "w5"]
HIDE = """
import importlib.machinery, importlib.util, sys
sys.path = [path for path in sys.path if path not in ("", {root!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
find = importlib.machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name == "sensedict_hf" else find(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
assert importlib.util.find_spec("sensedict_hf") is None
"""


def run(script, tmp_path, hide=True):
    """Run a script in a fresh process, with an empty cache of code, and return what it has in `found`."""
    script += "\nimport json\nprint('\\n' + json.dumps(found))"
    cache = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **cache}
    if hide:
        del environment["PYTHONPATH"]
        script = HIDE.format(root=str(ROOT)) + script
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def student(bert, texts):
    return SKDStudentModel.from_teacher(bert, build_once(bert, texts, budget=90), assignment="soft")


def save_all(student, folder, **options):
    """Save a student, its dictionary, two heads, a student without layers and one that generates; return vectors."""
    config = LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64)
    tokenizer = student.tokenizer
    SKDStudentForCausalLM.from_teacher(LlamaForCausalLM(config), 2, tokenizer=tokenizer).save_pretrained(
        folder / "causal", **options
    )
    free = SKDStudentModel.from_teacher(student.teacher, student.senses, num_hidden_layers=0)
    free.save_pretrained(folder / "free", **options)
    student.save_pretrained(folder / "student", **options)
    student.senses.save_pretrained(folder / "senses", **options)
    for name, kind in [("texts", SKDStudentForSequenceClassification), ("tokens", SKDStudentForTokenClassification)]:
        kind.from_pretrained(folder / "student", num_labels=3).save_pretrained(folder / name, **options)
    return {"student": student.encode(TEXTS).tolist(), "free": free.encode(TEXTS).tolist()}


LOAD = """
import os
from transformers import AutoModel, AutoModelForTokenClassification, pipeline
os.chdir({folder!r})
found = {{name: AutoModel.from_pretrained(name, trust_remote_code=True).encode({texts!r}).tolist()
          for name in ("student", "free")}}
senses = AutoModel.from_pretrained("senses", trust_remote_code=True)
found["senses"] = len(senses.senses_of("w5"))
classify = pipeline("text-classification", model="texts", trust_remote_code=True)
found["classes"] = [row["score"] for row in classify({texts!r})]
tag = pipeline("token-classification", model="tokens", trust_remote_code=True)
found["tags"] = len(tag("w1 w2 w3"))
write = pipeline("text-generation", model="causal", trust_remote_code=True)
found["written"] = write("w1 w2", max_new_tokens=3)[0]["generated_text"][:5]
extract = pipeline("feature-extraction", model="student", trust_remote_code=True)
found["width"] = len(extract("w1 w2")[0][0])
try:
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("student", trust_remote_code=True, device="cpu")
    found["sentence_transformers"] = model.encode({texts!r}).tolist()
    model.save("copy")
    model = SentenceTransformer("copy", trust_remote_code=True, device="cpu")
    found["copy"] = model.encode({texts!r}).tolist()
except ModuleNotFoundError:
    pass
found["kinds"] = [type(model).__module__.split(".")[0] for model in (senses, classify.model, write.model)]
# What was loaded is saved again, and the copy loads, too.
AutoModel.from_pretrained("student", trust_remote_code=True).save_pretrained("again")
senses.save_pretrained("again_senses")
found["again"] = AutoModel.from_pretrained("again", trust_remote_code=True).encode({texts!r}).tolist()
"""


@pytest.mark.slow
@pytest.mark.parametrize("hide", [True, False], ids=["without the package", "with the package, without the code"])
def test_folders_load_without_an_import(student, bert, tmp_path, hide):
    student.teacher = bert
    expected = save_all(student, tmp_path, with_code=hide)
    found = run(LOAD.format(folder=str(tmp_path), texts=TEXTS), tmp_path, hide)
    for name in ("student", "free"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["again"], expected["student"], rtol=0, atol=1e-6)
    for name in {"sentence_transformers", "copy"} & found.keys():
        torch.testing.assert_close(found[name], expected["student"], rtol=1e-4, atol=1e-5)
    assert found["senses"] == len(student.senses.senses_of("w5")) and found["tags"] == 3 and found["width"] == 16
    # Where the package is installed, its own classes are loaded.
    assert found["kinds"] == ["transformers_modules" if hide else "sensedict_hf"] * 3
    assert found["written"] == "w1 w2"
    # What another process has saved from the code of a folder loads here.
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "again").encode(TEXTS), student.encode(TEXTS))
    for name in ("student", "senses"):
        copy = "again" if name == "student" else "again_senses"
        files = [{path.name for path in (tmp_path / folder).iterdir()} for folder in (name, copy)]
        assert files[0] == files[1] or not hide
        configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in (name, copy)]
        assert configs[0]["auto_map"] == configs[1]["auto_map"] and configs[0].keys() == configs[1].keys()


@pytest.mark.slow
def test_code_runs_only_with_permission(student, tmp_path):
    student.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "modeling_sensedict.py").write_text("raise RuntimeError('this was run')")
    # With the package, its classes are loaded and nothing of the folder is run; permission or not.
    for options in ({}, {"trust_remote_code": True}):
        assert type(AutoModel.from_pretrained(tmp_path / "student", **options)) is SKDStudentModel
    script = f"""
from transformers import AutoModel
found = []
for options in ({{}}, {{"trust_remote_code": False}}, {{"trust_remote_code": True}}):
    try:
        AutoModel.from_pretrained({str(tmp_path / "student")!r}, **options)
    except (ValueError, RuntimeError) as error:
        found.append(str(error))
"""
    *refused, run_at_last = run(script, tmp_path)
    assert len(refused) == 2 and all("trust_remote_code=True" in message for message in refused)
    assert run_at_last == "this was run"


@pytest.mark.slow
def test_without_code_the_folder_asks_for_the_package(student, tmp_path):
    student.save_pretrained(tmp_path / "student", with_code=False)
    assert [path.name for path in (tmp_path / "student").glob("*.py")] == ["modeling_sensedict.py"]
    script = f"""
from transformers import AutoModel
try:
    AutoModel.from_pretrained({str(tmp_path / "student")!r}, trust_remote_code=True)
except ImportError as error:
    found = str(error)
"""
    assert run(script, tmp_path).endswith("pip install sensedict_hf")


def test_no_file_hides_a_library(student, tmp_path):
    """Python run inside the folder must not take its files for modules of the same name."""
    student.save_pretrained(tmp_path)
    names = {path.stem for path in tmp_path.glob("*.py")}
    assert not names & (set(sys.stdlib_module_names) | set(packages_distributions()))


def test_the_code_is_named_once(student, tmp_path):
    """The dictionary's own code is not named in the config of a student, wherever it was loaded from."""
    student.senses.save_pretrained(tmp_path / "senses")
    student.replace_senses(AutoModel.from_pretrained(tmp_path / "senses"))
    student.save_pretrained(tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_sensedict.SKDStudentModel"
    assert "auto_map" not in config["sense_config"] and "auto_map" not in config["text_config"]
