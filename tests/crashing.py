"""Crash points: a command dies at its k-th file operation, like a process that is killed, and is then repeated.

`make crash` tries every point of every command, the ordinary tests a few: `python tests/crashing.py FOLDER`.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

import torch
from datasets import load_from_disk
from sentence_transformers import SentenceTransformer
from tiny_models import SIZES, WORDS, make_model, make_tokenizer
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from sensedict_hf import SenseIndex, SKDStudentModel, TeacherVectors, encode_senses, load_senses, load_teacher
from sensedict_hf import encode_vectors as encode_teacher_vectors
from sensedict_hf import save_router as save_both
from sensedict_hf.cli import main

DEAD = 9
TRAINING = [
    "--max_steps",
    "2",
    "--save_steps",
    "1",
    "--batch-size",
    "4",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
]
WRITES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def run(*command):
    """Run a command line; the error that it prints is raised."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        status = main([str(part) for part in command])
    if status:
        raise ValueError(printed.getvalue())


def build(given, out):
    run("build", "--teacher", "teacher", "--texts", "texts.txt", "--budget", 60, "--keep-samples", "--output", out)


def build_over_another(given, out):
    if not (out / "config.json").exists() and not (out / "building").exists():
        shutil.copytree("dictionary", out, dirs_exist_ok=True)
    run("build", "--teacher", "teacher", "--texts", "texts.txt", "--budget", 50, "--output", out, "--overwrite")


def convert(given, out):
    run("convert", "dictionary", "--dtype", "int8", "--output", out)


def merge(given, out):
    run("merge", "dictionary", "dictionary", "--budget", 40, "--output", out)


def save_over_another(given, out):
    load_senses("dictionary").to_dtype("int8").save_pretrained(out)


def encode(given, out):
    encode_senses(load_teacher("teacher"), load_senses("dictionary"), given, output_dir=out, top_k=2)


def encode_vectors(given, out):
    encode_teacher_vectors(load_teacher("teacher"), given, out)


def distill(given, out):
    texts = ["--texts", "texts.txt", "--output", out]
    run("distill", "--teacher", "teacher", "--senses", "dictionary", *texts, "--num-hidden-layers", 1, *TRAINING)


def distill_without_layers(given, out):
    texts = ["--texts", "texts.txt", "--output", out]
    run("distill", "--teacher", "teacher", *texts, "--num-hidden-layers", 0, *TRAINING)


def distill_causal_lm(given, out):
    texts = ["--texts", "texts.txt", "--output", out]
    run("distill", "--teacher", "decoder", "--head", "causal_lm", *texts, "--num-hidden-layers", 1, *TRAINING)


def index_build(given, out):
    run("index", "build", "--model", "teacher", "--senses", "dictionary", "--texts", "texts.txt", "--output", out)


def index_merge(given, out):
    run("index", "merge", "index", "more", "--output", out)


def index_save_over_another(given, out):
    index = SenseIndex.load("index")
    index.add(given[:7])
    index.save(out)


def save_router(given, out):
    save_both(SKDStudentModel.from_pretrained("student"), "teacher", out)


def digest_model(folder):
    model = AutoModel.from_pretrained(folder)
    return [tensor.tolist() for tensor in model.state_dict().values()]


def digest_index(folder):
    index = SenseIndex.load(folder, model=load_teacher("teacher"))
    return index.ids, index.search("w1 w2 w3", top_k=5)[1].tolist()


def digest_vectors(folder):
    vectors = TeacherVectors(folder)
    return [vectors[row]["vectors"].tolist() for row in range(len(vectors))]


def digest_router(folder):
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=False).encode_query(["w1 w2"]).tolist()


def digest_dataset(folder):
    return load_from_disk(str(folder))[:]


# Each command, what reads its result, and what was in the folder before.
COMMANDS = {
    build: (digest_model, None),
    build_over_another: (digest_model, "dictionary"),
    convert: (digest_model, None),
    merge: (digest_model, None),
    save_over_another: (digest_model, "dictionary"),
    encode: (digest_dataset, None),
    encode_vectors: (digest_vectors, None),
    distill: (digest_model, None),
    distill_without_layers: (digest_model, None),
    distill_causal_lm: (digest_model, None),
    index_build: (digest_index, None),
    index_merge: (digest_index, None),
    index_save_over_another: (digest_index, "index"),
    save_router: (digest_router, None),
}


def make_inputs(root):
    """Save what the commands read into the folder, and return the texts."""
    os.chdir(root)
    torch.manual_seed(0)
    generator = random.Random(0)
    given = [" ".join(generator.choices(WORDS, k=8)) for _ in range(30)]
    Path("texts.txt").write_text("\n".join(given))
    decoder = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0))
    for name, model in (("teacher", make_model("bert")), ("decoder", decoder)):
        model.save_pretrained(name)
        make_tokenizer().save_pretrained(name)
    build(given, Path("dictionary"))
    teacher, senses = load_teacher("teacher"), load_senses("dictionary")
    SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=1).save_pretrained("student")
    SenseIndex.build(teacher, senses, given[:10]).save("index")
    SenseIndex.build(teacher, senses, given[10:20], ids=range(10, 20)).save("more")
    return given


def run_until(command, given, out, point=None, may_end=()):
    """Run a command in a forked process that dies at a file operation in the folder.

    Returns:
        How many operations there were; None if it died.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def work():
        torch.set_num_threads(1)
        count = 0

        def watch(event, arguments):
            nonlocal count
            writes = event in WRITES
            if event == "open":
                writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            paths = (
                [os.path.abspath(path) for path in arguments if isinstance(path, (str, os.PathLike))] if writes else []
            )
            if any(path.startswith(str(out)) for path in paths):
                count += 1
                if count == point:
                    os._exit(DEAD)

        sys.addaudithook(watch)
        command(given, out)
        sender.send(count)

    process = fork.Process(target=work)
    process.start()
    process.join(300)
    if process.exitcode not in (0, DEAD, *may_end):
        raise AssertionError(f"{command.__name__} ends with {process.exitcode} at point {point}")
    return receiver.recv() if receiver.poll() else None


def contents(folder):
    """Return the digests of the files that must not differ; checkpoints and logs of a training hold times."""
    skipped = ("checkpoint", "training_args", "trainer_", "all_results", "train_results", "runs", ".lock")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    kept = [(name, path) for name, path in zip(names, files) if not any(part in name for part in skipped)]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept}


def crash(command, given, root, choose):
    """Let a command die at some points, and repeat it each time.

    Args:
        command: One of `COMMANDS`.
        given: The texts.
        root: The folder with the inputs, which is the working directory.
        choose: Maps the number of operations to the points.

    Returns:
        What was wrong.
    """
    read, before = COMMANDS[command]
    reference, out = root / f"{command.__name__}-whole", root / f"{command.__name__}-out"

    def begin(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if before:
            shutil.copytree(root / before, folder)

    begin(reference)
    total = run_until(command, given, reference)
    expected, valid = contents(reference), [read(reference)]
    if before:
        valid.append(read(root / before))
    wrong = []
    for point in choose(total):
        name = f"{command.__name__} at operation {point} of {total}"
        begin(out)
        run_until(command, given, out, point)
        try:
            if read(out) not in valid:
                wrong.append(f"{name}: a mixture is left")
        except (ValueError, OSError):
            pass  # nothing that loads
        if contents(out) != expected:
            try:
                run_until(command, given, out)
            except AssertionError as error:
                wrong.append(f"{name}: {error}, when it is repeated")
                continue
        found = contents(out)
        if found != expected:
            differing = sorted(file for file in {*found, *expected} if found.get(file) != expected.get(file))
            wrong.append(f"{name}: {', '.join(differing)} differ after it is repeated")
    return wrong


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    texts = make_inputs(folder)
    chosen = [command for command in COMMANDS if not sys.argv[2:] or command.__name__ in sys.argv[2:]]
    faults = []
    for one in chosen:
        found = crash(one, texts, folder, lambda total: range(1, total + 1))
        print(f"{one.__name__}: {len(found)} faults", *found, sep="\n", flush=True)
        faults += found
    sys.exit(bool(faults))
