"""Students without layers that start from the teacher's vectors of texts, without a dictionary."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_models import make_model
from transformers import AutoModel, BertForTokenClassification

from sensedict_hf import (
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    TeacherVectors,
    build_sense_dictionary,
    distill_student,
    encode_senses,
    encode_vectors,
)
from sensedict_hf.cli import main
from sensedict_hf.distillation import layer_free, teacher_runs, vectors
from sensedict_hf.distillation.dry_run import estimate_distillation
from sensedict_hf.distillation.start import StudentStart
from sensedict_hf.models.layer_free_transfer import PSEUDO_COUNTS, encode_tokens

SETTINGS = dict(max_steps=12, per_device_train_batch_size=20, report_to="none", disable_tqdm=True, use_cpu=True)
SPECIAL = [2, 3]


@pytest.fixture
def stored(bert, texts, tmp_path):
    """The vectors of the texts, in two folders."""
    folders = [tmp_path / "vectors" / name for name in "ab"]
    for folder, some in zip(folders, (texts[:20], texts[20:])):
        encode_vectors(bert, some, folder, special_token_ids=SPECIAL)
    return TeacherVectors(*folders)


def test_it_starts_with_the_mean_vector_of_each_token(bert, stored):
    """Two occurrences of the token alone count too."""
    rows = [(int(token), vector) for row in stored for token, vector in zip(row["input_ids"], row["vectors"])]
    alone = encode_tokens(bert, 32)
    student = SKDStudentModel.from_vectors(bert, stored, text_hidden_size=0)
    table = student.get_input_embeddings().weight * student.backbone.config.vector_scale
    for token in range(4, 32):
        own = [vector.float() for each, vector in rows if each == token]
        expected = (torch.stack([alone[token]] * PSEUDO_COUNTS + own)).mean(0)
        torch.testing.assert_close(table[token], expected, rtol=1e-4, atol=1e-4)
    assert student.config.num_hidden_layers == 0 and student.config.sense_config.num_tokens == len(rows)


def test_it_is_the_student_of_a_dictionary_but_for_rounding(bert, texts, stored):
    """One of senses that are the vectors themselves. Their frequencies count special tokens too."""
    senses = build_sense_dictionary(bert, texts, budget=1000, sample_dtype="float32", senses_dtype="float32")
    other = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0)
    student = SKDStudentModel.from_vectors(bert, stored)
    tables = [each.get_input_embeddings().weight * each.backbone.config.vector_scale for each in (student, other)]
    torch.testing.assert_close(tables[0][4:], tables[1][4:], rtol=1e-2, atol=2e-3)
    directions = [each.backbone.context_directions.weight.detach()[:, :8] for each in (student, other)]
    assert torch.linalg.svdvals(directions[0].T @ directions[1])[:6].min() > 0.95  # they span the same space
    for name in ("base_model_name_or_path", "base_model_fingerprint", "tokenizer_fingerprint", "layer", "vocab_size"):
        assert getattr(student.config.sense_config, name) == getattr(senses.config, name)


def test_it_is_trained_saved_and_loaded(bert, stored, texts, tmp_path):
    student = SKDStudentModel.from_vectors(bert, stored)
    before = (student.encode(texts) - bert.encode(texts)).square().mean()
    args = SKDTrainingArguments(str(tmp_path / "run"), save_strategy="no", **SETTINGS)
    SKDTrainer(student, args, teacher=bert, train_dataset=stored).train()
    assert (student.encode(texts) - bert.encode(texts)).square().mean() < 0.7 * before
    student.save_pretrained(tmp_path / "student")
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "student").encode(texts), student.encode(texts))


def test_distilling_needs_no_dictionary_and_one_pass(bert, texts, tmp_path, monkeypatch):
    """An interrupted call continues with the vectors that are there."""
    read = []
    hidden_states = Teacher.hidden_states

    def counted(self, input_ids, *arguments):
        read.append(input_ids.numel())
        return hidden_states(self, input_ids, *arguments)

    monkeypatch.setattr(Teacher, "hidden_states", counted)

    def distill(folder):
        args = SKDTrainingArguments(str(tmp_path / folder), save_steps=4, **SETTINGS)
        return distill_student(bert, None, texts, args=args, num_hidden_layers=0)

    straight = distill("straight")
    tokens = sum(map(len, bert.tokenizer(texts)["input_ids"]))
    assert sum(read) < 1.7 * tokens  # with padding, and each token of the vocabulary alone
    step = SKDTrainer.training_step

    def fail(self, *arguments):
        if self.state.global_step == 6:
            raise OSError("the machine is gone")
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(SKDTrainer, "training_step", fail)
        distill("stopped")
    monkeypatch.setattr(vectors, "_encode_part", None)  # the teacher's work is done
    student = distill("stopped")
    assert all(torch.equal(one, other) for one, other in zip(straight.parameters(), student.parameters()))
    assert student.config.sense_config.num_senses == 0


def test_a_head_is_kept(bert, texts, tmp_path):
    classifier = BertForTokenClassification(replace_labels(bert.model.config)).eval()
    classifier.bert.load_state_dict({k: v for k, v in bert.model.state_dict().items() if "pooler" not in k})
    classifier.save_pretrained(tmp_path / "tagger")
    bert.tokenizer.save_pretrained(tmp_path / "tagger")
    args = SKDTrainingArguments(str(tmp_path / "run"), save_strategy="no", **SETTINGS)
    student = distill_student(
        str(tmp_path / "tagger"), None, texts, args=args, num_hidden_layers=0, head="token_classification"
    )
    assert torch.equal(student.classifier.weight, classifier.classifier.weight)
    assert student(**bert.tokenizer(texts[:1], return_tensors="pt")).logits.shape[-1] == 3


def replace_labels(config):
    config = type(config)(**config.to_dict())
    config.num_labels = 3
    return config


def test_the_command_and_its_dry_run(teacher_folder, texts, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    command = ["distill", "--teacher", str(teacher_folder), "--texts", str(tmp_path / "texts.txt")]
    command += ["--num-hidden-layers", "0", "--output", str(tmp_path / "student"), "--max-steps", "3", "--use-cpu"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "student").exists()
    assert main(command) == 0
    parameters = capsys.readouterr().out.split()[0]
    assert parameters in said  # the student that it made has the same size
    assert json.loads((tmp_path / "student" / "config.json").read_text())["sense_config"]["num_senses"] == 0


def test_what_is_refused(bert, stored, texts, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="assignment='soft': vectors hold no senses"):
        SKDStudentModel.from_vectors(bert, stored, assignment="soft")
    with pytest.raises(ValueError, match="computed with pooling=mean, here it is cls"):
        SKDStudentModel.from_vectors(replace(bert, pooling="cls"), stored)
    with pytest.raises(ValueError, match="the vectors are of tiny-bert with other weights.* than another has"):
        SKDStudentModel.from_vectors(replace(bert, model=make_model("bert"), name="another"), stored)
    assert SKDStudentModel.from_vectors(replace(bert, name="a copy"), stored).config.num_hidden_layers == 0
    for given in (str(stored.paths[0]), texts):
        with pytest.raises(ValueError, match="vectors.*what encode_vectors returns"):
            SKDStudentModel.from_vectors(bert, given)
    for computed in ("num_hidden_layers", "default_residual"):
        with pytest.raises(ValueError, match=f"a student has no setting '{computed}'"):
            SKDStudentModel.from_vectors(bert, stored, **{computed: 0})
    args = SKDTrainingArguments(str(tmp_path / "run"), save_strategy="no", **SETTINGS)
    with pytest.raises(ValueError, match=r"only students without layers \(num_hidden_layers=0\)"):
        distill_student(bert, None, texts, args=args, num_hidden_layers=1)
    # Before the teacher reads the texts.
    monkeypatch.setattr(layer_free, "encode_vectors", None)
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    with pytest.raises(ValueError, match="which a stream does not allow"):
        distill_student(bert, None, stream, args=args, num_hidden_layers=0)
    args = SKDTrainingArguments(str(tmp_path / "run"), save_strategy="no", objective="sense", **SETTINGS)
    with pytest.raises(ValueError, match="does not learn to pick senses"):
        distill_student(bert, None, texts, args=args, num_hidden_layers=0)
    for wrong in ({"assignment": "soft"}, {"residual": 0.5}):
        with pytest.raises(ValueError, match="without senses: the student returns its own vectors"):
            distill_student(bert, None, texts, args=args, num_hidden_layers=0, **wrong)
    args = SKDTrainingArguments(str(tmp_path / "run"), save_strategy="no", eval_strategy="epoch", **SETTINGS)
    with pytest.raises(ValueError, match="needs an eval_dataset"):
        distill_student(bert, None, texts, args=args, num_hidden_layers=0)


def test_a_call_that_was_refused_can_be_corrected(bert, texts, tmp_path):
    args = SKDTrainingArguments(str(tmp_path), save_strategy="no", **SETTINGS)
    with pytest.raises(ValueError, match="the corpus is empty"):
        distill_student(bert, None, ["", " "], args=args, num_hidden_layers=0)
    assert distill_student(bert, None, texts, args=args, num_hidden_layers=0).encode(texts[:2]).shape == (2, 16)


def test_files_that_are_missing_or_changed_are_not_believed(bert, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_runs, "PART_TOKENS", 100)
    rows = len(encode_vectors(bert, texts, tmp_path))
    parts = sorted(tmp_path.glob("part-*"))
    # A file of another run has no rows here.
    shutil.copyfile(parts[0], tmp_path / "part-99999.safetensors")
    assert len(TeacherVectors(tmp_path)) == rows
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-8])
    with pytest.raises(ValueError, match=f"{parts[1].name} is not the file that encode_vectors has written"):
        TeacherVectors(tmp_path)
    parts[1].unlink()
    with pytest.raises(ValueError, match=f"{parts[1].name} is missing: compute the vectors again"):
        TeacherVectors(tmp_path)
    parts[1].write_bytes(content)
    # Links are fine, as in a cache.
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tmp_path.glob("*.*"):
        (linked / path.name).symlink_to(path)
    assert len(TeacherVectors(linked)) == rows
    state = tmp_path / "state.json"
    state.write_text(state.read_text().replace('"pooling": "mean"', '"pooling": "last"'))
    with pytest.raises(ValueError, match=r"state\.json is not the file"):
        TeacherVectors(tmp_path)


def test_a_folder_of_senses_holds_no_vectors(bert, senses, texts, tmp_path):
    encode_senses(bert, senses, texts, output_dir=tmp_path)
    with pytest.raises(ValueError, match="holds no finished vectors"):
        TeacherVectors(tmp_path)


def test_tokens_of_another_vocabulary_are_refused(stored):
    with pytest.raises(ValueError, match="the vectors have tokens from .* to 31, the tokenizer from 0 to 30"):
        stored.token_statistics(31)


def test_a_dry_run_counts_the_steps_of_a_run(bert, texts, tmp_path):
    args = SKDTrainingArguments(str(tmp_path), per_device_train_batch_size=16, report_to="none")
    said = estimate_distillation(bert, None, texts, args, StudentStart(num_hidden_layers=0))
    assert said["steps"] == 40 and said["texts"] == len(texts)
    assert not list(tmp_path.iterdir())
    # The first texts may be empty, and what a run refuses is refused here too.
    start = StudentStart(num_hidden_layers=0)
    assert estimate_distillation(bert, None, [""] * 10 + texts, args, start)["texts"] == len(texts) + 10
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    with pytest.raises(ValueError, match="which a stream does not allow"):
        estimate_distillation(bert, None, stream, args, start)
    args = SKDTrainingArguments(str(tmp_path), objective="sense", report_to="none")
    with pytest.raises(ValueError, match="does not learn to pick senses"):
        estimate_distillation(bert, None, texts, args, start)
