"""Tiny models with random weights, and a tokenizer for them."""

import os
import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from sensedict_hf import Teacher

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{number}" for number in range(28)]
SIZES = dict(vocab_size=32, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="let the tests see a GPU")


def pytest_configure(config):
    """Hide the GPU: teachers and `Trainer` use it if they see one, and tests compare exact results of a CPU."""
    if not config.getoption("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.set_num_threads(1)  # with models this small, a second thread only waits
    torch.manual_seed(0)
    random.seed(0)


def make_tokenizer(words=WORDS, model_max_length=64):
    vocabulary = {token: number for number, token in enumerate(SPECIAL + list(words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=model_max_length,
    )


def make_model(kind):
    if kind == "bert":
        return BertModel(BertConfig(**SIZES, max_position_embeddings=64)).eval()
    if kind == "deberta":
        config = DebertaV2Config(
            **SIZES,
            max_position_embeddings=64,
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
        )
        return DebertaV2Model(config).eval()
    return LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0)).eval()


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
