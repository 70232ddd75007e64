"""Students made from layers of a teacher, and from other models."""

import pytest
import torch
from tiny_models import SIZES, WORDS, build_once, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    RobertaConfig,
    RobertaModel,
    StableLmConfig,
    StableLmModel,
)

from sensedict_hf import (
    SKDStudentModel,
    Teacher,
    adopt_tokenizer,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.models.attention import probe_attention
from sensedict_hf.models.layer_transfer import choose_layers


@pytest.fixture
def senses(teacher, texts):
    return build_once(teacher, texts, budget=90)


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


def test_a_half_precision_source_gives_a_student_in_float32(bert, texts):
    bert.model.bfloat16()
    bert.model.config.dtype = torch.bfloat16
    senses = build_sense_dictionary(bert, texts, budget=90)
    small = BertModel(BertConfig(**{**SIZES, "hidden_size": 8}, max_position_embeddings=64)).bfloat16()
    small.config.dtype = torch.bfloat16
    for student in (SKDStudentModel.from_teacher(bert, senses), SKDStudentModel.from_backbone(small, senses)):
        assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
        assert torch.isfinite(student.encode(texts)).all()


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
    with pytest.raises(ValueError, match="fingerprint.*adopt_tokenizer"):
        SKDStudentModel.from_backbone(other, senses)


def test_a_backbone_that_adopts_a_tokenizer_keeps_the_embeddings_of_known_tokens(bert, texts):
    # The same words with other ids, words that only one of them has, and a separator of another name.
    words = [*WORDS[:4:-1], "w5w", "new"]
    tokenizer = make_tokenizer(words)
    tokenizer.add_special_tokens({"sep_token": "</s>"})
    backbone = adopt_tokenizer(bert, tokenizer)
    old, new = (model.get_input_embeddings().weight for model in (bert.model, backbone.model))
    assert new.shape == (len(tokenizer), 16) and backbone.model.config.vocab_size == len(tokenizer)
    for token in WORDS[5:]:
        ids = [each.convert_tokens_to_ids(token) for each in (tokenizer, bert.tokenizer)]
        assert torch.equal(new[ids[0]], old[ids[1]])
    assert torch.equal(new[tokenizer.sep_token_id], old[bert.tokenizer.sep_token_id])
    assert torch.equal(new[tokenizer.convert_tokens_to_ids("new")], old[bert.tokenizer.unk_token_id])
    # The given model stays as it is, and the copy encodes the words that both know as before.
    assert bert.model.config.vocab_size == 32 and len(old) == 32
    known = ["w6 w7 w8", "w20"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A </s>", special_tokens=[("[CLS]", 2), ("</s>", tokenizer.sep_token_id)]
    )
    torch.testing.assert_close(backbone.encode(known), bert.encode(known))
    # It is the backbone of a student.
    teacher = Teacher(bert.model, bert.tokenizer, name="tiny", max_window=64)
    foreign = adopt_tokenizer(backbone, teacher.tokenizer)
    student = SKDStudentModel.from_backbone(foreign, build_sense_dictionary(teacher, texts, budget=90))
    assert torch.isfinite(student.encode(texts)).all()


def test_new_tokens_are_the_mean_of_their_pieces(bert):
    # The text of this token consists of two old words.
    tokenizer = make_tokenizer(["w1 w3", *WORDS])
    old = bert.model.get_input_embeddings().weight
    new = adopt_tokenizer(bert, tokenizer).model.get_input_embeddings().weight
    pieces = bert.tokenizer.convert_tokens_to_ids(["w1", "w3"])
    torch.testing.assert_close(new[4], old[pieces].mean(0))


def test_positions_that_depend_on_the_padding_token_refuse_another_one():
    model = RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=64, pad_token_id=1))
    with pytest.raises(ValueError, match="counts its positions from the id of the padding token, 1,.* pads with 0"):
        adopt_tokenizer(Teacher(model, make_tokenizer(), name="roberta"), make_tokenizer(WORDS[::-1]))


def test_a_foreign_dictionary_is_refused(bert, texts, tokenizer):
    wide = BertModel(BertConfig(**{**SIZES, "hidden_size": 8}, max_position_embeddings=64)).eval()
    senses = build_sense_dictionary(Teacher(wide, tokenizer, name="narrow", max_window=64), texts, budget=90)
    with pytest.raises(
        ValueError, match="the senses are 8 wide, tiny-bert is 16: the dictionary was built from narrow"
    ):
        SKDStudentModel.from_teacher(bert, senses)
    for layers in (5, [], [1, 4], [-1]):
        with pytest.raises(ValueError, match="tiny-bert has layers 0 to 3"):
            SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90), layers)


def test_a_dictionary_for_more_tokens_than_a_backbone_has_is_refused(bert, texts):
    small = BertModel(BertConfig(**SIZES | {"vocab_size": 20}, max_position_embeddings=64))
    with pytest.raises(ValueError, match="has embeddings for 20 tokens, but the dictionary has senses of others"):
        SKDStudentModel.from_backbone(small, build_sense_dictionary(bert, texts, budget=90))


def test_settings_that_are_none_are_refused(bert, texts):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    for make in (SKDStudentModel.from_teacher, SKDStudentModel.from_backbone):
        for name, value in {"num_layers": 4, "vocab_size": 99, "text_config": None, "check": 3}.items():
            with pytest.raises(ValueError, match=f"a student has no setting '{name}'"):
                make(bert, senses, **{name: value})
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
    student = SKDStudentModel.from_teacher(
        teacher, build_sense_dictionary(teacher, texts, senses_per_token=2), 1
    ).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    torch.testing.assert_close(student(ids, assignment="none").last_hidden_state, teacher.hidden_states(ids, layer=1))


def test_a_student_attends_as_its_teacher(tokenizer, texts, tmp_path):
    """StableLM is bidirectional with eager attention only, which transformers does not save in a config."""
    config = StableLmConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64)
    model = StableLmModel._from_config(config, attn_implementation="eager")
    teacher = load_teacher(model, tokenizer=tokenizer, bidirectional=True)
    student = SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, senses_per_token=2), 4)
    student.save_pretrained(tmp_path)
    for kind in (AutoModel, AutoModelForSequenceClassification):
        loaded = kind.from_pretrained(tmp_path).eval().base_model
        assert probe_attention(loaded.backbone) == teacher.attention == "bidirectional"
        assert torch.equal(loaded.encode(texts[:1], assignment="none"), teacher.encode(texts[:1]))
    for change in (
        lambda: AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa"),
        lambda: loaded.set_attn_implementation("sdpa"),
    ):
        with pytest.raises(ValueError, match="attends as its teacher only with 'eager'"):
            change()


def test_a_layer_may_be_kept_twice(bert, texts):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90), [0, 0])
    first, second = (layer.state_dict() for layer in student.backbone.encoder.layer)
    assert len(student.backbone.encoder.layer) == 2 and all(torch.equal(first[key], second[key]) for key in first)


def test_weights_that_cannot_be_copied_are_refused(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    bert.model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    with pytest.raises(ValueError, match="BertModel has 2 lists of 4 layers, not one.*with from_backbone"):
        SKDStudentModel.from_teacher(bert, senses)
    bert.model.others = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="do not fit a BertModel made from its config: others.weight, others.bias"):
        SKDStudentModel.from_teacher(bert, senses)
    bert.model.is_quantized, bert.model.quantization_method = True, "bitsandbytes"
    for make in (SKDStudentModel.from_teacher, SKDStudentModel.from_backbone):
        with pytest.raises(ValueError, match="the weights of tiny-bert are quantized"):
            make(bert, senses)


def test_a_model_from_a_gguf_file_is_copied_as_the_floats_it_was_loaded_as(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    # What transformers leaves on such a model.
    bert.model.is_quantized, bert.model.quantization_method = True, "gguf"
    bert.model.config.quantization_config = {"quant_method": "gguf"}
    SKDStudentModel.from_teacher(bert, senses).save_pretrained(tmp_path)
    student = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(
        student.backbone.encoder.layer[0].output.dense.weight, bert.model.encoder.layer[0].output.dense.weight
    )
    assert not hasattr(student.config.text_config, "quantization_config")


@pytest.mark.parametrize(
    ("number", "layer", "expected"),
    [
        (1, -1, [0]),
        (2, -1, [0, 3]),
        (3, -1, [0, 1, 3]),
        (4, -1, [0, 1, 2, 3]),
        (3, 3, [0, 1, 2]),
        (2, 3, [0, 2]),  # the third layer makes the hidden states 3
        (2, -2, [0, 2]),
        (2, 1, [0, 1]),
        (2, 0, [0, 1]),  # the embeddings: no layer makes them
        ([3, 1], -1, [3, 1]),
    ],
)
def test_a_number_keeps_the_layer_that_makes_the_vectors(bert, number, layer, expected):
    assert choose_layers(number, bert, layer) == expected


@pytest.mark.parametrize("number", [-1, 5, 10**9, [], [4], [-1]])
def test_layers_that_are_not_there(bert, number):
    with pytest.raises(ValueError, match="has layers 0 to 3"):
        choose_layers(number, bert)
