"""Texts and models that are not as usual."""

import pytest
import torch
from tiny_models import SIZES
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BartConfig,
    BartModel,
    BrosConfig,
    BrosModel,
    CanineConfig,
    CanineModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from sensedict_hf import SKDStudentModel, attach_senses, build_sense_dictionary, load_teacher
from sensedict_hf.data import iterate_texts
from sensedict_hf.models.prompts import check_texts
from sensedict_hf.models.tokenization import model_max_length


@pytest.mark.parametrize("text", ["half \ud83d of it", "\udcff", ["read", "w \ud83d"]])
def test_a_lone_surrogate_is_refused_by_the_number_of_its_text(text):
    with pytest.raises(ValueError, match="text 1 .*lone surrogate"):
        check_texts(["right \U0001f600", text])
    if isinstance(text, str):
        with pytest.raises(ValueError, match="text 1 .*lone surrogate"):
            list(iterate_texts(["right", text]))


@pytest.mark.parametrize("number", [-1, 0, None])
def test_a_limit_that_is_no_number_of_tokens_does_not_count(number):
    class Limits:
        model_max_length = 64
        max_position_embeddings = number

    assert model_max_length(Limits(), Limits()) == 64


def test_models_that_read_no_token_ids_are_refused(tokenizer):
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    wrong = {
        "ViTModel has no vector for each token id": ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)),
        "CanineModel has no vector for each token id": CanineModel(CanineConfig(**sizes)),
        "BrosModel does not run on token ids": BrosModel(BrosConfig(**sizes, vocab_size=32)),
    }
    for message, model in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_teacher(model.eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_encoder_of_an_encoder_decoder_is_a_teacher(tokenizer, texts, kind):
    whole = T5Model(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2))
    if kind == "bart":
        sizes = dict(encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
        whole = BartModel(BartConfig(vocab_size=32, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes))
    with pytest.raises(ValueError, match=r"pass its encoder, model.get_encoder\(\)"):
        load_teacher(whole.eval(), tokenizer=tokenizer)
    teacher = load_teacher(whole.get_encoder(), tokenizer=tokenizer)
    senses = build_sense_dictionary(teacher, texts, budget=60)
    before = teacher.encode(texts[:3])
    with attach_senses(teacher.model, senses):
        assert not torch.equal(teacher.encode(texts[:3]), before)
    with pytest.raises(ValueError, match="is the encoder of an encoder-decoder"):
        SKDStudentModel.from_teacher(teacher, senses)


@pytest.mark.parametrize("kind", ["esm", "layoutlm", "squeezebert", "big_bird", "ibert"])
def test_heads_next_to_the_layers_are_left_out_of_a_student(tokenizer, texts, tmp_path, kind):
    own = {"squeezebert": {"embedding_size": 16}, "big_bird": {"attention_type": "original_full"}}
    config = CONFIG_MAPPING[kind](**SIZES, max_position_embeddings=64, pad_token_id=0, **own.get(kind, {}))
    teacher = load_teacher(AutoModel.from_config(config).eval(), tokenizer=tokenizer)
    student = SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, budget=60), 2)
    assert not any("pooler" in name or "contact_head" in name for name in student.state_dict())
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).encode(texts), student.encode(texts))
