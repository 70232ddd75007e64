"""Code from a folder runs only with permission, which is never asked for."""

import json
import sys

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from sensedict_hf import (
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    build_sense_dictionary,
    load_senses,
    load_teacher,
)
from sensedict_hf.cli import main

CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).write_text("code has run")
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that remote code writes. A question that transformers asks is answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 5)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    return tmp_path / "mark"


def plant(folder, mark):
    """Put a tokenizer with code of its own into a folder."""
    (folder / "own_tokenizer.py").write_text(CODE.format(mark=str(mark)))
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("is_student", [False, True])
def test_a_tokenizer_with_code(bert, texts, tmp_path, mark, is_student, capsys):
    senses = build_sense_dictionary(bert, texts, budget=90)
    model = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1) if is_student else senses
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    plant(folder, mark)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_senses(folder).token_id("w3")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(folder).tokenizer  # noqa: B018
    assert main(["inspect", str(folder), "w3"]) == 2 and "trust_remote_code=True" in capsys.readouterr().err
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        build_sense_dictionary(bert, texts, tokenizer=str(folder))
    assert not mark.exists()
    assert load_senses(folder, trust_remote_code=True).token_id("w3") == senses.token_id("w3")
    assert mark.exists()
    for command in (["inspect", str(folder), "w3"], ["verify", str(folder)]):
        assert main([*command, "--trust-remote-code"]) == 0


def test_code_is_not_run_for_a_config_or_a_classifier(bert, texts, tmp_path, mark):
    folder = tmp_path / "model"
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "own.py").write_text(CODE.format(mark=str(mark)) + "OwnConfig = OwnModel = None")
    for load in (
        load_senses,
        load_teacher,
        SKDStudentForSequenceClassification.load_classifier,
        lambda path: build_sense_dictionary(path, texts),
    ):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            load(folder)
    assert not mark.exists()


def test_a_teacher_with_code_of_its_own_makes_no_student(bert, texts, tmp_path, mark):
    """A student that could not be loaded again is refused before it is trained."""
    folder = tmp_path / "teacher"
    bert.model.save_pretrained(folder)
    bert.tokenizer.save_pretrained(folder)
    (folder / "own_bert.py").write_text(
        "from transformers import BertConfig, BertModel\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own_bert'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    content = json.loads((folder / "config.json").read_text())
    content |= {
        "model_type": "own_bert",
        "auto_map": {"AutoConfig": "own_bert.OwnConfig", "AutoModel": "own_bert.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(content))
    teacher = load_teacher(folder, trust_remote_code=True)
    senses = build_sense_dictionary(folder, texts, budget=90, trust_remote_code=True)
    assert torch.equal(senses.table, build_sense_dictionary(bert, texts, budget=90).table)
    with pytest.raises(ValueError, match=r"OwnConfig comes with code of its own.*from_backbone"):
        SKDStudentModel.from_teacher(teacher, senses)
