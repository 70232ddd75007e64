"""Tiny models with random weights, a tokenizer for them, and their dictionaries."""

import copy
from dataclasses import fields

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

from sensedict_hf import build_sense_dictionary
from sensedict_hf.models.fingerprints import tokenizer_fingerprint

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{number}" for number in range(28)]
SIZES = dict(vocab_size=32, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)


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


_built = {}


def build_once(teacher, texts, **settings):
    """Return a dictionary that is built once in a process for the same teacher, texts and settings: a copy."""
    others = [getattr(teacher, one.name) for one in fields(teacher) if one.name not in ("model", "tokenizer")]
    own = teacher.fingerprint(), tokenizer_fingerprint(teacher.tokenizer), repr(others)
    key = (*own, *texts, *sorted(settings.items()))
    if key not in _built:
        _built[key] = build_sense_dictionary(teacher, texts, **settings)
    return copy.deepcopy(_built[key])
