"""Students distilled into a folder: what is continued, what is refused, and what Python and the command share."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_models import SIZES, WORDS, build_once, make_tokenizer
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from sensedict_hf import (
    Prompt,
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    build_sense_dictionary,
    distill_student,
)
from sensedict_hf.cli import main
from sensedict_hf.distillation.dry_run import estimate_distillation
from sensedict_hf.distillation.run_folder import STATE
from sensedict_hf.distillation.start import StudentStart
from sensedict_hf.models.sentence_head import make_sentence_head

QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=120)


def settings(folder, **changed):
    values = {"num_train_epochs": 2, "save_strategy": "epoch", "use_cpu": True, "report_to": "none"} | changed
    return SKDTrainingArguments(str(folder), disable_tqdm=True, **values)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_after(steps, monkeypatch):
    """Lets a training fail after so many steps."""
    done, step = [], SKDTrainer.training_step

    def training_step(self, *arguments):
        if len(done) == steps:
            raise OSError("the machine is gone")
        done.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(SKDTrainer, "training_step", training_step)


@pytest.mark.slow
def test_an_interrupted_call_continues(bert, senses, texts, tmp_path, monkeypatch):
    straight = distill_student(bert, senses, texts, args=settings(tmp_path / "straight"))
    with monkeypatch.context() as patch, pytest.raises(OSError):
        stop_after(3, patch)
        distill_student(bert, senses, texts, args=settings(tmp_path / "stopped"))
    assert not (tmp_path / "stopped" / "config.json").exists()
    for changed, message in [({"seed": 1}, "seed was 42, is 1"), ({"mse_weight": 1.0}, "mse_weight was 3.0, is 1.0")]:
        with pytest.raises(ValueError, match=f"a run with other settings: {message}; give the same, another folder"):
            distill_student(bert, senses, texts, args=settings(tmp_path / "stopped", **changed))
    with pytest.raises(ValueError, match="num_hidden_layers was 2, is 1"):
        distill_student(bert, senses, texts, args=settings(tmp_path / "stopped"), num_hidden_layers=1)
    with pytest.raises(ValueError, match="corpus was .*, is"):
        distill_student(bert, senses, texts[1:], args=settings(tmp_path / "stopped"))
    stop_after(2, monkeypatch)  # the steps of the second epoch are left
    stopped = distill_student(bert, senses, texts, args=settings(tmp_path / "stopped"))
    assert same_weights(straight, stopped) and not stopped.training
    assert json.loads((tmp_path / "stopped" / STATE).read_text())["finished"]
    stop_after(0, monkeypatch)
    assert same_weights(straight, distill_student(bert, senses, texts, args=settings(tmp_path / "stopped")))
    with pytest.raises(OSError):
        distill_student(bert, senses, texts, args=settings(tmp_path / "stopped", seed=1), overwrite=True)


@pytest.mark.slow
def test_the_command_and_python_share_a_folder(bert, senses, texts, teacher_folder, tmp_path, monkeypatch):
    """Also with objects instead of names."""
    senses.save_pretrained(tmp_path / "senses")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    output = tmp_path / "student"
    command = ["distill", "--teacher", str(teacher_folder), "--senses", str(tmp_path / "senses"), "--use-cpu"]
    command += ["--texts", str(tmp_path / "texts.jsonl"), "--save-strategy", "epoch", "--output", str(output)]
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert main(command) == 2
    state = json.loads((output / STATE).read_text())
    assert {
        "teacher": "teacher",
        "senses": "senses",
        "texts": ["texts.jsonl"],
        "adapters": [],
    }.items() <= state.items()
    stop_after(2, monkeypatch)
    student = distill_student(str(teacher_folder), tmp_path / "senses", texts, args=settings(output))
    assert main(command) == 0
    assert same_weights(
        student, distill_student(bert, senses, Dataset.from_dict({"text": texts}), args=settings(output))
    )


@pytest.mark.slow
def test_what_a_student_starts_from(bert, senses, texts, teacher_folder, tmp_path):
    args = dict(num_train_epochs=1, save_strategy="no")
    student = distill_student(bert, senses, texts, args=settings(tmp_path / "layers", **args), layers=[1, 3])
    assert student.config.teacher_layers == [1, 3]
    student = distill_student(
        bert,
        senses,
        texts,
        args=settings(tmp_path / "b", **args),
        backbone=bert.model,
        residual=0.25,
        assignment="hard",
    )
    assert student.config.num_hidden_layers == 4 and student.config.default_residual == 0.25
    foreign = Teacher(bert.model, make_tokenizer(WORDS[::-1]), name="foreign", max_window=64)
    student = distill_student(
        bert, senses, texts, args=settings(tmp_path / "f", **args), backbone=foreign, adopt_tokenizer=True
    )
    assert student.tokenizer.get_vocab() == bert.tokenizer.get_vocab() and student.config.teacher_layers is None
    classifier = BertForSequenceClassification.from_pretrained(teacher_folder, num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "classifier")
    given = build_sense_dictionary(tmp_path / "classifier", texts, budget=120), texts
    for _ in range(2):  # the second time it is there already
        student = distill_student(
            tmp_path / "classifier",
            *given,
            args=settings(tmp_path / "head", **args),
            head="sequence_classification",
            teacher_options={"pooling": "cls"},
        )
        assert isinstance(student, SKDStudentForSequenceClassification) and student.config.pooling == "cls"
        assert torch.equal(student.classifier.weight, classifier.classifier.weight)


def test_what_is_refused_before_the_work(bert, senses, texts, tmp_path):
    for arguments, message in [
        ({}, "give either output_dir"),
        ({"output_dir": tmp_path, "args": settings(tmp_path)}, "give either output_dir"),
        ({"backbone": bert, "layers": [0]}, "layers and backbone: .* give one of them"),
        ({"num_hidden_layers": 1, "layers": [0]}, "num_hidden_layers and layers: .* give one of them"),
        ({"num_hidden_layers": 2, "backbone": bert}, "num_hidden_layers and backbone: .* give one of them"),
        ({"layers": []}, "give a number from 1"),
        ({"adopt_tokenizer": True}, "adopt_tokenizer is for a backbone, but none is given"),
        (
            {"head": "tagging"},
            "unknown head 'tagging': choose one of causal_lm, sequence_classification, token_classification",
        ),
        ({"head": "token_classification"}, "Teacher is no model with a head: pass a name, a path"),
        ({"head": "token_classification", "teacher_options": {"adapters": ["a"]}}, "merge them first"),
        ({"eval_texts": texts}, "set eval_strategy to epoch or steps"),
        ({"args": settings(tmp_path, resume_from_checkpoint="x")}, "repeat the same call or command"),
        ({"teacher_options": {"bidirectional": True}}, "bidirectional= cannot be given with a Teacher"),
        ({"num_hidden_layers": 9}, "has layers 0 to 3"),
    ]:
        if arguments and not {"args", "output_dir"} & arguments.keys():
            arguments["output_dir"] = tmp_path
        with pytest.raises(ValueError, match=message):
            distill_student(bert, senses, texts, **arguments)
    with pytest.raises(ValueError, match="texts is a generator, which can be read only once"):
        distill_student(bert, senses, (text for text in texts), output_dir=tmp_path)
    assert not list(tmp_path.iterdir())  # the next call may be another one
    bert.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model that no sensedict distill has put there"):
        distill_student(bert, senses, texts, output_dir=tmp_path)
    shutil.rmtree(tmp_path)


def test_the_origin_of_a_stream_can_be_recorded(bert, senses, tmp_path):
    stream = Dataset.from_dict({"text": [" ".join(WORDS)] * 8}).to_iterable_dataset()
    args = settings(tmp_path, max_steps=1, save_strategy="no")
    for _ in range(2):
        distill_student(bert, senses, stream, args=args, recorded={"origin": "words"})
    with pytest.raises(ValueError, match="origin was words, is others"):
        distill_student(bert, senses, stream, args=args, recorded={"origin": "others"})


def test_what_another_program_has_left_is_kept(bert, senses, texts, tmp_path):
    """Checkpoints of another run in the folder are not removed, unless overwrite says so."""
    checkpoint = tmp_path / "run" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"hours of work")
    args = SKDTrainingArguments(str(tmp_path / "run"), **QUIET, max_steps=1)
    with pytest.raises(ValueError, match="holds a checkpoint-2 that no sensedict distill has put there"):
        distill_student(bert, senses, texts, args=args)
    assert (checkpoint / "model.safetensors").exists()
    distill_student(bert, senses, texts, args=args, overwrite=True)
    assert not checkpoint.exists()


@pytest.mark.parametrize("name", ["vocab.txt", "README.md", "prompts.py"])
def test_files_of_the_user_are_not_replaced(bert, senses, texts, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds a {name} that no sensedict distill has put there"):
        distill_student(bert, senses, texts, args=SKDTrainingArguments(str(tmp_path), **QUIET, max_steps=1))
    assert (tmp_path / name).read_text() == "mine"


def test_texts_that_choose_the_checkpoint_are_remembered(bert, senses, texts, tmp_path):
    settings = dict(max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    settings |= dict(load_best_model_at_end=True, metric_for_best_model="sense_accuracy")
    args = SKDTrainingArguments(str(tmp_path), **QUIET | settings)
    distill_student(bert, senses, texts, args=args, eval_texts=texts[:3])
    distill_student(bert, senses, texts, args=args, eval_texts=texts[:3])  # finished already
    with pytest.raises(ValueError, match="eval_corpus"):
        distill_student(bert, senses, texts, args=args, eval_texts=texts[3:6])


def test_a_student_with_another_backbone_encodes_as_its_teacher_does(bert, texts, tmp_path):
    """It has the dense layer and the prompts of the teacher, and none of the backbone."""
    steps = [{"kind": "dense", "in_features": 16, "out_features": 8, "bias": True, "activation": "Tanh"}]
    head = make_sentence_head(steps)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape)
    teacher = replace(bert, sentence_head_steps=steps, sentence_head=head)
    senses = build_sense_dictionary(teacher, texts, budget=90)
    other = replace(bert, name="other", prompt=Prompt("w1 {text}", pooled="all"), prompts={"query": "w5 "})
    args = SKDTrainingArguments(str(tmp_path), **QUIET, max_steps=1)
    student = distill_student(teacher, senses, texts, args=args, backbone=other)
    assert student.encode(texts[:3]).shape == teacher.encode(texts[:3]).shape == (3, 8)
    for name, value in head.state_dict().items():
        assert torch.equal(student.sentence_head.state_dict()[name], value)
    assert student.config.prompt is None and not student.config.prompts
    plain = SKDStudentModel.from_backbone(replace(other, sentence_head_steps=steps, sentence_head=head), senses)
    assert plain.config.prompt is None and plain.sentence_head is None and plain.encode(texts[:3]).shape == (3, 16)


@pytest.mark.parametrize("num_hidden_layers", [0, 2])
def test_a_dry_run_counts_the_steps_of_a_run(bert, senses, texts, tmp_path, monkeypatch, num_hidden_layers):
    """Long texts are cut into windows, and a student without layers has defaults of its own."""
    senses.save_pretrained(tmp_path / "senses")
    given = [" ".join(texts)] * 3 + texts * 8
    args = SKDTrainingArguments(str(tmp_path / "run"), **QUIET, per_device_train_batch_size=16)
    start = StudentStart(num_hidden_layers=num_hidden_layers)
    said = estimate_distillation(bert, str(tmp_path / "senses"), given, args, start)["steps"]
    steps, train = [], SKDTrainer.train

    def watched(self, *arguments, **options):
        result = train(self, *arguments, **options)
        steps.append(self.state.max_steps)
        return result

    monkeypatch.setattr(SKDTrainer, "train", watched)
    distill_student(bert, senses, given, args=args, num_hidden_layers=num_hidden_layers)
    assert steps == [said]


def test_a_dry_run_knows_what_is_read(tokenizer, texts, tmp_path):
    """Texts are cut where a run cuts them, and the teacher runs once or at every step, as in a run."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES, max_position_embeddings=1030)).eval()
    teacher = Teacher(model, tokenizer, name="wide-bert", max_seq_length=1030, max_window=1030)
    build_once(teacher, texts, budget=120).save_pretrained(tmp_path / "senses")
    start = StudentStart(num_hidden_layers=1)

    def said(**changed):
        args = SKDTrainingArguments(str(tmp_path / "run"), **QUIET, per_device_train_batch_size=2, **changed)
        return estimate_distillation(teacher, str(tmp_path / "senses"), [" ".join(texts * 2)] * 4, args, start)

    assert said()["tokens, about"] == said(max_length=512)["tokens, about"] > said(max_length=1000)["tokens, about"]
    with pytest.raises(ValueError, match="max_length=100000"):
        said(max_length=100_000)
    every, once = said(num_train_epochs=50), said(num_train_epochs=50, cache_vectors=True)
    assert every["teacher, seconds"] > 10 * once["teacher, seconds"]
