"""Mutations of saved artefacts: a mutant is read as valid content, or refused with an error of ours.

`make fuzz` tries 2,000 mutants, the ordinary tests 60: `python tests/fuzzing.py FOLDER COUNT`.
"""

import copy
import json
import math
import random
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_models import WORDS, make_model, make_tokenizer
from transformers import AutoModel

from sensedict_hf import SenseIndex, SKDStudentModel, Teacher, build_sense_dictionary, load_senses
from sensedict_hf.building.manifest import read_manifest
from sensedict_hf.models.validation import check_finite

# What a value in a JSON file becomes.
VALUES = (None, True, 0, -1, 1, 0.5, 10**12, math.nan, math.inf, "", "x", "../x", [], {}, [[]], {"a": 1})
SECONDS, GIGABYTES = 20, 2  # the most that a mutant may take


def mutate_json(path, generator):
    """Change, remove or add one value, at any depth."""
    content = json.loads(path.read_text())
    place = content
    while True:
        keys = list(place if isinstance(place, dict) else range(len(place)))
        if not keys:
            return
        key = generator.choice(keys)
        if not isinstance(place[key], (dict, list)) or generator.random() < 0.4:
            break
        place = place[key]
    action = generator.choice(["replace", "replace", "remove", "copy", "nudge"])
    if action == "remove":
        del place[key]
    elif action == "nudge" and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
        place[key] += generator.choice([-1, 1])
    elif action == "copy":
        place[key] = copy.deepcopy(place[generator.choice(keys)])
    else:
        place[key] = generator.choice(VALUES)
    path.write_text(json.dumps(content))


def mutate_bytes(path, generator):
    """Flip bits, cut off, insert, or overwrite some bytes; in half of the cases in the header."""
    content = bytearray(path.read_bytes())
    size = len(content) if generator.random() < 0.5 else min(len(content), 600)
    begin, length = generator.randrange(max(1, size)), generator.choice([1, 2, 8, 100])
    action = generator.choice(["flip", "cut", "insert", "overwrite", "empty"])
    if action == "flip":
        content[begin] ^= 1 << generator.randrange(8)
    elif action == "cut":
        del content[begin:]
    elif action == "insert":
        content[begin:begin] = generator.randbytes(length)
    elif action == "empty":
        content.clear()
    else:
        content[begin : begin + length] = generator.choice([b"\0", b"\xff", b"\x7f"]) * length
    path.write_bytes(content)


def mutate_numbers(path, generator):
    """Replace one number of a safetensors file by an extreme one. The header stays as it is."""
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    at = generator.randrange(begin, len(content) - 8) & ~7
    number = generator.choice(
        [struct.pack("<d", value) for value in (math.nan, math.inf, -1.0, 1e300)] + [b"\xff" * 8]
    )
    content[at : at + 8] = number
    path.write_bytes(content)


def read(folder):
    """Read everything in the folder of a dictionary, a student or an index, and use it."""
    if (folder / "senses").is_dir():
        index = SenseIndex.load(folder)
        assert len(index) > 0
        folder = folder / "senses"
    manifest = read_manifest(folder)
    if manifest and (changed := manifest.changed_file(folder)):
        raise ValueError(f"{changed} was changed")
    if (folder / "samples.safetensors").exists():
        assert len(load_file(folder / "samples.safetensors")["offsets"])
    senses = load_senses(folder)
    model = AutoModel.from_pretrained(folder)
    for tensor in model.state_dict().values():
        check_finite(tensor)
    ids = torch.arange(min(32, senses.config.vocab_size))[None]
    hidden = senses(ids, torch.zeros(*ids.shape, senses.config.hidden_size)).hidden_states
    assert hidden.isfinite().all() and int(senses.offsets[-1]) == len(senses.table)
    if model is not senses and hasattr(model, "encode"):
        assert model.encode(["w1 w2"]).isfinite().all()
    assert model.tokenizer("w1")


def fuzz(folders, count, scratch, seed=0):
    """Try mutants of the folders.

    Returns:
        How many were refused; and of each that was neither read nor refused with an error of ours: what was done.
    """
    generator = random.Random(seed)
    faults, refused = [], 0
    for number in range(count):
        folder = scratch / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        source = generator.choice(folders)
        shutil.copytree(source, folder)
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
        path = generator.choice(paths)
        kinds = [mutate_json, mutate_json, mutate_bytes] if path.suffix == ".json" else [mutate_bytes, mutate_numbers]
        if number % 2:  # half of the mutants are not given away by the manifest
            (folder / "manifest.json").unlink(missing_ok=True)
            if not path.exists():
                continue
        mutation = generator.choice(kinds)
        mutation(path, generator)
        begin = time.monotonic()
        try:
            read(folder)
        except (ValueError, OSError):
            refused += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the panics of Rust are no Exception
            shutil.copytree(folder, scratch / f"fault-{number}", dirs_exist_ok=True)
            name = f"{mutation.__name__} of {source.name}/{path.relative_to(folder)}"
            faults.append(f"{number}: {name}: {type(error).__name__}: {error}")
        if time.monotonic() - begin > SECONDS:
            faults.append(f"{number}: {mutation.__name__} of {path.name} took {time.monotonic() - begin:.0f} s")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if used > GIGABYTES:
        faults.append(f"{used:.1f} GB of memory were used")
    return refused, faults


def make_folders(root):
    """Save a dictionary with its samples, two students and an index."""
    torch.manual_seed(0)
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=8)) for _ in range(40)]
    teacher = Teacher(make_model("bert"), make_tokenizer(), name="tiny", max_seq_length=64, max_window=64)
    build_sense_dictionary(teacher, texts, budget=60, keep_samples=True, output_dir=root / "dictionary")
    senses = load_senses(root / "dictionary")
    SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=1).save_pretrained(root / "student")
    SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=0).save_pretrained(root / "layer-free")
    senses.to_dtype("int8").save_pretrained(root / "int8")
    SenseIndex.build(teacher, senses, texts[:10]).save(root / "index")
    return sorted(root.iterdir())


if __name__ == "__main__":
    work = Path(sys.argv[1])
    (work / "saved").mkdir(parents=True, exist_ok=True)
    refused, faults = fuzz(make_folders(work / "saved"), int(sys.argv[2]), work, seed=int((sys.argv[3:] or [0])[0]))
    print(f"{sys.argv[2]} mutants, {refused} refused", *faults, sep="\n")
    sys.exit(bool(faults))
