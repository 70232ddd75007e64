"""A soak: many threads use one student and one index for a long time, and the memory stays flat.

`make soak` runs ten minutes, the ordinary tests two seconds: `python tests/soaking.py SECONDS`.
"""

import random
import sys
import threading
import time
from pathlib import Path

import torch
from tiny_models import WORDS, make_model, make_tokenizer

from sensedict_hf import SenseIndex, SKDStudentModel, Teacher, build_sense_dictionary

THREADS = 16
MEGABYTES = 128  # how much the memory may grow after the first quarter


def resident():
    """Return the memory of this process that no file backs, in MB."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def soak(seconds, threads=THREADS):
    """Encode texts of mixed lengths with one student and search one index, in many threads.

    Args:
        seconds: How long.
        threads: How many threads.

    Returns:
        How many calls there were, by how many MB the memory grew after the first quarter, and what went wrong.
    """
    torch.manual_seed(0)
    generator = random.Random(0)
    lengths = [1, 2, 5, 10, 40, 62, 100, 500]
    texts = [" ".join(generator.choices(WORDS, k=length)) for length in lengths for _ in range(8)]
    teacher = Teacher(make_model("bert"), make_tokenizer(), name="tiny", max_seq_length=64, max_window=64)
    senses = build_sense_dictionary(teacher, texts, budget=60)
    students = [SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=layers) for layers in (1, 0)]
    index = SenseIndex.build(teacher, senses, texts)
    expected = [student.encode(texts) for student in students]
    scores = index.search(texts, top_k=3)[1]
    calls, wrong, sizes, end = [0] * threads, [], [], time.monotonic() + seconds

    def work(number):
        own = random.Random(number)
        while time.monotonic() < end and not wrong:
            chosen = own.sample(range(len(texts)), own.randint(1, 12))
            given = [texts[row] for row in chosen]
            try:
                for student, vectors in zip(students, expected):
                    found = student.encode(given, batch_size=own.choice([1, 4, 32]), show_progress_bar=False)
                    if not torch.allclose(found, vectors[chosen], atol=1e-5):
                        wrong.append(f"other vectors of {type(student).__name__}")
                if abs(index.search(given, top_k=3)[1] - scores[chosen]).max() > 1e-4:
                    wrong.append("other scores")
            except Exception as error:
                wrong.append(repr(error))
            calls[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(min(1.0, seconds / 20))
        sizes.append(resident())
    settled = sizes[len(sizes) // 4 :]
    return sum(calls), max(settled) - settled[0], wrong


if __name__ == "__main__":
    count, growth, faults = soak(float(sys.argv[1]))
    print(f"{count:,} calls in {THREADS} threads, memory grew by {growth:.0f} MB", *faults[:10], sep="\n")
    sys.exit(bool(faults) or growth > MEGABYTES)
