"""Senses attached to loaded models."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import SIZES, make_model, make_tokenizer
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    StaticCache,
    T5Config,
    T5Model,
)

from sensedict_hf import SKDStudentModel, Teacher, attach_senses, build_sense_dictionary, load_teacher


def batch_of(teacher, texts):
    return teacher.tokenizer(texts[:5], padding=True, return_tensors="pt", return_token_type_ids=False)


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("layer", [-1, 2])
def test_hidden_states_are_the_nearest_senses_until_removed(teacher, texts, layer):
    senses = build_sense_dictionary(teacher, texts, budget=90, layer=layer)
    batch = batch_of(teacher, texts)
    before = teacher.model(**batch, output_hidden_states=True)
    expected = senses(batch["input_ids"], before.hidden_states[layer], batch["attention_mask"])
    hooks = count_hooks(teacher.model)
    handle = attach_senses(teacher.model, senses)
    during = teacher.model(**batch)
    if layer == -1:
        assert torch.equal(during.last_hidden_state, expected.hidden_states)
    else:
        assert not torch.allclose(during.last_hidden_state, before.last_hidden_state)
    assert torch.equal(handle.sense_ids, expected.sense_ids)
    handle.remove()
    assert torch.equal(teacher.model(**batch).last_hidden_state, before.last_hidden_state)
    assert count_hooks(teacher.model) == hooks


def test_the_pooler_inside_bert_and_a_head_see_the_senses(tokenizer, texts):
    model = BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=64)).eval()
    teacher = Teacher(model.bert, tokenizer, name="tiny")
    senses = build_sense_dictionary(teacher, texts, senses_per_token=2)
    batch = batch_of(teacher, texts)
    hidden = senses(batch["input_ids"], model.bert(**batch).last_hidden_state, batch["attention_mask"]).hidden_states
    expected = model.classifier(model.bert.pooler(hidden))
    with attach_senses(model, senses, tokenizer=tokenizer):
        assert torch.equal(model(batch["input_ids"], batch["attention_mask"]).logits, expected)
    assert not torch.allclose(model(**batch).logits, expected)


def test_training_mode_is_kept(bert, texts):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    bert.model.train()
    bert.model.encoder.eval()
    attach_senses(bert.model, senses)
    assert bert.model.training and bert.model.embeddings.training and not bert.model.encoder.training


def test_layers_shared_as_in_albert(tokenizer, texts):
    """One module runs once for every layer: only the output of its last run is replaced."""
    sizes = dict(vocab_size=32, hidden_size=16, embedding_size=16, num_attention_heads=2, intermediate_size=32)
    model = AlbertModel(AlbertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=64)).eval()
    teacher = Teacher(model, tokenizer, name="albert")
    senses = build_sense_dictionary(teacher, texts, senses_per_token=2)
    batch = batch_of(teacher, texts)
    expected = senses(batch["input_ids"], model(**batch).last_hidden_state, batch["attention_mask"]).hidden_states
    with attach_senses(model, senses):
        assert torch.equal(model(**batch).last_hidden_state, expected)


def test_generation_with_a_cache_and_left_padding(tokenizer, texts):
    model = LlamaForCausalLM(
        LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0)
    ).eval()
    teacher = Teacher(model.model, tokenizer, name="tiny")
    senses = build_sense_dictionary(teacher, texts, senses_per_token=3)
    tokenizer.padding_side = "left"
    batch = batch_of(teacher, texts)
    with attach_senses(model, senses):
        cached = model.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=True)
        plain = model.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_a_mask_may_be_as_long_as_a_static_cache(tokenizer, texts):
    model = LlamaForCausalLM(
        LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0)
    ).eval()
    senses = build_sense_dictionary(Teacher(model.model, tokenizer, name="tiny"), texts, senses_per_token=3)
    ids = torch.tensor([[2, 5, 6, 7, 9, 10]])
    cache, mask = StaticCache(config=model.config, max_cache_len=32), torch.zeros(1, 32, dtype=torch.int64)
    with attach_senses(model, senses, assignment="hard"):
        expected, found = model(ids).logits, []
        for part in ids.split(4, dim=1):
            mask[:, : mask.sum() + part.shape[1]] = 1
            found.append(model(part, past_key_values=cache, attention_mask=mask).logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected)
    assert not torch.allclose(model(ids).logits, expected)


def test_refusals(bert, texts, tokenizer):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    with pytest.raises(ValueError, match="fingerprint"):
        attach_senses(bert.model, senses, tokenizer=make_tokenizer(["x"] + [f"y{i}" for i in range(27)]))
    wide = make_model("bert").__class__(BertConfig(**{**SIZES, "hidden_size": 8}))
    with pytest.raises(ValueError, match="is 8 wide, the dictionary 16"):
        attach_senses(wide, senses)
    larger = make_model("bert").__class__(BertConfig(**{**SIZES, "vocab_size": 40}))
    with pytest.raises(ValueError, match="the model has 40 tokens, the dictionary 32"):
        attach_senses(larger, senses)
    attach_senses(larger, senses, tokenizer=tokenizer).remove()
    with pytest.raises(ValueError, match="encoder-decoder"):
        attach_senses(T5Model(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)), senses)
    with pytest.raises(ValueError, match="unknown assignment 'best'"):
        attach_senses(bert.model, senses, assignment="best")
    with attach_senses(bert.model, senses):
        with pytest.raises(ValueError, match="attached to this model already"):
            attach_senses(bert.model, senses)
        with pytest.raises(ValueError, match="input_ids, not with inputs_embeds"):
            bert.model(inputs_embeds=torch.randn(1, 3, 16))
        with pytest.raises(
            ValueError, match=r"attention mask \[batch, positions\], .* leave out cache_implementation"
        ):
            bert.model(input_ids=torch.ones(1, 3, dtype=torch.int64), attention_mask=torch.ones(1, 1, 3, 3))
    student = SKDStudentModel.from_teacher(bert, senses)
    with pytest.raises(ValueError, match="senses of its own: give it others with replace_senses"):
        attach_senses(student, senses)
    attach_senses(student.backbone, senses).remove()
    senses.config.layer = 9
    with pytest.raises(ValueError, match="layer 9, BertModel has hidden states 0 to 4"):
        attach_senses(bert.model, senses)


def test_hidden_states_of_an_inner_layer_are_the_senses_too(tokenizer, texts):
    teacher = Teacher(make_model("llama"), tokenizer, name="tiny")
    senses = build_sense_dictionary(teacher, texts, senses_per_token=2, layer=2)
    batch = batch_of(teacher, texts)
    own = teacher.model(**batch, output_hidden_states=True).hidden_states[2]
    with attach_senses(teacher.model, senses):
        found = teacher.model(**batch, output_hidden_states=True).hidden_states[2]
    assert torch.equal(found, senses(batch["input_ids"], own, batch["attention_mask"]).hidden_states)


def test_threads_do_not_take_each_others_tokens(bert, texts):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    batches = torch.randint(4, 32, (2, 8, 16))
    with attach_senses(bert.model, senses), torch.no_grad():
        expected = [bert.model(ids).last_hidden_state for ids in batches]

        def run(number):
            with torch.no_grad():
                return all(
                    torch.equal(bert.model(batches[number]).last_hidden_state, expected[number]) for _ in range(50)
                )

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(run, range(2)))


def test_the_residual_keeps_a_share_of_the_models_own_vectors(bert, texts):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    batch = batch_of(bert, texts)
    own = bert.model(**batch).last_hidden_state
    expected = senses(batch["input_ids"], own, batch["attention_mask"], residual=0.25).hidden_states
    with attach_senses(bert.model, senses, residual=0.25):
        assert torch.equal(bert.model(**batch).last_hidden_state, expected)
    with pytest.raises(ValueError, match="residual=2"):
        attach_senses(bert.model, senses, residual=2)


def test_gradient_checkpointing_changes_nothing(tokenizer, texts):
    """A checkpointed layer runs again in the backward pass, whether its output was replaced or not."""
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5}
    model = BertForSequenceClassification(BertConfig(**SIZES, **without, max_position_embeddings=64)).train()
    teacher = Teacher(model.bert, tokenizer, name="tiny")
    senses = build_sense_dictionary(teacher, texts, senses_per_token=2)
    batch = batch_of(teacher, texts)
    gradients = []
    with attach_senses(model, senses, assignment="soft"):
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.train()
            model.zero_grad()
            model(**batch).logits.square().sum().backward()
            gradients.append(model.bert.embeddings.word_embeddings.weight.grad.clone())
    assert gradients[0].any() and torch.allclose(*gradients, rtol=1e-4)


def test_senses_that_would_be_left_out_are_told(bert, tokenizer, texts):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    batch = batch_of(bert, texts)
    with attach_senses(bert.model, senses) as attached:
        attached._handles[1].remove()  # as torch.compile leaves out the hook inside
        with pytest.raises(ValueError, match="left out of this forward pass"):
            bert.model(**batch)
    bert.model.compile(backend="eager")
    with pytest.raises(ValueError, match="the model is compiled"):
        attach_senses(bert.model, senses)
    opt = OPTForCausalLM(
        OPTConfig(**{**SIZES, "ffn_dim": 32}, word_embed_proj_dim=16, max_position_embeddings=64, pad_token_id=0)
    ).eval()
    # This one runs a module inside its base model.
    plain = opt(**batch).logits
    with attach_senses(opt, senses, assignment="hard"):
        assert not opt(**batch).logits.allclose(plain)
    assert opt(**batch).logits.equal(plain)


def test_a_dictionary_of_a_bidirectional_teacher_is_not_for_a_causal_model(tokenizer, texts):
    model = make_model("llama")
    causal = copy.deepcopy(model)
    senses = build_sense_dictionary(
        load_teacher(model, tokenizer=tokenizer, bidirectional=True), texts, senses_per_token=2
    )
    attach_senses(model, senses)
    with pytest.raises(ValueError, match="built from a bidirectional teacher, LlamaModel is causal"):
        attach_senses(causal, senses)


def test_models_that_return_tuples(bert, texts):
    batch = batch_of(bert, texts)
    expected = build_sense_dictionary(bert, texts, senses_per_token=2)
    bert.model.config.return_dict = False
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    assert torch.equal(senses.senses, expected.senses)
    own = bert.model(**batch)[0]
    with attach_senses(bert.model, senses):
        assert torch.equal(
            bert.model(**batch)[0], senses(batch["input_ids"], own, batch["attention_mask"]).hidden_states
        )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_keeps_its_senses(bert, texts, copied):
    senses = build_sense_dictionary(bert, texts, budget=90)
    batch = bert.tokenizer(["w1 w2 w3"], return_tensors="pt")
    attached = attach_senses(bert.model, senses, assignment="hard")
    expected = bert.model(**batch).last_hidden_state
    model = copied(bert.model)
    attached.remove()
    own = bert.model(**batch).last_hidden_state
    assert torch.equal(model(**batch).last_hidden_state, expected) and not torch.equal(own, expected)


def test_a_forward_pass_inside_a_forward_pass(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    first, second = (bert.tokenizer([text], return_tensors="pt") for text in ("w1 w2 w3", "w4 w5"))
    with attach_senses(bert.model, senses, assignment="hard"):
        expected = [bert.model(**batch).last_hidden_state for batch in (first, second)]
        inner = []

        def call_again(*_):
            if not inner:
                inner.append(None)
                inner.append(bert.model(**second).last_hidden_state)

        handle = bert.model.encoder.layer[0].register_forward_pre_hook(call_again)
        outer = bert.model(**first).last_hidden_state
        handle.remove()
        assert torch.equal(outer, expected[0]) and torch.equal(inner[1], expected[1])
        # A pass that fails leaves nothing for the next one.
        with pytest.raises(IndexError):
            bert.model(input_ids=torch.tensor([[10**6]]))
        assert torch.equal(bert.model(**first).last_hidden_state, expected[0])
