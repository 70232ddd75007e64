"""Students that generate text."""

import copy
import json
from itertools import product

import pytest
import torch
from tiny_models import SIZES, WORDS, make_model, make_tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from sensedict_cli import main
from sensedict_hf import (
    SKDStudentForCausalLM,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    build_sense_dictionary,
    distill_student,
    encode_senses,
    load_teacher,
)
from sensedict_hf.distillation.generation import GenerationCollator, generation_loss


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
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=4, pad_token_id=0))
    with pytest.raises(ValueError, match="MambaForCausalLM has no attention layers"):
        SKDStudentForCausalLM.from_teacher(recurrent, tokenizer=tokenizer)
    model = make_decoder()
    model.config.is_causal = False
    with pytest.raises(ValueError, match="only a causal model predicts the next token"):
        SKDStudentForCausalLM.from_teacher(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="num_hidden_layers=5"):
        SKDStudentForCausalLM.from_teacher(make_decoder(), 5, tokenizer=tokenizer)


def make_senses(teacher, tokenizer, texts, **options):
    loaded = load_teacher(teacher, tokenizer=tokenizer)
    return build_sense_dictionary(loaded, texts, budget=90, senses_dtype="float32", **options)


def settings_of(folder, **changes):
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2}
    return SKDTrainingArguments(str(folder), **quiet | {"max_steps": 20} | changes)


@pytest.mark.parametrize("key", ["input", "next"])
def test_the_losses_are_those_of_one_text_at_a_time(key, tokenizer, texts, tmp_path):
    """All losses, computed naively in float64, without padding."""
    teacher = make_decoder("untied")
    senses = make_senses(teacher, tokenizer, texts, key=key)
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
    collate = GenerationCollator(0)
    rows = [tokenizer(text)["input_ids"] for text in texts[:4]]
    batch = collate([{"input_ids": row, "labels": [-1] * len(row)} for row in rows])
    output = student(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    states = teacher.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    given = dict(teacher=states, head=teacher.lm_head, senses=senses)

    expected = dict.fromkeys(("lm", "kl", "sense"), 0.0)
    right = counted = 0
    for row in rows:
        ids = torch.tensor([row])
        own = student(ids, output_hidden_states=True)
        target = teacher.model(ids).last_hidden_state[0].double()
        log_own = own.logits[0].double().log_softmax(-1)
        log_target = teacher.lm_head(target.float()).double().log_softmax(-1)
        for place in range(len(row) - 1):
            expected["lm"] -= float(log_own[place, row[place + 1]])
            expected["kl"] += float((log_target[place].exp() * (log_target[place] - log_own[place])).sum())
            table = senses.senses_of(row[place + (key == "next")]).double()
            label = int((table - target[place]).square().sum(1).argmin())
            scores = -(table - own.hidden_states[-1][0, place].double()).square().sum(1)
            scores = scores / senses.score_temperature(0.15)
            expected["sense"] -= float(scores.log_softmax(0)[label])
            right += int(scores.argmax()) == label
            counted += 1
    for name, value in expected.items():
        args = settings_of(tmp_path, objective=name)
        loss, counts = generation_loss(output.logits, output.hidden_states[-1], batch, args, **given)
        assert float(loss) == pytest.approx(value, rel=1e-4)
        assert int(counts.counted) == int(counts.known) == counted and int(counts.right) == right
        assert float(counts.cross_entropy) == pytest.approx(expected["lm"], rel=1e-4)
    # A sum of losses has their weights.
    args = settings_of(tmp_path, objective="lm+kl+sense", lm_weight=0.5, kl_weight=2.0, sense_weight=3.0)
    loss, _ = generation_loss(output.logits, output.hidden_states[-1], batch, args, **given)
    assert float(loss) == pytest.approx(expected["lm"] / 2 + 2 * expected["kl"] + 3 * expected["sense"], rel=1e-4)
    # The teacher itself has no divergence and no distance.
    for name in ("kl", "mse"):
        args = settings_of(tmp_path, objective=name)
        loss, _ = generation_loss(teacher.lm_head(states), states, batch, args, **given)
        assert float(loss) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("objective", ["lm", "lm+kl", "lm+kl+mse", None])
def test_students_that_generate_are_trained(objective, tokenizer, texts, tmp_path):
    teacher = make_decoder()
    senses = make_senses(teacher, tokenizer, texts, key="next") if objective is None else None
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
    args = settings_of(tmp_path / "run", objective=objective)
    trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts, eval_dataset=texts, senses=senses)
    before = trainer.evaluate()
    batch = tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    losses = [student(row, labels=row).loss * (row.shape[1] - 1) for row in rows]
    total = sum(row.shape[1] - 1 for row in rows)
    assert before["eval_perplexity"] == pytest.approx(float(torch.exp(sum(losses) / total)), rel=1e-4)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert ("eval_sense_accuracy" in after) == (objective is None)
    assert student.config.objective == (objective or "lm+kl+sense")
    assert ("lm_weight" in student.config.distillation) and "sentence_weight" not in student.config.distillation
    # What is saved has no senses, in checkpoints too.
    trainer.save_model(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    assert loaded.student.senses.table.shape[0] == 0 and loaded.config.objective == student.config.objective


def test_the_loss_in_training_is_that_of_an_evaluation(tokenizer, texts, tmp_path):
    """Both are means over the same positions, also if several batches make a step."""
    teacher = make_decoder()
    for accumulated, objective in product((1, 3), ("lm", "lm+mse")):
        student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
        settings = dict(objective=objective, learning_rate=1e-9, max_steps=1, gradient_accumulation_steps=accumulated)
        args = settings_of(tmp_path, per_device_train_batch_size=len(texts) // accumulated, **settings)
        trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts, eval_dataset=texts)
        assert trainer.train().training_loss == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


def test_label_smoothing_of_a_plain_trainer_shifts_the_labels(tokenizer, texts, tmp_path):
    """The whole teacher as a student, which learns from the same texts as the teacher does."""
    rows = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts)["input_ids"] if len(ids) == 10][:8]
    teacher, losses = make_decoder(), []
    for model in (teacher, SKDStudentForCausalLM.from_teacher(teacher, 4, tokenizer=tokenizer)):
        args = TrainingArguments(
            str(tmp_path), label_smoothing_factor=0.1, max_steps=1, report_to="none", save_strategy="no", use_cpu=True
        )
        losses.append(Trainer(copy.deepcopy(model), args, train_dataset=rows).train().training_loss)
    assert rows and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_layers_that_depend_on_their_place_are_not_moved(tokenizer):
    sizes = dict(vocab_size=32, n_embd=16, n_layer=4, n_head=2, n_positions=64)
    teacher = GPT2LMHeadModel(GPT2Config(**sizes, scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(ValueError, match=r"depends on the place of a layer; keep the first ones, \[0, 1\]"):
        SKDStudentForCausalLM.from_teacher(teacher, [0, 3], tokenizer=tokenizer)
    SKDStudentForCausalLM.from_teacher(teacher, [0, 1], tokenizer=tokenizer)


def test_a_loaded_teacher_without_a_tokenizer_has_the_students(tokenizer, texts, tmp_path):
    make_decoder().save_pretrained(tmp_path / "teacher")  # without a tokenizer
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
    args = settings_of(tmp_path / "run", objective="lm+kl", max_steps=1)
    SKDTrainer(student, args, teacher=teacher, train_dataset=texts).train()
    # Tokens that were added in memory.
    make_tokenizer(words=WORDS[:20]).save_pretrained(tmp_path / "teacher")
    SKDTrainer(student, args, teacher=teacher, train_dataset=texts).train()


def test_settings_of_generation_are_those_of_the_teacher(tokenizer, tmp_path):
    teacher = make_decoder()
    teacher.generation_config.update(eos_token_id=[3, 5, 7], do_sample=True, temperature=0.6)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    for source in (teacher, str(tmp_path / "teacher")):
        student = SKDStudentForCausalLM.from_teacher(source, 2, tokenizer=tokenizer)
        student.save_pretrained(tmp_path / "student")
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "student").generation_config
        assert (found.eos_token_id, found.do_sample, found.temperature) == ([3, 5, 7], True, 0.6)


def test_settings_of_sampling_without_sampling_are_left_out(tokenizer, texts, tmp_path):
    teacher = make_decoder()
    teacher.generation_config.update(temperature=0.6, top_p=0.9, max_new_tokens=5)
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
    SKDTrainer(student, settings_of(tmp_path / "run"), teacher=teacher, train_dataset=texts).train()
    student.save_pretrained(tmp_path / "student")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "student").generation_config
    assert (found.temperature, found.top_p, found.max_new_tokens) == (None, None, 5)
    assert (teacher.generation_config.temperature, teacher.generation_config.top_p) == (0.6, 0.9)


def test_lists_that_are_as_long_as_the_model_is_deep(tokenizer):
    teacher = make_decoder()
    eos = [*range(3, 3 + teacher.config.num_hidden_layers)]
    teacher.config.eos_token_id = eos
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
    assert student.config.text_config.eos_token_id == eos


@pytest.mark.parametrize("objective", ["lm+kl", "lm+mse", "lm+kl+sense"])
def test_states_on_the_disk_train_as_the_teacher_does(objective, tokenizer, texts, tmp_path):
    teacher = make_decoder()
    senses = make_senses(teacher, tokenizer, texts, key="next") if "sense" in objective else None
    losses = []
    for name, cached in (("each", False), ("once", True)):
        torch.manual_seed(0)
        student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
        args = settings_of(tmp_path / name, objective=objective, cache_vectors=cached, max_steps=3, logging_steps=1)
        trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts, eval_dataset=texts, senses=senses)
        assert (trainer.teacher is None) == cached
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses.append([*logged, trainer.evaluate()["eval_loss"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_training_that_stops_and_goes_on_ends_alike(tokenizer, texts, tmp_path):
    ends = []
    for name, stops in (("straight", ()), ("stopped", (4,))):
        teacher = make_decoder()
        torch.manual_seed(0)
        teacher.load_state_dict({key: torch.randn_like(value) / 4 for key, value in teacher.state_dict().items()})
        teacher.tie_weights()
        senses = make_senses(teacher, tokenizer, texts)
        for stop in (*stops, 8):
            student = SKDStudentForCausalLM.from_teacher(teacher, 1, tokenizer=tokenizer)
            args = settings_of(tmp_path / name, max_steps=8, save_strategy="steps", save_steps=4)
            trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts, senses=senses)
            if stop < 8:
                trainer.add_callback(StopAt(stop))
            trainer.train(resume_from_checkpoint=stop == 8 and bool(stops))
        ends.append(student.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_adapters_are_trained_too(tokenizer, texts, tmp_path):
    peft = pytest.importorskip("peft")
    teacher = make_decoder()
    senses = make_senses(teacher, tokenizer, texts, key="next")
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)
    model = peft.get_peft_model(student, peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    trainer = SKDTrainer(model, settings_of(tmp_path), teacher=teacher, train_dataset=texts, senses=senses)
    before = trainer.evaluate(texts)
    trainer.train()
    assert trainer.evaluate(texts)["eval_loss"] < before["eval_loss"]
    batch = tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**batch, max_new_tokens=2, min_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


def test_a_teacher_with_other_tokens_is_refused(tokenizer, texts, tmp_path):
    student = SKDStudentForCausalLM.from_teacher(make_decoder(), 2, tokenizer=tokenizer)
    make_decoder().save_pretrained(tmp_path / "teacher")
    make_tokenizer(words=WORDS[::-1]).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="the teacher's tokenizer|the tokenizer"):
        SKDTrainer(student, settings_of(tmp_path), teacher=str(tmp_path / "teacher"), train_dataset=texts)


def test_objectives_that_do_not_fit_are_refused(tokenizer, texts, tmp_path):
    teacher = make_decoder()
    senses = make_senses(teacher, tokenizer, texts)
    student = SKDStudentForCausalLM.from_teacher(teacher, 2, tokenizer=tokenizer)

    def train(model=student, teacher=teacher, senses=senses, **settings):
        args = settings_of(tmp_path, **settings)
        return SKDTrainer(model, args, teacher=teacher, train_dataset=texts, senses=senses)

    for objective in ("sense", "mse", "lm+sentence"):
        with pytest.raises(ValueError, match="give lm, kl or both"):
            train(objective=objective)
    with pytest.raises(ValueError, match="needs the teacher's dictionary"):
        train(senses=None, objective="lm+sense")
    with pytest.raises(ValueError, match="the head reads the last"):
        train(senses=make_senses(teacher, tokenizer, texts, layer=2))
    with pytest.raises(ValueError, match="lm_weight=0"):
        train(lm_weight=0)
    with pytest.raises(ValueError, match="a Teacher has no language-model head"):
        train(teacher=load_teacher(teacher, tokenizer=tokenizer))
    rows = encode_senses(load_teacher(teacher, tokenizer=tokenizer), senses, texts[:3], keep_vectors=True)
    with pytest.raises(ValueError, match="reads the teacher's head: pass teacher="):
        SKDTrainer(student, settings_of(tmp_path, objective="lm+kl"), train_dataset=rows)
    wide = LlamaForCausalLM(LlamaConfig(**{**teacher.config.to_dict(), "hidden_size": 2 * teacher.config.hidden_size}))
    with pytest.raises(ValueError, match="the student is .* wide, .* make a student from this teacher"):
        train(teacher=wide, senses=None, objective="lm+kl")
    encoder = SKDStudentModel.from_teacher(load_teacher(teacher, tokenizer=tokenizer), senses)
    with pytest.raises(ValueError, match="lm and kl train a language-model head"):
        train(model=encoder, senses=None, objective="sense+lm")
    with pytest.raises(ValueError, match="a dictionary of its own"):
        train(model=encoder)
    student.generation_config.temperature = 0.3  # without do_sample, so that no checkpoint could be saved
    with pytest.raises(ValueError, match="(?s)could not be saved.*You should set `do_sample=True`"):
        train(senses=None, objective="lm+kl")


def test_how_a_named_teacher_is_loaded(tokenizer, texts, tmp_path, monkeypatch):
    make_decoder().save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    asked = []
    load = AutoModelForCausalLM.from_pretrained

    def from_pretrained(name, **options):
        asked.append((options.get("revision"), options["dtype"]))
        return load(name, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    args = settings_of(tmp_path / "student", max_steps=1)
    name, options = str(tmp_path / "teacher"), {"revision": "main", "dtype": "bfloat16"}
    student = distill_student(name, None, texts, args=args, head="causal_lm", teacher_options=options)
    assert asked[0] == ("main", "bfloat16") and student.config.sense_config.base_model_revision == "main"
    assert student.dtype == torch.float32
    for wrong in ({"instruction": "w1"}, {"template": "{text} w1"}, {"pooling": "last"}):
        args = settings_of(tmp_path / "other", max_steps=1)
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} with head='causal_lm'"):
            distill_student(name, None, texts, args=args, head="causal_lm", teacher_options=wrong)


def test_distilling_into_a_folder(tokenizer, texts, tmp_path, capsys):
    teacher = make_decoder()
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    senses = build_sense_dictionary(str(tmp_path / "teacher"), texts, budget=90, key="next")
    args = settings_of(tmp_path / "student", max_steps=3)
    student = distill_student(str(tmp_path / "teacher"), senses, texts, args=args, head="causal_lm", layers=[0, 3])
    assert student.config.objective == "lm+kl+sense" and student.config.teacher_layers == [0, 3]
    again = distill_student(str(tmp_path / "teacher"), senses, texts, args=args, head="causal_lm", layers=[0, 3])
    assert type(again) is SKDStudentForCausalLM
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())
    with pytest.raises(ValueError, match="give senses, the teacher's dictionary"):
        distill_student(str(tmp_path / "teacher"), None, texts, args=args)
    with pytest.raises(ValueError, match="assignment with head='causal_lm'"):
        distill_student(str(tmp_path / "teacher"), senses, texts, args=args, head="causal_lm", assignment="hard")

    # The same from the command line, without senses.
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    given = ["--teacher", tmp_path / "teacher", "--texts", tmp_path / "texts.txt", "--head", "causal_lm"]
    given += ["--output", tmp_path / "plain", "--max-steps", 2, "--report-to", "none", "--disable-tqdm", "true"]
    assert main(["distill", *map(str, given)]) == 0
    printed = capsys.readouterr().out
    assert (
        f"{AutoModelForCausalLM.from_pretrained(tmp_path / 'plain').num_parameters():,} parameters: saved" in printed
    )
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["objective"] == "lm+kl" and config["distillation"]["per_device_train_batch_size"] == 8
