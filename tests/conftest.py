"""Fixtures: tiny teachers and texts for them."""

import gc
import os
import random

import pytest
import torch
from tiny_models import WORDS, build_once, make_model, make_tokenizer

from sensedict_hf import SenseIndex, Teacher


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="let the tests see a GPU")


def pytest_configure(config):
    """Hide the GPU, and do not wait for the disk.

    Teachers and `Trainer` use a GPU if they see one, and tests compare exact results of a CPU. Files must survive the
    death of a process here, but no power failure.
    """
    if not config.getoption("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.fsync = lambda file: None


def pytest_collection_finish():
    """Set the objects of all modules aside: each training collects garbage, half a second long among them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.set_num_threads(1)  # on tiny models a second thread only waits, and long if the cores are busy
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture(params=["bert", "deberta", "llama"])
def teacher(request, tokenizer):
    return Teacher(
        make_model(request.param), tokenizer, name=f"tiny-{request.param}", max_seq_length=64, max_window=64
    )


@pytest.fixture
def bert(tokenizer):
    return Teacher(make_model("bert"), tokenizer, name="tiny-bert", max_seq_length=64, max_window=64)


@pytest.fixture
def texts():
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, weights=range(1, 29), k=generator.randint(3, 12))) for _ in range(60)]


@pytest.fixture
def teacher_folder(bert, tmp_path):
    """The folder of a saved teacher."""
    folder = tmp_path / "teacher"
    bert.model.save_pretrained(folder)
    bert.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=60)


@pytest.fixture
def index(bert, senses, texts):
    return SenseIndex.build(bert, senses, texts)
