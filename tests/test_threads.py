"""Models that several threads use at a time, while the caller uses their tokenizers in another way."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from launching import needs_fork
from soaking import MEGABYTES, soak
from tiny_models import WORDS

from sensedict_hf import Prompt, SKDStudentModel, build_sense_dictionary


@pytest.mark.parametrize("layers", [None, 1, 0], ids=["teacher", "student", "layer-free student"])
def test_threads_and_a_caller_with_other_settings(bert, texts, layers):
    """A fast tokenizer keeps the truncation and padding of its last call: nobody may get those of another."""
    generator = random.Random(0)
    texts = texts[:20] + [" ".join(generator.choices(WORDS, k=100)) for _ in range(10)]
    model = bert
    if layers is not None:
        senses = build_sense_dictionary(bert, texts, budget=60)
        model = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=layers)
    prompted = [("Find w1", text) for text in texts]
    expected = model.encode(texts), model.encode(prompted)
    finished, wrong = threading.Event(), []

    def use_the_tokenizer():
        while not finished.is_set():
            short = model.tokenizer(texts, truncation=True, max_length=5, padding=True)["input_ids"]
            long = model.tokenizer(texts, verbose=False)["input_ids"]
            if {len(row) for row in short} != {5} or max(map(len, long)) != 102:
                wrong.append("the caller's tokens")

    def encode(number):
        for _ in range(2):
            found = model.encode(texts), model.encode(prompted)
            wrong.extend("vectors" for one, other in zip(found, expected) if not torch.equal(one, other))

    caller = threading.Thread(target=use_the_tokenizer)
    caller.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(encode, range(3)))
    finally:
        finished.set()
        caller.join()
    assert not wrong


def test_a_tokenizer_that_is_changed(bert):
    """The copy that is called follows changes of the tokenizer."""
    assert bert.encode("w1 W1").shape == (16,)
    before = bert.encode(["w1 w2 new"] * 2)
    bert.tokenizer.truncation_side = "left"
    long = " ".join(["w1"] * 70 + ["w2"] * 30)
    left = Prompt(pooled="all").tokenize(bert.tokenizer, [long], 20)[0].input_ids
    assert left == bert.tokenizer(long, truncation=True, max_length=20)["input_ids"]
    bert.tokenizer.add_tokens(["new"])
    bert.model.resize_token_embeddings(33)
    assert not torch.equal(bert.encode(["w1 w2 new"]), before[:1])


@needs_fork
def test_a_process_that_is_forked_while_a_thread_tokenizes(bert):
    from sensedict_hf.models.tokenization import private_copy

    with private_copy(bert.tokenizer):
        pid = []

        def fork():  # another thread than the one that holds the lock
            child = os.fork()
            if child == 0:
                with private_copy(bert.tokenizer) as tokenizer:
                    os._exit(0 if tokenizer("w1")["input_ids"] == [2, 5, 3] else 1)
            pid.append(child)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    assert os.waitpid(pid[0], 0)[1] == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory from /proc")
def test_many_threads_for_a_while():
    calls, growth, wrong = soak(2)
    assert not wrong and calls >= 16 and growth < MEGABYTES
