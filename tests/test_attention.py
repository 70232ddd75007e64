import logging

import pytest
import torch
from tiny_models import SIZES, make_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPTNeoConfig,
    GPTNeoModel,
    StableLmConfig,
    StableLmModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sensedict_hf import SKDStudentModel, build_sense_dictionary, load_teacher
from sensedict_hf.models.attention import probe_attention, set_bidirectional

KINDS = {
    "llama": {},
    "llama with the rope of llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "mistral": {"sliding_window": 3},
    "gemma": {"head_dim": 8},
    "qwen2": {},
}


def make(name, **changes):
    sizes = (
        SIZES
        | {"num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0}
        | KINDS.get(name, {})
        | changes
    )
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIG_MAPPING[name.split()[0]](**sizes)).eval()


@pytest.mark.parametrize("name", KINDS)
def test_bidirectional_is_attention_with_a_mask_that_hides_nothing(name, tokenizer):
    """Checked against the causal model, given a mask of its own that shows every token to every other."""
    causal = make(name, **({"sliding_window": None} if name == "mistral" else {}))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    expected = causal(input_ids=ids, attention_mask=torch.zeros(1, 1, 8, 8)).last_hidden_state
    teacher = load_teacher(make(name), tokenizer=tokenizer, bidirectional=True)
    torch.testing.assert_close(teacher.last_hidden_state(ids), expected)
    padded, mask = torch.cat([ids, torch.zeros_like(ids)], 1), torch.tensor([[1] * 8 + [0] * 8])
    torch.testing.assert_close(teacher.last_hidden_state(padded, mask)[:, :8], expected)
    torch.testing.assert_close(
        teacher.last_hidden_state(padded.flip(1), mask.flip(1))[:, 8:].flip(1), reversed_states(causal, ids)
    )


def reversed_states(causal, ids):
    return causal(input_ids=ids.flip(1), attention_mask=torch.zeros(1, 1, 8, 8)).last_hidden_state.flip(1)


def test_probes():
    bert, llama = make_model("bert"), make_model("llama")
    assert (probe_attention(bert), probe_attention(llama)) == ("bidirectional", "causal")
    set_bidirectional(llama.config, True)
    assert probe_attention(llama) == "bidirectional"
    set_bidirectional(llama.config, False)
    assert probe_attention(llama) == "causal"


def test_a_mask_that_is_ignored_is_found():
    class Forgetful(type(make_model("bert"))):
        def forward(self, input_ids, attention_mask=None, **kwargs):
            return super().forward(input_ids=input_ids, **kwargs)

    assert "unmasked" in probe_attention(Forgetful(make_model("bert").config).eval())


def test_what_does_not_attend_as_asked_is_refused(tokenizer):
    stablelm = StableLmModel(StableLmConfig(**SIZES, num_key_value_heads=2)).eval()
    with pytest.raises(ValueError, match="StableLmModel with sdpa attention is causal/bidirectional.*eager"):
        load_teacher(stablelm, tokenizer=tokenizer, bidirectional=True)
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
    }
    with pytest.raises(ValueError, match="GPTNeoModel with eager attention is causal"):
        load_teacher(GPTNeoModel(GPTNeoConfig(**sizes)).eval(), tokenizer=tokenizer, bidirectional=True)
    bert = make_model("bert")
    with pytest.raises(ValueError, match="BertModel with sdpa attention is causal/bidirectional.*not causal"):
        load_teacher(bert, tokenizer=tokenizer, bidirectional=False)
    assert probe_attention(bert) == "bidirectional"  # as it was


def test_an_encoder_keeps_its_config(tokenizer):
    bert = make_model("bert")
    before = bert.config.to_dict()
    load_teacher(bert, tokenizer=tokenizer, bidirectional=True)
    assert bert.config.to_dict() == before


def test_a_dictionary_is_of_one_kind_of_attention(tokenizer, texts):
    senses = build_sense_dictionary(
        load_teacher(make_model("llama"), tokenizer=tokenizer, bidirectional=True), texts, budget=90
    )
    with pytest.raises(ValueError, match="bidirectional teacher, .* is causal: load it with bidirectional=True"):
        SKDStudentModel.from_teacher(load_teacher(make_model("llama"), tokenizer=tokenizer), senses)


def test_an_encoder_that_sees_padding_is_warned_of(tokenizer, caplog):
    class Forgetful(type(make_model("bert"))):
        def forward(self, input_ids, attention_mask=None, **kwargs):
            return super().forward(input_ids=input_ids, **kwargs)

    logging.getLogger("sensedict_hf").propagate = True
    with caplog.at_level(logging.WARNING):
        load_teacher(Forgetful(make_model("bert").config).eval(), tokenizer=tokenizer)
    assert "unmasked" in caplog.text


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_student_attends_as_its_teacher(bidirectional, tokenizer, texts, tmp_path):
    teacher = load_teacher(make_model("llama"), tokenizer=tokenizer, bidirectional=bidirectional)
    senses = build_sense_dictionary(teacher, texts, budget=90)
    student = SKDStudentModel.from_teacher(teacher, senses, 2)
    assert not any("lm_head" in name for name, _ in student.named_parameters())
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert probe_attention(loaded.backbone) == ("bidirectional" if bidirectional else "causal")
    assert torch.equal(loaded.encode(texts), student.encode(texts))
    for name, weight in teacher.model.norm.state_dict().items():  # the final norm is kept
        assert torch.equal(weight, loaded.backbone.norm.state_dict()[name])
    whole = SKDStudentModel.from_teacher(teacher, senses, 4)
    torch.testing.assert_close(whole.encode(texts, assignment="none"), teacher.encode(texts))
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert probe_attention(head.student.backbone) == ("bidirectional" if bidirectional else "causal")
