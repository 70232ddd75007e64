"""Students with heads are fine-tuned with `transformers.Trainer` and with PEFT."""

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file
from tiny_models import make_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from sensedict_cli import main
from sensedict_hf import SKDStudentModel, Teacher, build_sense_dictionary

AUTO = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}
both_tasks = pytest.mark.parametrize("task", AUTO)


def save_student(kind, tokenizer, texts, folder):
    """Save a student without dropout, so that two ways to train it can be compared."""
    teacher = Teacher(make_model(kind), tokenizer, name="tiny", max_window=64)
    teacher.model.config.hidden_dropout_prob = teacher.model.config.attention_probs_dropout_prob = 0.0
    senses = build_sense_dictionary(teacher, texts, budget=90, senses_dtype="float32")
    SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=1, classifier_dropout=0.0).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tokenizer, texts, tmp_path):
    return save_student("bert", tokenizer, texts, tmp_path / "student")


def load(task, folder, **settings):
    torch.manual_seed(0)
    return AUTO[task].from_pretrained(folder, num_labels=2, **settings)


def rows_of(task, tokenizer, texts):
    """Tokenize texts. The label of a text is whether a word occurs; the label of a token is whether its id is odd."""
    rows = [dict(tokenizer(text, return_token_type_ids=False)) for text in texts]
    for row in rows:
        odd = [number % 2 for number in row["input_ids"]]
        row["labels"] = int(31 in row["input_ids"]) if task == "SEQ_CLS" else odd
    return rows


def make_trainer(model, task, tokenizer, texts, output_dir, **settings):
    settings = {
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 0,
    } | settings
    args = TrainingArguments(str(output_dir), report_to="none", disable_tqdm=True, use_cpu=True, **settings)
    collator = DataCollatorForTokenClassification(tokenizer) if task == "TOKEN_CLS" else None
    return Trainer(
        model, args, train_dataset=rows_of(task, tokenizer, texts), processing_class=tokenizer, data_collator=collator
    )


def assert_same_weights(one, other, **tolerance):
    for (name, first), (_, second) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(first, second, msg=lambda message, name=name: f"{name}: {message}", **tolerance)


@both_tasks
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_saved_student_is_fine_tuned(kind, task, tokenizer, texts, tmp_path):
    """The gradient passes straight through the senses, which do not change."""
    folder = save_student(kind, tokenizer, texts, tmp_path / "student")
    trainer = make_trainer(load(task, folder), task, tokenizer, texts, tmp_path, num_train_epochs=15)
    before = AutoModel.from_pretrained(folder)
    trainer.train()
    output = trainer.predict(trainer.train_dataset)
    assert (output.predictions.argmax(-1) == output.label_ids)[
        output.label_ids != -100
    ].mean() > 0.8  # 0.58 by the majority
    assert not torch.equal(before.get_input_embeddings().weight, trainer.model.get_input_embeddings().weight)
    assert torch.equal(before.senses.senses, trainer.model.student.senses.senses)
    trainer.save_model(tmp_path / "tuned")
    tuned = AUTO[task].from_pretrained(tmp_path / "tuned")
    assert_same_weights(tuned, trainer.model, rtol=0, atol=0)


@both_tasks
def test_accumulated_batches_of_unequal_size_are_one_batch(task, folder, tokenizer, texts, tmp_path):
    """23 texts of various lengths in batches of 5, the last with 3, give the step of one batch of 23."""
    whole = make_trainer(load(task, folder), task, tokenizer, texts[:23], tmp_path, per_device_train_batch_size=23)
    settings = dict(per_device_train_batch_size=5, gradient_accumulation_steps=5)
    parts = make_trainer(load(task, folder), task, tokenizer, texts[:23], tmp_path, **settings)
    for trainer in (whole, parts):
        trainer.train()
        assert trainer.state.global_step == 1
    assert whole.state.log_history[0]["loss"] == pytest.approx(parts.state.log_history[0]["loss"], rel=1e-4)
    assert whole.state.log_history[0]["grad_norm"] == pytest.approx(parts.state.log_history[0]["grad_norm"], rel=1e-4)
    assert_same_weights(whole.model, parts.model, rtol=1e-3, atol=2e-5)


@both_tasks
def test_gradient_checkpointing_changes_nothing(task, folder, tokenizer, texts, tmp_path):
    settings = dict(max_steps=1, per_device_train_batch_size=20, optim="sgd")
    models, calls = [load(task, folder), load(task, folder)], []
    for model, checkpointing in zip(models, (False, True)):
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        model.student.backbone.encoder.layer[0].intermediate.register_forward_hook(count)
        make_trainer(model, task, tokenizer, texts, tmp_path, gradient_checkpointing=checkpointing, **settings).train()
    assert calls == [1, 2]  # the layer ran again for its gradient
    assert_same_weights(*models, rtol=1e-6, atol=1e-8)


@both_tasks
def test_autocast_keeps_masters_in_float32(task, folder, tokenizer, texts, tmp_path):
    trainer = make_trainer(
        load(task, folder, learn_senses=True), task, tokenizer, texts, tmp_path, bf16=True, num_train_epochs=15
    )
    dtypes = []
    trainer.model.student.backbone.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda *call: dtypes.append(call[2].dtype)
    )
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@both_tasks
@pytest.mark.parametrize("learn_senses", [False, True])
def test_a_resumed_run_is_the_straight_one(task, learn_senses, folder, tokenizer, texts, tmp_path):
    """The random state of dropout is restored too."""

    def trainer(output_dir):
        model = load(task, folder, learn_senses=learn_senses, classifier_dropout=0.3)
        settings = dict(num_train_epochs=2, save_strategy="epoch", per_device_train_batch_size=7)
        return make_trainer(model, task, tokenizer, texts, tmp_path / output_dir, **settings)

    straight, resumed = trainer("straight"), trainer("resumed")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-9"))
    assert resumed.state.global_step == straight.state.global_step == 18
    assert_same_weights(straight.model, resumed.model, rtol=0, atol=0)


def test_senses_are_learned_and_frozen_again(folder, tokenizer, texts, tmp_path):
    model = load("SEQ_CLS", folder, learn_senses=True)
    before, senses = AutoModel.from_pretrained(folder).senses, model.student.senses
    assert isinstance(senses.senses, torch.nn.Parameter) and torch.equal(senses.senses, before.senses)
    trainer = make_trainer(model, "SEQ_CLS", tokenizer, texts, tmp_path, num_train_epochs=3)
    trainer.train()
    changed = (senses.senses != before.senses).any(1)
    assert changed.any() and torch.equal(senses.offsets, before.offsets)
    trainer.save_model(tmp_path / "learned")
    again = AUTO["SEQ_CLS"].from_pretrained(tmp_path / "learned")
    assert isinstance(again.student.senses.senses, torch.nn.Parameter)
    frozen = AUTO["SEQ_CLS"].from_pretrained(tmp_path / "learned", learn_senses=False)
    frozen.student.senses.save_pretrained(tmp_path / "dictionary")
    dictionary = AutoModel.from_pretrained(tmp_path / "dictionary")
    assert not list(dictionary.parameters()) and torch.equal(dictionary.senses, senses.senses)
    assert dictionary.senses_of("w9").shape[1] == 16 and dictionary.config.learn_senses is False
    # In another dtype they are constants.
    tokenizer.save_pretrained(tmp_path / "learned")
    for dtype in ("float16", "int8"):
        assert main(["convert", str(tmp_path / "learned"), "--dtype", dtype, "--output", str(tmp_path / dtype)]) == 0
        converted = AUTO["SEQ_CLS"].from_pretrained(tmp_path / dtype).student
        assert converted.senses.table.dtype == getattr(torch, dtype) and not converted.config.learn_senses
    for loaded in (again, frozen):
        assert_same_weights(loaded, trainer.model, rtol=0, atol=0)


def test_learned_senses_are_float32(bert, texts, tmp_path):
    half = build_sense_dictionary(bert, texts, budget=90)
    half.save_pretrained(tmp_path)
    learned = AutoModel.from_pretrained(tmp_path, learn_senses=True, dtype=torch.bfloat16)
    assert learned.senses.dtype == torch.float32 and torch.equal(learned.senses, half.senses.float())
    assert learned.bfloat16().senses.dtype == torch.float32 and learned.config.senses_dtype == "float32"
    student = SKDStudentModel.from_teacher(bert, half, learn_senses=True)
    assert student.bfloat16().senses.senses.dtype == torch.float32 and student.senses.senses.requires_grad
    back = learned.to_dtype("float16")
    assert not list(back.parameters()) and torch.equal(back.senses, half.senses)
    half.to_dtype("int8").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"int8 senses cannot be learned; .*to_dtype\('float32'\)"):
        AutoModel.from_pretrained(tmp_path, learn_senses=True)


def test_gradient_to_the_chosen_senses(bert, texts, tmp_path):
    """A sense gets the summed gradient of the positions that chose it; each vector gets that of its position."""
    build_sense_dictionary(bert, texts, budget=90).save_pretrained(tmp_path)
    senses = AutoModel.from_pretrained(tmp_path, learn_senses=True)
    input_ids = torch.tensor([bert.tokenizer(" ".join(texts[:2]))["input_ids"]])
    hidden = torch.randn(*input_ids.shape, 16, requires_grad=True)
    mask = torch.ones_like(input_ids)
    mask[0, 0] = 0
    output = senses(input_ids, hidden, mask, "hard")
    weights = torch.randn_like(hidden)
    (output.hidden_states * weights).sum().backward()
    expected = torch.zeros_like(senses.senses)
    for token, choice, weight in zip(input_ids[0].tolist(), output.sense_ids[0].tolist(), weights[0]):
        if choice >= 0:
            expected[senses.offsets[token] + choice] += weight
    torch.testing.assert_close(senses.senses.grad, expected)
    torch.testing.assert_close(hidden.grad, weights)


@pytest.mark.parametrize("similarity", ["l2", "cosine", "dot"])
def test_gradient_to_softly_assigned_senses(bert, texts, tmp_path, similarity):
    """Compared with a loop over positions. Rare tokens share a block, frequent tokens have one each."""
    build_sense_dictionary(bert, texts, budget=90, similarity=similarity).save_pretrained(tmp_path)
    senses = AutoModel.from_pretrained(tmp_path, learn_senses=True)
    input_ids = torch.tensor([bert.tokenizer(" ".join(texts[:6]))["input_ids"]])
    hidden, weights = torch.randn(*input_ids.shape, 16), torch.randn(*input_ids.shape, 16)
    (senses(input_ids, hidden, assignment="soft").hidden_states * weights).sum().backward()
    table = senses.senses.detach().clone().requires_grad_()
    unit = senses.score_temperature(senses.config.assignment_temperature)
    loss = torch.zeros(())
    for token, vector, weight in zip(input_ids[0].tolist(), hidden[0], weights[0]):
        own = table[senses.rows_of(token)]
        products = own @ vector
        if similarity == "cosine":
            products = torch.nn.functional.cosine_similarity(vector[None], own)
        scores = {"l2": 2 * products - own.square().sum(-1), "cosine": 2 * products, "dot": products}[similarity]
        if len(own):
            loss = loss + ((scores / unit).softmax(-1) @ own * weight).sum()
    loss.backward()
    torch.testing.assert_close(senses.senses.grad, table.grad, rtol=1e-4, atol=1e-5)


LORA = dict(r=4, target_modules=["query", "value"], init_lora_weights=False)


@both_tasks
def test_adapters(task, folder, tokenizer, texts, tmp_path):
    """Adapters are trained with Trainer, saved without the dictionary, loaded onto a student, and merged."""
    model = load(task, folder)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peft = get_peft_model(model, LoraConfig(task_type=task, **LORA))
    trainable = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert trainable and all(
        ".backbone." in name and "lora_" in name or ".modules_to_save." in name for name in trainable
    )
    trainer = make_trainer(
        peft, task, tokenizer, texts, tmp_path / "run", num_train_epochs=2, gradient_checkpointing=True
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", "classifier"}
    batch = tokenizer(texts[:5], padding=True, return_tensors="pt", return_token_type_ids=False)
    expected = peft.eval()(**batch).logits
    auto = {"SEQ_CLS": AutoPeftModelForSequenceClassification, "TOKEN_CLS": AutoPeftModelForTokenClassification}[task]
    models = [
        PeftModel.from_pretrained(load(task, folder), tmp_path / "adapter"),
        auto.from_pretrained(tmp_path / "adapter", num_labels=2),
    ]
    for loaded in models:
        assert torch.equal(loaded.eval()(**batch).logits, expected)
    with peft.disable_adapter():
        assert not torch.allclose(peft(**batch).logits, expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(model) and merged.state_dict().keys() == base.keys()
    torch.testing.assert_close(merged(**batch).logits, expected)
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, base[name])}
    assert {name.split(".")[-2] for name in changed} == {"query", "value", "classifier"}
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(AUTO[task].from_pretrained(tmp_path / "merged")(**batch).logits, merged(**batch).logits)


def test_adapters_on_a_bare_student(folder, tokenizer, texts, tmp_path):
    student = AutoModel.from_pretrained(folder)
    peft = get_peft_model(student, LoraConfig(task_type="FEATURE_EXTRACTION", **LORA))
    batch = tokenizer(texts[:5], padding=True, return_tensors="pt", return_token_type_ids=False)
    peft(**batch).last_hidden_state.square().sum().backward()
    assert all((parameter.grad is not None) == ("lora_" in name) for name, parameter in peft.named_parameters())
    peft.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(loaded.encode(texts[:5]), peft.encode(texts[:5]))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged.encode(texts[:5], assignment="none"), peft.encode(texts[:5], assignment="none"))
