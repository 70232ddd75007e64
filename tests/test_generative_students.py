"""Students that generate text."""

import json

import pytest
import torch
from tiny_models import SIZES, make_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from sensedict_hf import SKDStudentForCausalLM, SKDStudentModel, Teacher


def make_decoder(kind="tied"):
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=4, n_head=2, n_positions=64)).eval()
    sizes = SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=kind == "tied")).eval()


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2"])
def test_all_layers_are_the_teacher(kind, tokenizer, texts, tmp_path):
    teacher = make_decoder(kind)
    student = SKDStudentForCausalLM.from_teacher(teacher, 4, tokenizer=tokenizer)
    batch = tokenizer(texts[:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    expected = teacher(**batch, labels=batch["input_ids"])
    found = student(**batch, labels=batch["input_ids"])
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch.allclose(found.loss, expected.loss, atol=1e-5)
    is_tied = kind != "untied"
    assert (student.lm_head.weight is student.get_input_embeddings().weight) == is_tied
    # Saved, loaded and moved, it is the same.
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SKDStudentForCausalLM
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == is_tied
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    assert loaded.num_parameters() == teacher.num_parameters()


def test_a_student_with_fewer_layers_generates_with_its_cache(tokenizer, texts, tmp_path):
    teacher = make_decoder()
    teacher.generation_config.max_new_tokens = 5
    tokenizer.chat_template = "{% for message in messages %}w1 {{ message['content'] }} {% endfor %}"
    student = SKDStudentForCausalLM.from_teacher(teacher, [0, 3], tokenizer=tokenizer)
    assert student.config.teacher_layers == [0, 3] and student.generation_config.max_new_tokens == 5
    assert teacher.num_parameters() - student.num_parameters() == sum(
        parameter.numel() for layer in teacher.model.layers[1:3] for parameter in layer.parameters()
    )
    batch = tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    runs = []
    handle = student.student.backbone.layers[0].register_forward_hook(
        lambda module, args, output: runs.append(args[0].shape[1])
    )
    cached = student.generate(**batch, do_sample=False)
    assert runs[1:] == [1] * (len(runs) - 1) and len(runs) > 1
    handle.remove()
    assert torch.equal(cached, student.generate(**batch, do_sample=False, use_cache=False))
    # The next token is that of the longest logit, one at a time.
    ids = batch["input_ids"]
    while ids.shape[1] < cached.shape[1]:
        ids = torch.cat([ids, student(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, cached)

    # In the folder are no senses, and what a pipeline needs.
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["SKDStudentForCausalLM"] and config["sense_config"]["num_senses"] == 0
    assert "generates text" in (tmp_path / "README.md").read_text()
    write = pipeline("text-generation", model=str(tmp_path))
    written = write(texts[0], do_sample=False, return_full_text=False)[0]["generated_text"]
    assert written == tokenizer.decode(cached[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    chat = write([{"role": "user", "content": "w5"}], do_sample=False)[0]["generated_text"]
    assert chat[-1]["role"] == "assistant"
    # Its layers alone are a student too.
    assert type(AutoModel.from_pretrained(tmp_path)) is SKDStudentModel


def test_padding_on_the_left_changes_nothing(tokenizer, texts):
    student = SKDStudentForCausalLM.from_teacher(make_decoder(), 2, tokenizer=tokenizer)
    tokenizer.padding_side = "left"
    together = student.generate(
        **tokenizer(texts[:3], padding=True, return_tensors="pt", return_token_type_ids=False),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
    )
    for text, row in zip(texts, together):
        batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        alone = student.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert torch.equal(alone[0, -4:], row[-4:])


def test_teachers_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="a Teacher has no language-model head"):
        SKDStudentForCausalLM.from_teacher(Teacher(make_model("llama"), tokenizer, name="tiny"))
    with pytest.raises(ValueError, match="LlamaModel has no linear language-model head"):
        SKDStudentForCausalLM.from_teacher(make_model("llama"), tokenizer=tokenizer)
    scaled = CohereForCausalLM(CohereConfig(**SIZES, num_key_value_heads=1, logit_scale=0.1, pad_token_id=0))
    with pytest.raises(ValueError, match="more than a linear map"):
        SKDStudentForCausalLM.from_teacher(scaled, tokenizer=tokenizer)
    model = make_decoder()
    model.config.is_causal = False
    with pytest.raises(ValueError, match="only a causal model predicts the next token"):
        SKDStudentForCausalLM.from_teacher(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="num_hidden_layers=5"):
        SKDStudentForCausalLM.from_teacher(make_decoder(), 5, tokenizer=tokenizer)
