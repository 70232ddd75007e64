import re
from pathlib import Path

import pytest
import torch
from conftest import SIZES, WORDS, make_tokenizer
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    StableLmConfig,
    StableLmModel,
)
from transformers.utils import logging

from sensedict_hf import (
    SenseEmbeddingConfig,
    SKDStudentConfig,
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    Teacher,
    build_sense_dictionary,
    encode_senses,
    load_teacher,
    merge_sense_dictionaries,
)
from sensedict_hf.models.attention import probe_attention
from sensedict_hf.models.encoding import POOLINGS
from sensedict_hf.models.hub import model_card
from sensedict_hf.models.prompts import Prompt


@pytest.fixture
def senses(teacher, texts):
    return build_sense_dictionary(teacher, texts, budget=90)


def batch_of(teacher, texts):
    return teacher.tokenizer(texts[:5], padding=True, return_tensors="pt", return_token_type_ids=False)


def test_all_layers_are_the_teacher(teacher, senses, texts):
    student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=4).eval()
    batch = batch_of(teacher, texts)
    hidden = teacher.model(**batch).last_hidden_state
    output = student(**batch)
    torch.testing.assert_close(output.student_hidden_state, hidden)
    expected = senses(batch["input_ids"], hidden, batch["attention_mask"])
    assert torch.equal(output.last_hidden_state, expected.hidden_states) and torch.equal(
        output.sense_ids, expected.sense_ids
    )
    assert torch.equal(student(**batch, assignment="none").last_hidden_state, output.student_hidden_state)


def test_chosen_layers_are_kept(texts, bert):
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=[1, 3])
    for new, old in enumerate([1, 3]):
        kept, source = student.backbone.encoder.layer[new].state_dict(), bert.model.encoder.layer[old].state_dict()
        assert all(torch.equal(kept[key], source[key]) for key in source)
    assert student.config.teacher_layers == [1, 3] and student.config.num_hidden_layers == 2
    assert bert.model.config.num_hidden_layers == 4


def test_round_trip(teacher, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(teacher, senses, assignment="soft")
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, SKDStudentModel)
    assert loaded.state_dict().keys() == student.state_dict().keys()
    assert torch.equal(loaded.encode(texts), student.encode(texts))
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == teacher.tokenizer.get_vocab()
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    assert "knowledge-distillation" in (tmp_path / "README.md").read_text()
    again = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.backbone.dtype == torch.bfloat16 and again.senses.senses.dtype == torch.float16
    assert torch.isfinite(again.encode(texts[:3])).all()


def test_another_dictionary_takes_its_place(bert, texts, tmp_path):
    """A smaller one or one in int8 is used as it would be by itself, before and after saving; how senses are assigned stays."""
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses, assignment="soft", residual=0.25).eval()
    ids = torch.tensor([bert.tokenizer(texts[0])["input_ids"]])
    for number, other in enumerate([merge_sense_dictionaries([senses], 40), senses.to_dtype("int8")]):
        student.replace_senses(other)
        output = student(ids)
        expected = other(ids, output.student_hidden_state, assignment="soft", residual=0.25)
        torch.testing.assert_close(output.last_hidden_state, expected.hidden_states)
        student.save_pretrained(tmp_path / str(number))
        loaded = AutoModel.from_pretrained(tmp_path / str(number))
        assert torch.equal(loaded(ids).last_hidden_state, output.last_hidden_state)
        assert torch.equal(student.senses.senses_of("w1"), other.senses_of("w1"))
        assert (
            loaded.config.sense_config.num_senses == len(other.senses)
            and loaded.senses.senses.dtype == other.senses.dtype
        )
    with pytest.raises(ValueError, match="layer differs"):
        student.replace_senses(build_sense_dictionary(bert, texts, budget=90, layer=2))

    learning = AutoModel.from_pretrained(tmp_path / "0", learn_senses=True)
    learning.replace_senses(senses)
    assert learning.senses.senses.requires_grad and len(learning.senses.senses) == 90
    with pytest.raises(ValueError, match="int8 senses cannot be learned"):
        learning.replace_senses(senses.to_dtype("int8"))


def test_encode_does_not_depend_on_batches_or_padding(teacher, senses, texts):
    student = SKDStudentModel.from_teacher(teacher, senses)
    expected = torch.cat([student.encode([text]) for text in texts])
    torch.testing.assert_close(student.encode(texts, batch_size=7), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student.encode(texts[0]), expected[0])


def test_another_backbone_with_a_projection(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    small = BertModel(BertConfig(**{**SIZES, "hidden_size": 8, "num_hidden_layers": 1}, max_position_embeddings=64))
    student = SKDStudentModel.from_backbone(small, senses)
    assert student.projection.weight.shape == (16, 8)
    assert torch.equal(student.backbone.embeddings.word_embeddings.weight, small.embeddings.word_embeddings.weight)
    student.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode(texts), student.encode(texts))
    assert student.encode(texts).shape == (60, 16)
    other = Teacher(small, make_tokenizer(WORDS[::-1]), name="other")
    with pytest.raises(ValueError, match="fingerprint"):
        SKDStudentModel.from_backbone(other, senses)


def test_senses_are_no_parameters(bert, texts):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    assert not any("senses" in name for name, _ in student.named_parameters())
    assert {"senses.senses", "senses.offsets", "senses.usage"} <= student.state_dict().keys()


def test_a_foreign_dictionary_is_refused(bert, texts, tokenizer):
    wide = BertModel(BertConfig(**{**SIZES, "hidden_size": 8}, max_position_embeddings=64)).eval()
    senses = build_sense_dictionary(Teacher(wide, tokenizer, name="narrow", max_window=64), texts, budget=90)
    with pytest.raises(
        ValueError, match="the senses are 8 wide, tiny-bert is 16: the dictionary was built from narrow"
    ):
        SKDStudentModel.from_teacher(bert, senses)
    for layers in (0, 5, [], [1, 4], [-1]):
        with pytest.raises(ValueError, match="tiny-bert has layers 0 to 3"):
            SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90), layers)


def test_a_dictionary_of_another_model_is_told(tokenizer, texts, tmp_path, caplog, monkeypatch):
    """By its name; and where the teacher runs over all texts by its weights, as two runs may both have saved a `checkpoint-500`."""
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    for name in ("one/checkpoint-500", "two/checkpoint-500", "two/checkpoint-900"):
        BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=64)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    senses = build_sense_dictionary(tmp_path / "one/checkpoint-500", texts, budget=90)
    student = SKDStudentModel.from_teacher(tmp_path / "one/checkpoint-500", senses)
    relabelled = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one/checkpoint-500")
    relabelled.config.problem_type = "single_label_classification"  # as its first training step does

    def warnings_of(model):
        logging.get_logger("transformers").warning_once.cache_clear()
        found = []
        for use in (
            lambda: SKDStudentForSequenceClassification.from_student(student, model),
            lambda: encode_senses(load_teacher(model, tokenizer=tokenizer), senses, texts),
        ):
            caplog.clear()
            use()
            found.append(re.findall("the teacher is checkpoint-[0-9]*|with other weights", caplog.text))
        return found

    assert warnings_of(relabelled) == [[], []]
    for name, expected in [
        ("one/checkpoint-500", [[], []]),
        ("two/checkpoint-500", [[], ["with other weights"]]),
        ("two/checkpoint-900", [["the teacher is checkpoint-900"], ["with other weights"]]),
    ]:
        assert warnings_of(AutoModelForSequenceClassification.from_pretrained(tmp_path / name)) == expected


def test_a_dictionary_for_more_tokens_than_a_backbone_has_is_refused(bert, texts):
    small = BertModel(BertConfig(**SIZES | {"vocab_size": 20}, max_position_embeddings=64))
    with pytest.raises(ValueError, match="has embeddings for 20 tokens, the dictionary senses of others"):
        SKDStudentModel.from_backbone(small, build_sense_dictionary(bert, texts, budget=90))


def test_a_teacher_is_never_in_training_mode(bert, texts):
    expected = bert.encode(texts)
    bert.model.train()  # as Trainer leaves it
    assert torch.equal(bert.encode(texts), expected)


def test_senses_that_would_not_be_learned_are_refused(bert, texts, tmp_path):
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts), objective="mse").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="learn_senses=True: assignment 'none'"):
        AutoModel.from_pretrained(tmp_path, learn_senses=True)
    assert AutoModel.from_pretrained(tmp_path, learn_senses=True, assignment="soft").senses.senses.requires_grad


@pytest.mark.parametrize("kind", ["frozen", "learned", "adapted"])
def test_processes_do_not_send_each_other_the_dictionary(bert, texts, tmp_path, kind):
    """But senses that are learned are kept alike."""
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(
        tmp_path / "student"
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", learn_senses=kind == "learned")
    if kind == "adapted":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()
    sent = {name for name in dict(model.named_buffers()) if name not in parallel.parameters_to_ignore}
    kept = {name.rpartition("senses.")[2] for name in dict(model.named_buffers()).keys() - sent}
    assert kept == {"offsets", "usage", *["senses"] * (kind != "learned")} and not any(
        "senses" in name for name in sent
    )
    assert not parallel.parameters_to_ignore & dict(model.named_parameters()).keys()


def test_pushing_uploads_all_that_is_saved(bert, texts, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token):
            uploaded["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return type("Url", (), {"repo_id": "me/" + repo_id})

        def create_branch(self, repo_id, branch, exist_ok):
            uploaded["branch"] = repo_id, branch

        def upload_folder(self, repo_id, folder_path, **_):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).rglob("*.*")}, repo_id=repo_id)

    monkeypatch.setattr("sensedict_hf.models.hub.HfApi", Api)
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    student.push_to_hub("student", token="secret", revision="new")
    assert uploaded.pop("branch") == ("me/student", "new")
    assert uploaded["repo_id"] == "me/student" and uploaded["token"] == "secret"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= uploaded.keys()
    assert b"knowledge-distillation" in uploaded["README.md"] and not any(
        name.endswith((".bin", ".pt")) for name in uploaded
    )


def test_a_half_precision_source_gives_a_student_in_float32(bert, texts):
    bert.model.bfloat16()
    bert.model.config.dtype = torch.bfloat16
    senses = build_sense_dictionary(bert, texts, budget=90)
    small = BertModel(BertConfig(**{**SIZES, "hidden_size": 8}, max_position_embeddings=64)).bfloat16()
    small.config.dtype = torch.bfloat16
    for student in (SKDStudentModel.from_teacher(bert, senses), SKDStudentModel.from_backbone(small, senses)):
        assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
        assert torch.isfinite(student.encode(texts)).all()


def test_a_projected_student_loads_in_half_precision(bert, texts, tmp_path):
    small = BertModel(BertConfig(**{**SIZES, "hidden_size": 8}, max_position_embeddings=64))
    SKDStudentModel.from_backbone(small, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.projection.weight.dtype == torch.bfloat16 and loaded.encode(texts).shape == (60, 16)


def test_the_tokenizer_is_found_from_another_folder(bert, texts, tmp_path, monkeypatch):
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(
        tmp_path / "student"
    )
    monkeypatch.chdir(tmp_path)
    student = AutoModel.from_pretrained("student")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert student.tokenizer.get_vocab() == bert.tokenizer.get_vocab()


def test_the_card_names_repositories_only(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    for name, repository in [
        ("me/model-1.5", "me/model-1.5"),
        ("me/model + adapter", None),
        ("a/b/c", None),
        ("model", None),
    ]:
        senses.config.base_model_name_or_path = name
        assert model_card(senses.config).data.base_model == repository


def test_the_card_tells_what_is_returned():
    for objective, returned in [
        ("mse", "own vectors."),
        ("sense", "probabilities."),
        ("sense+mse", "and 50% of its own vectors in each."),
    ]:
        assert returned in model_card(SKDStudentConfig(objective=objective)).content


def test_parts_know_the_tokenizer(bert, texts, tmp_path):
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert len(model.student.senses.senses_of("w20")) > 0 and model.student.encode(texts[:2]).shape == (2, 16)
    model.save_pretrained(tmp_path / "classifier")
    assert "text-classification" in (tmp_path / "classifier" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"text 1 \(''\) has no tokens"):
        bert.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
        bert.encode(["w1", ""])


def test_a_part_of_its_own_vectors(bert, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    student.save_pretrained(tmp_path)
    both = AutoModel.from_pretrained(tmp_path, residual=0.25)
    assert both.config.default_residual == 0.25 and student.config.default_residual == 0
    expected = 0.75 * student.encode(texts, assignment="soft") + 0.25 * student.encode(texts, assignment="none")
    torch.testing.assert_close(both.encode(texts), expected)
    both.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).encode(texts), expected)
    for name, value, message in [
        ("residual", 1.5, "residual is 1.5"),
        ("assignment", "sfot", "unknown assignment 'sfot'"),
        ("pooling", "average", "unknown pooling 'average'"),
    ]:
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(tmp_path, **{name: value})


def test_what_a_student_returns_follows_from_its_objective():
    found = {}
    for objective in (None, "sense", "mse", "sense+mse", "sense+mse+sentence"):
        config = SKDStudentConfig(objective=objective)
        found[objective] = config.default_assignment, config.default_residual
    assert found == {
        None: ("soft", 0.0),
        "sense": ("soft", 0.0),
        "mse": ("none", 0.5),
        "sense+mse": ("soft", 0.5),
        "sense+mse+sentence": ("soft", 0.5),
    }
    directions = SKDStudentConfig(
        objective="sense+mse", sense_config=SenseEmbeddingConfig(hidden_size=768, similarity="cosine")
    )
    assert directions.default_residual == 0  # the lengths of its own vectors are not learned
    own = SKDStudentConfig(objective="sense+mse", assignment="hard", residual=0.0)
    assert (own.default_assignment, own.default_residual) == ("hard", 0.0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_transformers_encodes_alike(bert, texts, tmp_path, pooling):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    senses = build_sense_dictionary(bert, texts, num_senses=2)
    student = SKDStudentModel.from_teacher(bert, senses, pooling=pooling, max_seq_length=16)
    student.save_pretrained(tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    texts = [*texts[:5], " ".join(WORDS)]  # one that is cut
    assert model.max_seq_length == 16 and model.get_embedding_dimension() == 16
    torch.testing.assert_close(torch.from_numpy(model.encode(texts)), student.encode(texts), rtol=1e-4, atol=1e-5)


def test_sentence_transformers_is_told_nothing_of_a_prompt_it_would_pool(bert, texts, tmp_path):
    bert.prompt = Prompt(instruction="w1 w2")
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, num_senses=2)).save_pretrained(tmp_path)
    assert (
        not (tmp_path / "modules.json").exists()
        and "| prompt: instruction | 'w1 w2' |" in (tmp_path / "README.md").read_text()
    )


def test_a_student_attends_as_its_teacher(tokenizer, texts, tmp_path):
    """StableLM is bidirectional with eager attention alone, which transformers does not keep in a config."""
    config = StableLmConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64)
    model = StableLmModel._from_config(config, attn_implementation="eager")
    teacher = load_teacher(model, tokenizer=tokenizer, bidirectional=True)
    student = SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, num_senses=2), 4)
    student.save_pretrained(tmp_path)
    for kind in (AutoModel, AutoModelForSequenceClassification):
        loaded = kind.from_pretrained(tmp_path).eval().base_model
        assert probe_attention(loaded.backbone) == teacher.attention == "bidirectional"
        assert torch.equal(loaded.encode(texts[:1], assignment="none"), teacher.encode(texts[:1]))


def test_settings_that_are_none_are_refused(bert, texts):
    senses = build_sense_dictionary(bert, texts, num_senses=2)
    for make in (SKDStudentModel.from_teacher, SKDStudentModel.from_backbone):
        with pytest.raises(ValueError, match="a student has no setting 'num_layers'"):
            make(bert, senses, num_layers=4)
    assert SKDStudentModel.from_teacher(bert, senses, learn_senses=True).config.learn_senses


def test_a_list_as_long_as_the_model_is_deep_may_be_of_something_else(tokenizer, texts):
    sizes = {
        **SIZES,
        "num_hidden_layers": 2,
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    }
    model = DebertaV2Model(DebertaV2Config(**sizes, max_position_embeddings=64)).eval()
    teacher = Teacher(model, tokenizer, name="tiny")
    student = SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, num_senses=2), 1).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    torch.testing.assert_close(student(ids, assignment="none").last_hidden_state, teacher.hidden_states(ids, layer=1))
