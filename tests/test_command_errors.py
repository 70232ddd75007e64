"""What the `sensedict` command says when something goes wrong, and its exit status."""

import json

import pytest
import torch

import sensedict_hf.cli.dictionaries as dictionaries
from sensedict_hf.cli import main


@pytest.fixture
def fail(monkeypatch):
    """Makes the command `verify` raise an error."""

    def set_error(error):
        def raise_error(options):
            raise error

        monkeypatch.setattr(dictionaries, "verify", raise_error)
        return main(["verify", "folder"])

    return set_error


class SafetensorError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/data/model.safetensors"), "No space left on device"),
        (SafetensorError("I/O error: No space left on device"), "No space left on device"),
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (OverflowError("int too large"), "int too large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
    ],
)
def test_an_error_of_the_input_is_one_line(fail, capsys, error, message):
    assert fail(error) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("sensedict verify: ") and message in err


@pytest.mark.parametrize("error", [RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1"), "DistBackendError"])
def test_another_process_has_died(fail, capsys, error):
    if isinstance(error, str):
        error = type(error, (RuntimeError,), {})("NCCL error")
    assert fail(error) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "another process of this launch has ended" in err


def test_a_reader_that_stops_reading_is_no_error(fail, capsys, monkeypatch):
    closed = []
    monkeypatch.setattr("os.dup2", lambda *given: closed.append(given))
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    assert fail(BrokenPipeError(32, "Broken pipe")) == 141
    assert closed and not capsys.readouterr().err


def test_interrupted(fail, capsys):
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "sensedict verify: interrupted; the same command goes on where it can\n"


@pytest.mark.parametrize("error", [TypeError("oops"), KeyError("oops"), AssertionError("oops")])
def test_a_fault_of_the_program_is_a_traceback(fail, capsys, error):
    assert fail(error) == 1
    err = capsys.readouterr().err
    assert (
        "Traceback" in err and "oops" in err and err.splitlines()[-1].startswith("sensedict verify: this is a fault")
    )


def broken_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 30)


def pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")


def other_sizes(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 64}))


def config_of_wrong_types(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": "wide"}))


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')


@pytest.mark.parametrize(
    "damage", [broken_weights, pickled_weights, other_sizes, config_of_wrong_types, broken_tokenizer]
)
def test_a_damaged_teacher_is_named(teacher_folder, tmp_path, capsys, damage):
    damage(teacher_folder)
    (tmp_path / "texts.txt").write_text("w1 w2\nw3\n")
    command = ["build", "--teacher", teacher_folder, "--texts", tmp_path / "texts.txt", "--output", tmp_path / "out"]
    assert main([str(argument) for argument in command]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sensedict build: ") and str(teacher_folder) in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["inspect", "senses", "w3", "--teacher", "t"], "the teacher reads texts: give them with --texts"),
        (["inspect", "senses", "w3", "--pooling", "cls"], "leave out --teacher and its options"),
        (["index", "search", "index", "w3", "--collection", "c"], "--collection c is in a search engine"),
        (["index", "search", "index", "w3", "--text-column", "c"], "--text-column is for --queries"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(capsys, command, message):
    assert main(command) == 2
    assert message in capsys.readouterr().err
