import dataclasses
import json
import re
import runpy
import shutil
import subprocess
import sys
from inspect import signature

import pytest
import torch
from tiny_models import SIZES
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    BertModel,
)

from sensedict_cli import common as cli_common
from sensedict_cli import options as cli_options
from sensedict_cli import rename_options
from sensedict_hf import (
    Prompt,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    distill_student,
    load_teacher,
)
from sensedict_hf.building.settings import METHODS
from sensedict_hf.cli import main, teacher
from sensedict_hf.distillation.start import HEADS
from sensedict_hf.evaluation.scores import evaluate_retrieval
from sensedict_hf.evaluation.tasks import TASKS
from sensedict_hf.models import configuration_sense_embedding as configuration
from sensedict_hf.models.encoding import POOLINGS

# The required arguments of each subcommand.
NEEDED = {
    "build": ["--teacher", "m", "--texts", "t", "--output", "o"],
    "convert": ["d", "--output", "o"],
    "merge": ["d", "--budget", "5", "--output", "o"],
    "info": ["d"],
    "card": ["d"],
    "verify": ["d"],
    "inspect": ["d", "w1"],
    "distill": ["--teacher", "m", "--senses", "d", "--texts", "t", "--output", "o"],
    "evaluate": ["--model", "m"],
    "export": ["s", "--output", "o"],
    "index": ["search", "d", "question"],
    "demo": [],
}


@pytest.fixture
def files(texts, tmp_path):
    """A training and a test file. The label of a text tells whether its first word is a frequent one."""
    rows = [json.dumps({"text": text, "label": int(int(text.split()[0][1:]) > 18)}) for text in texts]
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:40]))
    (tmp_path / "test.jsonl").write_text("\n".join(rows[40:]))
    return str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
def test_the_whole_path(capsys, files, teacher_folder, tmp_path):
    train, test = files
    senses, student, scores = tmp_path / "senses", tmp_path / "student", tmp_path / "scores.json"
    status, out, _ = run(
        capsys, "build", "--teacher", teacher_folder, "--texts", train, "--budget", 90, "--output", senses
    )
    assert status == 0 and "90 senses of 29 tokens, from 40 texts" in out
    assert len(AutoModel.from_pretrained(senses).senses) == 90

    distill = ["distill", "--teacher", teacher_folder, "--senses", senses, "--texts", train, "--epochs", 1]
    status, out, _ = run(capsys, *distill, "--num-hidden-layers", 1, "--output", student)
    assert status == 0 and AutoModel.from_pretrained(student).config.num_hidden_layers == 1
    status, out, _ = run(capsys, *distill, "--layers", 0, 3, "--objective", "mse", "--output", tmp_path / "mse")
    assert status == 0 and AutoModel.from_pretrained(tmp_path / "mse").config.teacher_layers == [0, 3]
    returned = ["--assignment", "hard", "--residual", "0.25"]
    status, out, _ = run(capsys, *distill, "--backbone", teacher_folder, *returned, "--output", tmp_path / "other")
    config = AutoModel.from_pretrained(tmp_path / "other").config
    assert status == 0 and (config.default_assignment, config.default_residual) == ("hard", 0.25)

    tagger = BertForTokenClassification.from_pretrained(teacher_folder, num_labels=5)
    tagger.save_pretrained(tmp_path / "tagger")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "tagger")
    head = [
        "distill",
        "--teacher",
        tmp_path / "tagger",
        "--senses",
        senses,
        "--texts",
        train,
        "--head",
        "token_classification",
    ]
    for _ in range(2):  # the second run finds a finished student
        status, out, _ = run(capsys, *head, "--output", tmp_path / "head")
        assert status == 0 and "parameters and" in out
    student_tagger = AutoModelForTokenClassification.from_pretrained(tmp_path / "head")
    assert torch.equal(student_tagger.classifier.weight, tagger.classifier.weight) and student_tagger.config.objective

    status, out, _ = run(capsys, "convert", senses, "--dtype", "int8", "--output", tmp_path / "small")
    assert status == 0 and AutoModel.from_pretrained(tmp_path / "small").senses.dtype == torch.int8
    status, out, _ = run(capsys, "merge", senses, tmp_path / "small", "--budget", 95, "--output", tmp_path / "merged")
    assert status == 0 and "95 senses" in out and len(AutoModel.from_pretrained(tmp_path / "merged").senses) == 95
    status, out, _ = run(
        capsys, "merge", tmp_path / "head", "--budget", 29, "--output", tmp_path / "small-head"
    )  # a student stays one
    smaller = AutoModelForTokenClassification.from_pretrained(tmp_path / "small-head")
    assert status == 0 and "29 senses" in out and len(smaller.student.senses.senses) == 29
    assert torch.equal(smaller.classifier.weight, tagger.classifier.weight)
    status, _, err = run(capsys, "convert", student, "--dtype", "int8", "--output", student)
    assert status == 2 and "is not empty" in err and AutoModel.from_pretrained(student).config.num_hidden_layers == 1
    run(capsys, "convert", student, "--dtype", "int8", "--output", tmp_path / "int8")
    assert AutoModel.from_pretrained(tmp_path / "int8").config.sense_config.senses_dtype == "int8"

    results = {}
    for name, arguments in {
        "teacher": ["--model", teacher_folder],
        "quantized": ["--model", teacher_folder, "--senses", senses],
        "student": ["--model", student],
        "raw": ["--model", student, "--assignment", "none"],
    }.items():
        status, out, _ = run(capsys, "evaluate", *arguments, "--train", train, "--test", test, "--output", scores)
        results[name] = json.loads(scores.read_text())
        assert status == 0 and {"few_shot", "few_shot_std", "full"} <= results[name].keys()
        assert f"{results[name]['full']:.4f}" in out and "| few-shot" in out
        output = {"teacher": "raw", "quantized": "soft", "student": "soft, residual 0.5", "raw": "raw"}[name]
        assert f"| {output} |" in out
    assert results["teacher"]["few_shot"] != results["quantized"]["few_shot"]
    assert results["student"]["few_shot"] != results["raw"]["few_shot"]

    for folder in (senses, student):
        status, out, _ = run(capsys, "inspect", folder, "w25", "--texts", train, "--teacher", teacher_folder)
        assert status == 0 and "sense 0:" in out and "[w25]" in out
    assert run(capsys, "inspect", senses, "[CLS]")[0] == 0


def test_words_of_a_student_without_layers_have_the_output_that_is_named(bert, texts, tmp_path, capsys):
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses, 0, assignment="soft", residual=0.5)
    student.save_pretrained(tmp_path / "student")
    rows = [{"tokens": text.split(), "tags": ["B-a" if "1" in w else "O" for w in text.split()]} for text in texts]
    files = [tmp_path / name for name in ("train.jsonl", "test.jsonl")]
    for file in files:
        file.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--task", "tokens", "--model", tmp_path / "student", "--train", files[0], "--test", files[1]]
    for more, output in (
        ([], "soft, residual 0.5"),
        (["--residual", 0.2], "soft, residual 0.2"),
        (["--assignment", "none"], "raw"),
    ):
        status, out, _ = run(capsys, "evaluate", *arguments, *more)
        assert status == 0 and f"| {output} |" in out


def test_info_says_what_a_folder_holds(bert, texts, teacher_folder, tmp_path, capsys):
    bert.prompt = Prompt(instruction="w1 | w2")
    senses = build_sense_dictionary(bert, texts, budget=90)
    senses.save_pretrained(tmp_path / "senses")
    SKDStudentModel.from_teacher(bert, senses).save_pretrained(tmp_path / "student")
    status, out, _ = run(capsys, "info", tmp_path / "student", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["kind"] == "SKDStudentModel" and facts["pooling"] == "mean"
    assert facts["senses"] == f"{senses.config.num_senses} of width 16, float16"
    assert facts["prompt: instruction"] == "'w1 | w2'"
    status, out, _ = run(capsys, "info", tmp_path / "senses")
    assert status == 0 and re.search(r"^teacher +tiny-bert$", out, re.M) and "None" not in out
    status, _, err = run(capsys, "info", teacher_folder)
    assert status == 2 and "holds a bert model" in err and err.count("\n") == 1
    status, _, err = run(capsys, "info", tmp_path)
    assert status == 2 and "there is no config.json" in err


@pytest.mark.slow
def test_convert_stores_the_tables_of_a_student_without_layers(capsys, bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    for name, settings in {"own": {}, "assigned": {"assignment": "hard"}}.items():
        student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0, **settings)
        student.save_pretrained(tmp_path / name)
        status, out, _ = run(capsys, "convert", tmp_path / name, "--dtype", "int8", "--output", tmp_path / f"{name}-8")
        assert status == 0 and "MB with tables in float32" in out
        converted = AutoModel.from_pretrained(tmp_path / f"{name}-8")
        assert converted.backbone.token_embeddings.weight.dtype == torch.int8
        assert converted.config.sense_config.senses_dtype == "int8"
        assert len(converted.senses.table) == len(student.senses.table)
        expected = student.encode(texts[:5])
        torch.testing.assert_close(converted.encode(texts[:5]), expected, rtol=0.1, atol=0.1)
    status, _, err = run(capsys, "convert", tmp_path / "own", "--dtype", "float16", "--output", tmp_path / "half")
    assert status == 2 and "--dtype float16: the tables" in err and not (tmp_path / "half").exists()
    status, out, _ = run(
        capsys, "convert", tmp_path / "assigned", "--dtype", "bfloat16", "--output", tmp_path / "half"
    )
    assert status == 0 and "with tables in float32" in out
    assert AutoModel.from_pretrained(tmp_path / "half").config.sense_config.senses_dtype == "bfloat16"


def test_evaluate_takes_students_without_layers_that_return_senses(capsys, bert, texts, files, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0, assignment="soft").save_pretrained(tmp_path / "s")
    data = ["--train", files[0], "--test", files[1]]
    status, out, _ = run(capsys, "evaluate", "--model", tmp_path / "s", *data)
    assert status == 0 and "| raw |" in out
    status, _, err = run(capsys, "evaluate", "--model", tmp_path / "s", *data, "--residual", "0.3")
    assert status == 2 and "--residual 0.3 with the student's own vectors" in err


def test_distill_reads_a_file_and_continues_an_interrupted_run(capsys, files, teacher_folder, tmp_path, monkeypatch):
    run(
        capsys,
        "build",
        "--teacher",
        teacher_folder,
        "--texts",
        files[0],
        "--budget",
        90,
        "--output",
        tmp_path / "senses",
    )
    settings = {
        "teacher": str(teacher_folder),
        "senses": str(tmp_path / "senses"),
        "texts": [files[0]],
        "num_train_epochs": 3,
    }
    settings["eval_delay"] = -1e-9  # argparse would take -1e-09 alone for an option
    settings |= {
        "learning_rate": "1e-2",
        "objective": "sense+mse",
        "save_strategy": "epoch",
        "use_cpu": True,
        "layers": None,
    }
    settings["eval_strategy"] = False  # YAML reads no as False
    (tmp_path / "run.json").write_text(json.dumps(settings))
    (tmp_path / "run.yaml").write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()))
    status, out, _ = run(
        capsys, "distill", tmp_path / "run.yaml", "--num-hidden-layers", 1, "--output", tmp_path / "straight"
    )
    assert status == 0 and "parameters and" in out

    command = ["distill", tmp_path / "run.json", "--num-hidden-layers", 1, "--output", tmp_path / "stopped"]
    step, steps = SKDTrainer.training_step, []

    def stop_in_the_third_epoch(self, *arguments, **options):
        steps.append(1)
        if len(steps) == 6:
            raise OSError("the machine is gone")
        return step(self, *arguments, **options)

    monkeypatch.setattr(SKDTrainer, "training_step", stop_in_the_third_epoch)
    assert run(capsys, *command)[0] == 2 and not (tmp_path / "stopped" / "config.json").exists()
    status, _, err = run(capsys, *command, "--learning-rate", "1e-3")
    assert status == 2 and "a run with other settings: learning_rate was 0.01, is 0.001" in err
    (tmp_path / "senses").rename(tmp_path / "kept")
    run(capsys, "build", "--teacher", teacher_folder, "--texts", files[1], "--output", tmp_path / "senses")
    status, _, err = run(capsys, *command)
    assert status == 2 and "senses_fingerprint was" in err
    shutil.rmtree(tmp_path / "senses")
    (tmp_path / "kept").rename(tmp_path / "senses")
    (tmp_path / "stopped" / "checkpoint-5").mkdir()  # as if the process was killed while it wrote a checkpoint
    assert run(capsys, *command)[0] == 0 and len(steps) == 6 + 2  # two steps an epoch; two of three epochs were done
    one, two = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("straight", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert str(tmp_path) not in (tmp_path / "stopped" / "_distilling.json").read_text()
    left = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert not any(name.startswith(("checkpoint-", "_encoded")) or name.endswith((".bin", ".pt")) for name in left)

    assert run(capsys, *command)[0] == 0 and len(steps) == 8  # the student is finished: no more steps
    status, _, err = run(capsys, *command, "--seed", 1)
    assert status == 2 and "seed was 42, is 1" in err
    assert run(capsys, *command, "--seed", 1, "--overwrite")[0] == 0 and len(steps) == 14
    status, _, err = run(capsys, *command[:-1], tmp_path / "senses")
    assert status == 2 and "a model that no sensedict distill has put there" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--budget", 5, "--texts", "TRAIN"], "budget=5 is below one sense for each"),
        (["build", "--texts", "none.jsonl"], "there is no file or folder none.jsonl"),
        (["build", "--texts", "TRAIN", "--text-column", "sentence"], "no column 'sentence', only text, label"),
        (["distill", "--texts", "TRAIN", "--senses", "TEACHER"], "holds a bert model, not a sense dictionary"),
        (["distill", "--texts", "TRAIN", "--senses", "TEACHER", "--objective", "sense+ce"], "unknown objective 'ce'"),
        (["distill", "--texts", "TRAIN", "--senses", "TEACHER", "--objective", "mse+mse"], "names a loss twice"),
        (
            "distill --texts TRAIN --senses TEACHER --head sequence_classification --num-hidden-layers 0".split(),
            "head='sequence_classification' without layers",
        ),
        (
            ["distill", "--texts", "TRAIN", "--senses", "TEACHER", "--backbone", "TEACHER", "--layers", "0"],
            "give one of them",
        ),
        (
            "distill --texts TRAIN --senses TEACHER --backbone TEACHER --num-hidden-layers 2".split(),
            "num_hidden_layers and backbone: a student starts from one of these",
        ),
        (
            ["distill", "--texts", "TRAIN", "--senses", "TEACHER", "--head", "token_classification"],
            "lacks weights of BertForToken",
        ),
        (
            ["distill", "--texts", "TRAIN", "--senses", "TEACHER", "--eval-texts", "TRAIN"],
            "set eval_strategy to epoch or steps",
        ),
        (
            ["distill", "--texts", "TRAIN", "--senses", "TEACHER", "--resume-from-checkpoint", "x"],
            "repeat the same call or command",
        ),
        (
            [
                "distill",
                "--texts",
                "TRAIN",
                "--senses",
                "TEACHER",
                "--head",
                "token_classification",
                "--adapters",
                "x",
            ],
            "merge them",
        ),
        (
            ["evaluate", "--train", "TRAIN", "--test", "TRAIN", "--label-column", "topic"],
            "--train has no column 'topic'",
        ),
        (["evaluate", "--train", "TRAIN", "--test", "TRAIN", "--assignment", "hard"], "need --senses"),
        (["evaluate", "--train", "TRAIN", "--test", "TRAIN", "--residual", "0.5"], "need --senses"),
        (["build", "--texts", "TRAIN", "--device", "cuda:99"], "device='cuda:99' cannot be used: choose cpu"),
        (["build", "--texts", "TRAIN", "--quantization-config", "{"], "quantization_config='{' is not JSON"),
        (["build", "--texts", "TRAIN", "--tokenizer", "no/such/folder"], "there is no folder no/such/folder here"),
        (
            ["evaluate", "--task", "similarity", "--test", "TRAIN", "--label-column", "x"],
            "--label-column x is for --task classification: leave it out",
        ),
        (
            ["evaluate", "--task", "retrieval", "--text-column", "x"],
            "--text-column x is for --task classification or language_modeling: leave it out",
        ),
        (["evaluate", "--train", "TRAIN"], "--task classification needs --train and --test, not --train"),
        (["evaluate", "--task", "retrieval"], "--task retrieval needs --corpus and --queries, not nothing"),
        (
            ["evaluate", "--task", "similarity", "--test", "TRAIN"],
            "--test has no column 'sentence1', only text, label",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, files, teacher_folder, tmp_path, arguments, message):
    places = {"TRAIN": files[0], "TEACHER": teacher_folder}
    arguments = [places.get(argument, argument) for argument in arguments]
    if arguments[0] == "evaluate":
        arguments += ["--model", teacher_folder]
    else:
        arguments += ["--teacher", teacher_folder, "--output", tmp_path / "out"]
    status, _, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("sensedict ")]
    assert status == 2 and len(lines) == 1 and message in lines[0]


def test_a_run_that_failed_before_its_first_step_can_have_other_settings(capsys, files, teacher_folder, tmp_path):
    train, _ = files
    run(
        capsys, "build", "--teacher", teacher_folder, "--texts", train, "--budget", 90, "--output", tmp_path / "senses"
    )
    distill = [
        "distill",
        "--teacher",
        teacher_folder,
        "--senses",
        tmp_path / "senses",
        "--texts",
        train,
        "--output",
        tmp_path / "student",
    ]
    status, _, err = run(capsys, *distill, "--num-hidden-layers", 9)
    assert status == 2 and "has layers 0 to 3" in err
    status, _, err = run(capsys, *distill, "--streaming", "True")
    assert status == 2 and "a stream has no length" in err
    status, _, err = run(capsys, "inspect", tmp_path / "student", "w1")
    assert status == 2 and "holds no finished model" in err
    assert run(capsys, *distill, "--streaming", "True", "--max-steps", 1)[0] == 0


def test_broken_files_are_named(capsys, files, teacher_folder, tmp_path):
    (tmp_path / "broken.yaml").write_text("teacher: [a")
    (tmp_path / "broken.jsonl").write_text('{"text": "w1"}\n{"text": ')
    status, _, err = run(capsys, "distill", tmp_path / "broken.yaml")
    assert status == 2 and "broken.yaml is not valid YAML or JSON" in err
    status, _, err = run(
        capsys,
        "build",
        "--teacher",
        teacher_folder,
        "--texts",
        tmp_path / "broken.jsonl",
        "--output",
        tmp_path / "out",
    )
    assert status == 2 and "cannot read" in err and "broken.jsonl as json" in err


@pytest.mark.parametrize(
    ("task", "files", "scores"),
    [
        (
            "similarity",
            {"test": [{"sentence1": f"w1 w{i}", "sentence2": f"w2 w{i}", "score": i} for i in range(3, 9)]},
            ["spearman", "pearson"],
        ),
        (
            "retrieval",
            {
                "corpus": [{"id": f"d{i}", "title": f"w{i}", "text": "w20 w21"} for i in range(5)],
                "queries": [
                    {"text": f"w{i} w20 w21", "relevant": [f"d{i}"]} for i in range(5)
                ],  # the title and the text of one
            },
            ["ndcg_at_10", "accuracy_at_1", "recall_at_10"],
        ),
        (
            "tokens",
            dict.fromkeys(["train", "test"], [{"tokens": ["w1", "w2", "w3"], "tags": ["O", "B-a", "I-a"]}] * 3),
            ["f1", "precision", "recall"],
        ),
    ],
)
def test_tasks(capsys, teacher_folder, tmp_path, task, files, scores):
    arguments = ["evaluate", "--task", task, "--model", teacher_folder, "--output", tmp_path / "scores.json"]
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        arguments += [f"--{name}", tmp_path / f"{name}.jsonl"]
    status, out, _ = run(capsys, *arguments)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert status == 0 and f"| model | output | {' | '.join(scores)} |" in out
    assert set(scores) < set(written) and written["task"] == task
    if task != "similarity":
        assert [written[name] for name in scores] == [1, 1, 1]


def test_queries_by_another_model(capsys, teacher_folder, bert, tokenizer, texts, tmp_path):
    """The documents keep the vectors of --model; only those of the queries change."""
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)))
    rows = [json.dumps({"text": text, "relevant": [number]}) for number, text in enumerate(texts[:20])]
    (tmp_path / "queries.jsonl").write_text("\n".join(rows))
    senses = build_sense_dictionary(bert, texts, budget=60)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    student.save_pretrained(tmp_path / "student")
    files = ["--corpus", tmp_path / "corpus.jsonl", "--queries", tmp_path / "queries.jsonl"]
    command = ["evaluate", "--task", "retrieval", "--model", teacher_folder, *files]
    status, out, _ = run(capsys, *command, "--query-model", tmp_path / "student", "--output", tmp_path / "scores.json")
    assert status == 0 and f"{tmp_path / 'student'} on {teacher_folder}" in out
    written = json.loads((tmp_path / "scores.json").read_text())
    expected = evaluate_retrieval(
        student.encode(texts[:20]).numpy(),
        load_teacher(teacher_folder).encode(texts).numpy(),
        [[number] for number in range(20)],
    )
    assert {name: written[name] for name in expected} == pytest.approx(expected)
    assert written["query_model"] == str(tmp_path / "student")

    BertModel(BertConfig(**SIZES | {"hidden_size": 8}, max_position_embeddings=64)).save_pretrained(
        tmp_path / "narrow"
    )
    tokenizer.save_pretrained(tmp_path / "narrow")
    status, _, err = run(capsys, *command, "--query-model", tmp_path / "narrow")
    assert status == 2 and "in one space" in err
    status, _, err = run(capsys, "evaluate", "--model", teacher_folder, "--query-model", tmp_path / "student")
    assert status == 2


def test_inspect_errors(capsys, files, teacher_folder, tmp_path):
    run(capsys, "build", "--teacher", teacher_folder, "--texts", files[0], "--output", tmp_path / "senses")
    for token, message in [("banana", "is not one token"), ("[PAD]", "has no senses")]:
        status, _, err = run(capsys, "inspect", tmp_path / "senses", token)
        assert status == 2 and message in err


def printed(capsys, *arguments):
    """Run a command that exits with status 0 while it is parsed; return what it prints."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    return capsys.readouterr().out


def parsed(*arguments):
    return cli_options.make_parser().parse_args(rename_options(arguments))


def test_help_completion_and_version_need_no_torch():
    script = """if True:
        import sys, time
        from sensedict_cli import main
        begin = time.process_time()
        try:
            main()
        finally:
            assert not {"torch", "transformers", "numpy", "sensedict_hf"} & sys.modules.keys()
            assert time.process_time() < 1  # torch alone takes longer"""
    asked = [["--help"], ["--version"], *(["--print-completion", shell] for shell in ("bash", "zsh", "tcsh"))]
    for arguments in [*asked, *([name, "--help"] for name in NEEDED)]:
        run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        assert "sensedict" in run.stdout


def test_help_is_complete_and_names_a_default_once(capsys):
    out = printed(capsys, "--help")
    assert all(re.search(rf"^    {name} ", out, re.M) for name in NEEDED)
    for name in NEEDED:
        text = printed(capsys, name, "--help")
        options = [re.sub(r"\s+", " ", option) for option in re.split(r"\n  (?=-)", text)[1:]]
        assert not re.search(r"--\w*_", text) and "None" not in text and "Default" not in text
        for option in options:
            assert option.count("default:") <= 1, option
            assert re.search(r"[a-z]{3,} ", option.split(" ", 2)[-1]), f"no help: {option}"


def test_all_options_of_the_trainer_are_shown_on_request(capsys):
    out = printed(capsys, "distill", "--help-all")
    own, trainers = out.split("Options of transformers' TrainingArguments")
    assert "--gradient-accumulation-steps" in trainers and "--weight-decay" in trainers
    assert not re.search(r"^  --\w*_", out, re.M)
    shown = re.findall(r"^  (--[\w-]+)", out, re.M)
    assert len(shown) == len(set(shown))
    other_names = {"output_dir": "output", "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size"}
    fields = [field.name for field in dataclasses.fields(SKDTrainingArguments) if field.init]
    flags = {"--" + other_names.get(name, name).replace("_", "-") for name in fields}
    assert flags - set(shown) == {"--remove-unused-columns"}  # it must stay off


def test_choices_and_defaults_are_those_of_the_package():
    assert cli_common.ASSIGNMENTS == configuration.ASSIGNMENTS
    assert cli_common.KEYS == configuration.KEYS
    assert cli_common.SIMILARITIES == configuration.SIMILARITIES
    assert cli_common.METHODS == METHODS
    assert cli_common.SENSES_DTYPES == tuple(configuration.SENSES_DTYPES)
    assert cli_common.SAMPLE_DTYPES == tuple(configuration.SAMPLE_DTYPES)
    assert cli_common.POOLINGS == POOLINGS
    assert cli_common.TASKS == (*TASKS, "language_modeling")
    assert cli_common.HEADS == tuple(HEADS)
    assert all(hasattr(torch, name) for name in cli_common.TEACHER_DTYPES)

    options = vars(parsed("distill", *NEEDED["distill"]))
    declared = {name: parameter.default for name, parameter in signature(distill_student).parameters.items()}
    declared |= {field.name: field.default for field in dataclasses.fields(SKDTrainingArguments)}
    shared = declared.keys() & options.keys() - {"teacher", "senses", "texts", "output_dir", "push_to_hub"}
    assert {"objective", "temperature", "mse_weight", "max_length", "layers", "overwrite"} < shared
    for name in shared:
        assert options[name] == declared[name], name
    evaluation = parsed("evaluate", *NEEDED["evaluate"])
    assert teacher.is_plain(evaluation)
    assert teacher.loading(evaluation).keys() <= signature(load_teacher).parameters.keys()


def test_underscores_and_other_names_are_accepted():
    build = ("build", *NEEDED["build"])
    for name in ("--senses-per-token", "--senses_per_token"):
        assert parsed(*build, name, "3").senses_per_token == parsed(*build, f"{name}=3").senses_per_token == 3
    assert parsed(*build, "--teacher_dtype=float16", "--keep_samples").teacher_dtype == "float16"
    assert parsed(*build, "--instruction", "--no_option but text").instruction == "--no_option but text"
    options = parsed(
        "distill", *NEEDED["distill"], "--output_dir", "there", "--num_train_epochs", "4", "--overwrite=no"
    )
    assert (options.output_dir, options.num_train_epochs, options.overwrite) == ("there", 4.0, False)
    assert parsed("inspect", "d", "--", "--a_token").token == "--a_token"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--budget", "5", "--senses-per-token", "5"], "not allowed with argument --budget"),
        (["build", "--streaming", "perhaps"], "'perhaps' is neither true nor false"),
        (["build", "--max-steps", "5"], "unrecognized arguments: --max-steps 5"),
        (["distill", "--no-such-option", "5"], "unrecognized arguments: --no-such-option 5"),
        (["distill", "--objectiv", "mse"], "unrecognized arguments: --objectiv mse"),  # no abbreviations
        (["distill", "--max-ste", "5"], "unrecognized arguments: --max-ste 5"),
        (["distill", "--max-steps", "many"], "argument --max-steps: invalid int value: 'many'"),
    ],
)
def test_wrong_options_have_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        main([*arguments, *NEEDED[arguments[0]]])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_bash_completes(capsys, tmp_path):
    (tmp_path / "completion.bash").write_text(printed(capsys, "--print-completion", "bash"))
    script = """source completion.bash
        COMP_WORDS=(sensedict build --similarity "") COMP_CWORD=3
        _shtab_sensedict
        echo "${COMPREPLY[@]}" """
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == ["l2", "cosine", "dot"], run.stderr


def test_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sensedict_hf", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("sensedict_hf", run_name="__main__")
    assert not end.value.code and re.fullmatch(r"sensedict \d+\.\d+\.\d+\n", capsys.readouterr().out)
