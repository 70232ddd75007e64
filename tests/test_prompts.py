from dataclasses import replace

import pytest
import torch
from tiny_models import make_model, make_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from sensedict_hf import (
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    build_sense_dictionary,
    encode_senses,
    load_teacher,
)
from sensedict_hf.cli import main
from sensedict_hf.models.encoding import pool
from sensedict_hf.models.prompts import Prompt

CHAT = Prompt("w20 w21 {text} w22", instruction="w23")


def row(prompt, tokenizer, text, max_length=64):
    return prompt.tokenize(tokenizer, [text], max_length)[0][:3]


def test_what_is_pooled(tokenizer):
    around = [2, 24, 25, 27, 5, 6, 26, 3]  # [CLS] w20 w21 w23 | w1 w2 | w22 [SEP]
    assert row(CHAT, tokenizer, "w1 w2") == (around, 4, 6)
    assert row(Prompt(CHAT.template, "w23", "all"), tokenizer, "w1 w2") == (around, 0, 8)
    assert row(Prompt(CHAT.template, "w23", "text_and_tail"), tokenizer, "w1 w2") == (
        around,
        5,
        8,
    )  # three tokens alone, from the end
    assert row(CHAT, tokenizer, ("", "w1 w2")) == ([2, 24, 25, 5, 6, 26, 3], 3, 5)
    assert row(CHAT, tokenizer, ["w9 w9", "w1 w2"])[0][3:5] == [13, 13]
    # Without a tail all that follows is pooled, as in sentence-transformers' include_prompt=False.
    assert row(Prompt("w20 {text}"), tokenizer, "w1 w2") == ([2, 24, 5, 6, 3], 2, 5)
    assert row(CHAT, tokenizer, "") == ([2, 24, 25, 27, 26, 3], 0, 6)


def test_long_texts_lose_their_end_and_not_what_is_around(tokenizer):
    text = " ".join(f"w{i}" for i in range(10))
    ids, begin, end = row(CHAT, tokenizer, text, 9)
    assert (ids, begin, end) == ([2, 24, 25, 27, 4, 5, 6, 26, 3], 4, 7)
    with pytest.raises(ValueError, match="alone have 6 tokens"):
        row(CHAT, tokenizer, text, 6)
    assert row(Prompt(pooled="all", max_text_length=4), tokenizer, text) == ([2, 4, 5, 6, 7, 3], 0, 6)


def test_a_template_that_is_none(tokenizer):
    for template in ("", "w1", "{text} {text}"):
        with pytest.raises(ValueError, match="once"):
            Prompt(template)
    with pytest.raises(ValueError, match="text_and_tail"):
        Prompt(pooled="tail")
    with pytest.raises(ValueError, match="neither a string nor"):
        CHAT.parts(["w1", "w2", "w3"])


def test_weighted_mean_and_parts_that_are_pooled():
    states, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 1], [1, 1, 0]])
    torch.testing.assert_close(pool(states, mask, "weighted_mean")[1], (states[1, 0] + 2 * states[1, 1]) / 3)
    pooled = torch.tensor([[0, 1, 1], [0, 1, 0]])
    torch.testing.assert_close(pool(states, mask, "mean", pooled), torch.stack([states[0, 1:].mean(0), states[1, 1]]))
    torch.testing.assert_close(pool(states, mask, "weighted_mean", pooled)[0], (states[0, 1] + 2 * states[0, 2]) / 3)
    assert torch.equal(pool(states, mask, "last", pooled), pool(states, mask, "last"))


@pytest.fixture
def prompted(tokenizer):
    model = make_model("llama")
    return Teacher(model, tokenizer, name="tiny", max_seq_length=64, max_window=64, prompt=CHAT)


def test_a_teacher_pools_the_text_alone(prompted):
    states = prompted.last_hidden_state(torch.tensor([[2, 24, 25, 27, 5, 6, 26, 3]]))[0]
    torch.testing.assert_close(prompted.encode(["w1 w2", "w1 w2 w3 w4"])[0], states[4:6].mean(0))


def test_tokens_of_the_prompt_get_no_senses(prompted, texts):
    texts = [
        text.replace("w20", "w1").replace("w21", "w1").replace("w22", "w1").replace("w23", "w1") for text in texts
    ]
    senses = build_sense_dictionary(prompted, texts, budget=90)
    plain = {token: int(senses.offsets[token + 1] - senses.offsets[token]) for token in (2, 3, 24, 25, 26, 27, 5)}
    assert plain[5] > 0 and not any(plain[token] for token in (2, 3, 24, 25, 26, 27))
    assert senses.config.prompt["template"] == CHAT.template
    total = sum(len(text.split()) for text in texts)
    assert senses.config.num_tokens == total
    everything = build_sense_dictionary(prompted, texts, budget=90, prompt_senses=True)
    assert everything.config.num_tokens == total + 6 * len(texts)


def test_samples_are_the_vectors_inside_the_prompt(prompted):
    """One text: its tokens' senses are the teacher's vectors with the prompt around it."""
    senses = build_sense_dictionary(
        prompted, ["w1 w2"], senses_per_token=1, senses_dtype="float32", sample_dtype="float32"
    )
    states = prompted.last_hidden_state(torch.tensor([[2, 24, 25, 27, 5, 6, 26, 3]]))[0]
    torch.testing.assert_close(senses.senses, states[4:6])


def test_long_texts_have_the_prompt_around_every_window(prompted):
    long = " ".join(["w1"] * 100)
    labels = encode_senses(
        prompted, build_sense_dictionary(prompted, [long], budget=4, max_length=32), [long], max_length=32
    )
    rows = labels["input_ids"][:]
    assert len(rows) > 3 and all(ids[:4] == [2, 24, 25, 27] and ids[-2:] == [26, 3] and len(ids) <= 32 for ids in rows)
    counted = [[label != -100 for label in row] for row in labels["labels"]]
    assert sum(map(sum, counted)) == 100 and not any(row[0] or row[3] or row[-1] for row in counted)
    with pytest.raises(ValueError, match="leaves 2 tokens"):
        encode_senses(prompted, build_sense_dictionary(prompted, ["w1"], budget=1), [long], max_length=8)


def test_a_student_reads_its_teachers_prompt(prompted, texts, tmp_path):
    senses = build_sense_dictionary(prompted, texts, budget=90)
    student = SKDStudentModel.from_teacher(prompted, senses, 4)
    torch.testing.assert_close(student.encode(texts, assignment="none"), prompted.encode(texts))
    for objective in ("sense", "sense+sentence"):
        args = SKDTrainingArguments(str(tmp_path / objective), objective=objective, max_steps=2, report_to="none")
        SKDTrainer(student, args, teacher=prompted, train_dataset=texts).train()
    student.save_pretrained(tmp_path / "student")
    loaded = SKDStudentModel.from_pretrained(tmp_path / "student")
    pairs = [("w9", text) for text in texts]
    assert torch.equal(loaded.encode(pairs), student.encode(pairs)) and loaded.config.prompt["instruction"] == "w23"


def test_where_prompt_and_text_share_a_token_it_is_of_the_text():
    """Tokens that begin with the white space before a word."""
    vocabulary = {"[UNK]": 0, "a": 1, "a:b": 2, "b": 3}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert row(Prompt("a a:{text}"), tokenizer, "b a") == ([1, 2, 1], 1, 3)


def test_a_corpus_has_the_tokens_that_encode_reads():
    """Also where the white space before a text is a token of its own, or one with the text's first."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.train_from_iterator(
        ["Instruct: a few words 123", "words (in brackets) 45", "hello words"] * 9, BpeTrainer(vocab_size=60)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    texts = ["123 words", "hello", "words a", "(in", ")", "few 45"]
    for prompt in (
        Prompt("Instruct: {text}"),
        Prompt("{text}", "Instruct:"),
        Prompt("words ({text}) hello"),
        Prompt("a{text} b"),
    ):
        before, after = prompt.around(tokenizer)
        rows = [row.input_ids for row in prompt.tokenize(tokenizer, texts, None)]
        assert [before + ids + after for ids in prompt.content(tokenizer, texts)] == rows


def test_another_prompt_is_another_build(prompted, texts, tmp_path, monkeypatch):
    other = replace(prompted, prompt=Prompt("w9 {text}"))
    for stage, teachers in (("plan_samples", (other, replace(prompted, prompt=None))), ("fit_senses", (other,))):
        folder = tmp_path / stage
        with monkeypatch.context() as patch:
            patch.setattr(
                f"sensedict_hf.building.{'planning' if stage == 'plan_samples' else 'build'}.{stage}", interrupt
            )
            with pytest.raises(KeyboardInterrupt):
                build_sense_dictionary(prompted, texts, budget=90, output_dir=folder)
        for teacher in teachers:
            with pytest.raises(ValueError, match="other settings: prompt"):
                build_sense_dictionary(teacher, texts, budget=90, output_dir=folder)
        assert (
            build_sense_dictionary(prompted, texts, budget=90, output_dir=folder).config.prompt["template"]
            == CHAT.template
        )
    build_sense_dictionary(prompted, texts, budget=90, output_dir=tmp_path / "kept", keep_samples=True)
    with pytest.raises(ValueError, match="other settings: prompt"):
        build_sense_dictionary(other, texts, budget=90, update=tmp_path / "kept")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_an_empty_text_has_the_vector_of_what_is_around_it(prompted, texts, tmp_path):
    senses = build_sense_dictionary(prompted, texts, budget=90)
    args = SKDTrainingArguments(str(tmp_path), objective="sentence", max_steps=2, report_to="none")
    trainer = SKDTrainer(
        SKDStudentModel.from_teacher(prompted, senses), args, teacher=prompted, train_dataset=["", "w1 w2"] * 8
    )
    assert trainer.train().training_loss > 0


def test_another_backbone_reads_the_prompt_too(prompted, texts):
    senses = build_sense_dictionary(prompted, texts, budget=90)
    student = SKDStudentModel.from_backbone(replace(prompted, prompt=None), senses)
    torch.testing.assert_close(student.encode(texts, assignment="none"), prompted.encode(texts))


def test_a_slow_tokenizer_is_refused(tokenizer):
    class Slow:
        is_fast = False
        name_or_path = "slow"

    with pytest.raises(ValueError, match="fast"):
        Prompt("w1 {text}").tokenize(Slow(), ["w1"], 8)
    assert make_tokenizer().is_fast


@pytest.mark.parametrize(
    "include_prompt, pooling", [(True, "mean"), (True, "weightedmean"), (True, "lasttoken"), (False, "mean")]
)
def test_prompts_of_sentence_transformers(bert, teacher_folder, texts, tmp_path, include_prompt, pooling):
    modules = pytest.importorskip(
        "sentence_transformers.sentence_transformer.modules", reason="needs sentence-transformers"
    )
    from sentence_transformers import SentenceTransformer

    parts = [
        modules.Transformer(str(teacher_folder)),
        modules.Pooling(16, pooling_mode=pooling, include_prompt=include_prompt),
    ]
    model = SentenceTransformer(
        modules=parts,
        prompts={"query": "w20 w21 ", "document": "w22 ", "plain": ""},
        default_prompt_name="query",
        device="cpu",
    )
    model.save_pretrained(str(tmp_path / "model"))
    teacher = load_teacher(tmp_path / "model")
    assert teacher.prompt == Prompt("w20 w21 {text}", pooled="all" if include_prompt else "text")
    assert teacher.prompts == {"query": "w20 w21 ", "document": "w22 ", "plain": ""}
    torch.testing.assert_close(teacher.encode(texts), torch.from_numpy(model.encode(texts)))
    for name in teacher.prompts:
        expected = torch.from_numpy(model.encode(texts, prompt_name=name))
        torch.testing.assert_close(teacher.encode(texts, prompt_name=name), expected)


def test_the_command_takes_them(teacher_folder, texts, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    options = [
        "--teacher",
        teacher_folder,
        "--instruction",
        "w23",
        "--template",
        "w20 {text}",
        "--texts",
        tmp_path / "texts.txt",
    ]
    assert main([*map(str, ["build", *options, "--pooling", "max", "--output", tmp_path / "senses"])]) == 0
    training = [
        "--senses",
        tmp_path / "senses",
        "--max-steps",
        "1",
        "--report-to",
        "none",
        "--output-dir",
        tmp_path / "student",
    ]
    assert main([*map(str, ["distill", *options, "--pooling", "weighted_mean", *training])]) == 0
    student = SKDStudentModel.from_pretrained(tmp_path / "student")
    assert student.config.pooling == "weighted_mean" and student.config.prompt["instruction"] == "w23"
    capsys.readouterr()
    changed = ["--template", "w21 {text}"]
    assert main([*map(str, ["build", *options, *changed, "--output", tmp_path / "senses"])]) == 2
    assert "other settings: prompt" in capsys.readouterr().err
    wrong = [
        "build",
        "--teacher",
        teacher_folder,
        "--bidirectional",
        "false",
        "--texts",
        tmp_path / "texts.txt",
        "--output",
        tmp_path / "x",
    ]
    assert main([*map(str, wrong)]) == 2 and "not causal" in capsys.readouterr().err
