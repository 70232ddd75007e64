"""What is saved of a student, and what is read from its folder: by this package, the Hub and sentence-transformers."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny_models import SIZES, WORDS
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from sensedict_hf import (
    Prompt,
    SenseEmbeddingConfig,
    SenseIndex,
    SKDStudentConfig,
    SKDStudentForCausalLM,
    SKDStudentModel,
    SKDTrainingArguments,
    build_sense_dictionary,
    distill_student,
    load_senses,
    save_router,
)
from sensedict_hf.models.encoding import POOLINGS
from sensedict_hf.models.model_card import model_card
from sensedict_hf.models.sentence_files import write_sentence_transformers
from sensedict_hf.models.teachers import origin_of


def test_round_trip(teacher, texts, tmp_path):
    senses = build_sense_dictionary(teacher, texts, budget=90)
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


def test_parts_know_the_tokenizer(bert, texts, tmp_path):
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert len(model.student.senses.senses_of("w20")) > 0 and model.student.encode(texts[:2]).shape == (2, 16)
    model.save_pretrained(tmp_path / "classifier")
    assert "text-classification" in (tmp_path / "classifier" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"text 1 \(''\) has no tokens"):
        bert.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
        bert.encode(["w1", ""])


def test_a_folder_is_called_by_its_name(tmp_path):
    for path, name in [
        ("hub/models--me--encoder/snapshots/" + "0123" * 10, "me/encoder"),
        ("minilm/model", "minilm"),
        (f"encoder/{'0a' * 20}", "encoder"),
        ("a/minilm", "minilm"),
    ]:
        (tmp_path / path).mkdir(parents=True)
        assert origin_of(str(tmp_path / path)) == name
    assert origin_of("me/encoder") == "me/encoder"


def test_no_saved_file_has_a_path(teacher_folder, tokenizer, texts, tmp_path, monkeypatch):
    """What is saved tells nothing of the machine that it was made on."""
    out, temporary, here = tmp_path / "out", tmp_path / "temporary", tmp_path / "here"
    for folder in (temporary, here):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(here)
    LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=64)).save_pretrained("lm")
    tokenizer.save_pretrained("lm")
    senses = build_sense_dictionary(str(teacher_folder), texts, budget=90, output_dir=out / "senses")
    build_sense_dictionary(str(teacher_folder), texts, budget=90).save_pretrained(out / "temporary")
    args = SKDTrainingArguments(str(out / "distilled"), max_steps=2, report_to="none", use_cpu=True)
    distill_student(str(teacher_folder), str(out / "senses"), texts, args=args)
    student = AutoModel.from_pretrained(out / "distilled")
    student.save_pretrained(out / "again")
    AutoModelForSequenceClassification.from_pretrained(out / "distilled").save_pretrained(out / "head")
    SKDStudentModel.from_teacher(str(teacher_folder), senses, 0).save_pretrained(out / "free")
    SKDStudentForCausalLM.from_teacher(str(here / "lm"), 2).save_pretrained(out / "causal")
    SenseIndex.build(str(teacher_folder), senses, texts).save(out / "index")
    if find_spec("sentence_transformers"):
        write_sentence_transformers(teacher_folder, 16, "mean", 64)
        save_router(student, str(teacher_folder), out / "router")
    for path in out.rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        for place in (tmp_path.name, str(Path.home()) + "/"):
            assert place.encode() not in content, path
    # An index finds a model that lies next to it.
    SenseIndex.build(str(teacher_folder), senses, texts).save(tmp_path / "index")
    (tmp_path / "moved").mkdir()
    for name in ("index", teacher_folder.name):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert len(SenseIndex.load(tmp_path / "moved" / "index").search(texts[:1], 3)[0][0]) == 3


def test_the_card_names_repositories_only(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    for name, repository in [
        ("me/model-1.5", "me/model-1.5"),
        ("me/model + adapter", None),
        ("a/b/c", None),
        ("model", None),
    ]:
        senses.config.base_model_name_or_path = name
        senses.config.card_data = {"license": "other", "license_link": "LICENSE"}
        data = model_card(senses.config).data
        link = f"https://huggingface.co/{repository}/blob/main/LICENSE"
        assert (data.base_model, data.license_link) == (repository, repository and link)


def test_the_card_takes_over_licence_language_and_data_sets(teacher_folder, texts, tmp_path):
    """From the teacher's card and from the origin of the texts, to dictionary, student and head."""
    front = "license: other\nlicense_name: our-terms\nlicense_link: LICENSE\nlanguage:\n- en\n- de\ndatasets: theirs"
    (teacher_folder / "README.md").write_text(f"---\n{front}\n---\n# A teacher")
    data = Dataset.from_dict({"text": texts})
    data.info.download_checksums = {"hf://datasets/me/corpus@0123/a.jsonl": None}
    build_sense_dictionary(str(teacher_folder), data, budget=90, output_dir=tmp_path / "senses")
    data.info.download_checksums = {"hf://datasets/me/more@0123/a.jsonl": None}
    args = SKDTrainingArguments(str(tmp_path / "student"), max_steps=1, report_to="none", use_cpu=True)
    distill_student(str(teacher_folder), str(tmp_path / "senses"), data, args=args)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").save_pretrained(tmp_path / "head")
    for name, datasets in [("senses", 1), ("student", 2), ("head", 2)]:
        card = ModelCard.load(tmp_path / name / "README.md")
        assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "our-terms", None)
        assert card.data.language == ["en", "de"] and card.data.datasets == ["me/corpus", "me/more"][:datasets]
        assert "`our-terms`, as the teacher's card says" in card.text and "| datasets | me/corpus" in card.text
        assert card.data.library_name == "transformers" and "sensedict_hf" in card.data.tags
        assert ("sentence-transformers" in card.data.tags) == (name == "student")
        assert card.text.count("from_pretrained(") + card.text.count("pipeline(") == 2
        assert card.text.count("SentenceTransformer(") == (name == "student")
    loaded = AutoModel.from_pretrained(tmp_path / "student")
    loaded.save_pretrained(tmp_path / "mine", license="mit", with_code=False, card_name="me/mine")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.license == "mit" and "our-terms" not in card.content and card.text.count('"me/mine"') == 2


def test_the_card_says_that_a_licence_is_not_known(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    assert model_card(senses.config).data.license == "unknown" and "Not known" in model_card(senses.config).text
    with pytest.raises(ValueError, match="card_data=.*give strings and lists of strings"):
        SenseEmbeddingConfig(card_data={"license": 3})


def test_the_card_tells_what_is_returned():
    for objective, returned in [
        ("mse", "own vectors."),
        ("sense", "probabilities."),
        ("sense+mse", "and 50% of its own vectors in each."),
    ]:
        assert returned in model_card(SKDStudentConfig(objective=objective)).content


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_transformers_encodes_alike(bert, texts, tmp_path, pooling):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    student = SKDStudentModel.from_teacher(bert, senses, pooling=pooling, max_seq_length=16)
    student.save_pretrained(tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    texts = [*texts[:5], " ".join(WORDS)]  # one that is cut
    assert model.max_seq_length == 16 and model.get_embedding_dimension() == 16
    torch.testing.assert_close(torch.from_numpy(model.encode(texts)), student.encode(texts), rtol=1e-4, atol=1e-5)


def test_the_card_shows_the_prompt(bert, texts, tmp_path):
    bert.prompt = Prompt(instruction="w1 w2")
    senses = build_sense_dictionary(bert, texts, senses_per_token=2)
    SKDStudentModel.from_teacher(bert, senses).save_pretrained(tmp_path)
    assert "| prompt: instruction | 'w1 w2' |" in (tmp_path / "README.md").read_text()


def test_named_prompts_are_saved_if_there_are_some(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    SKDStudentModel.from_teacher(bert, senses).save_pretrained(tmp_path)
    assert not {"prompts", "include_prompt"} & json.loads((tmp_path / "config.json").read_text()).keys()
    bert.prompts, bert.include_prompt = {"query": "w1 w2 "}, False
    # They are the teacher's. A backbone, which may be any model, brings none.
    given = {"prompts": bert.prompts, "include_prompt": False}
    for make, fields in ((SKDStudentModel.from_teacher, {}), (SKDStudentModel.from_backbone, given)):
        make(bert, senses, **fields).save_pretrained(tmp_path)
        config = AutoModel.from_pretrained(tmp_path).config
        assert config.prompts == {"query": "w1 w2 "} and config.include_prompt is False
    assert SKDStudentModel.from_backbone(bert, senses).config.prompts is None


def test_senses_are_loaded_from_dictionaries_and_students(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    senses.save_pretrained(tmp_path / "senses")
    student = SKDStudentModel.from_teacher(bert, senses)
    student.save_pretrained(tmp_path / "student")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").save_pretrained(tmp_path / "head")
    for name in ("senses", "student", "head"):
        loaded = load_senses(tmp_path / name)
        assert torch.equal(loaded.senses, senses.senses) and not loaded.training
        assert loaded.tokenizer.get_vocab() == bert.tokenizer.get_vocab()
    bert.model.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a bert model, not a sense dictionary or a student"):
        load_senses(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no finished model"):
        load_senses(tmp_path / "empty")
