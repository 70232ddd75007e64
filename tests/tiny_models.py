"""Tiny models with random weights, and a tokenizer for them."""

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
