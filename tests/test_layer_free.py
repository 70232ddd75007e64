"""Students without layers: their backbone, what they start from, and how they encode."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, build_once
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from sensedict_hf import (
    LayerFreeConfig,
    LayerFreeModel,
    SKDStudentConfig,
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
)
from sensedict_hf.cli import main
from sensedict_hf.cli.evaluate import parameters
from sensedict_hf.models.layer_free_transfer import encode_tokens


def randomize(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=[{}, {"context_size": 0}, {"text_hidden_size": 0}, {"context_size": 0, "text_hidden_size": 0}])
def model(request):
    """A backbone whose weights are all random, so that each part changes the vectors."""
    sizes = {"context_size": 4, "context_embedding_size": 6, "context_hidden_size": 10, "text_hidden_size": 12}
    sizes |= request.param
    config = LayerFreeConfig(vocab_size=32, hidden_size=16, special_token_ids=[2, 3], vector_scale=0.5, **sizes)
    model = LayerFreeModel(config)
    return randomize(model).eval()


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=90, senses_dtype="float32")


@pytest.fixture
def student(bert, senses):
    return SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0, context_size=4, text_hidden_size=8)


def naive(model, ids):
    """The vectors of the tokens and of the text, token by token, in float64."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    embeddings = weights["token_embeddings.weight"][ids]
    logs = weights["token_weights.weight"][ids, 0]
    own = embeddings
    if model.config.context_size:
        small, window = weights["context_embeddings.weight"][ids], model.config.context_window
        mean = weights["text_mean.weight"] @ small.mean(0)
        contexts = []
        for place in range(len(ids)):
            seen = weights["neighbours.bias"] + mean
            for offset in range(-window, window + 1):
                if 0 <= place + offset < len(ids):
                    seen = seen + weights["neighbours.weight"][:, :, offset + window] @ small[place + offset]
            inner = F.gelu(seen)
            contexts.append(weights["context.weight"] @ inner + weights["context.bias"])
            logs[place] += weights["context_weight.weight"][0] @ inner
        own = embeddings + torch.stack(contexts) @ weights["context_directions.weight"].T
    text = (logs.softmax(0)[:, None] * own).sum(0)
    if model.config.text_hidden_size:
        inner = F.gelu(weights["text_hidden.weight"] @ text + weights["text_hidden.bias"])
        text = text + weights["text_output.weight"] @ inner + weights["text_output.bias"]
    return own * model.config.vector_scale, text * model.config.vector_scale


def test_vectors_are_those_of_the_formula(model):
    rows = [torch.randint(4, 32, (length,)) for length in (1, 9, 3, 20)]
    lengths = torch.tensor([len(row) for row in rows])
    own, texts = model.encode_ragged(torch.cat(rows), lengths, torch.arange(int(lengths.sum())))
    for row, tokens, text in zip(rows, own.split(lengths.tolist()), texts):
        expected_tokens, expected_text = naive(model, row)
        torch.testing.assert_close(tokens.double(), expected_tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(text.double(), expected_text, rtol=1e-4, atol=1e-4)


def test_a_padded_batch_is_its_texts_alone(model):
    """Special tokens, padding and other texts change nothing; a text without tokens has zeros."""
    lengths, texts = [12, 7, 1, 0], [torch.randint(4, 32, (length,)) for length in (12, 7, 1, 0)]
    rows = [torch.cat([torch.tensor([2]), text, torch.tensor([3])]) for text in texts]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(14) < torch.tensor([length + 2 for length in lengths])[:, None]
    output = model(input_ids, mask.long())
    for number, text in enumerate(texts[:3]):
        alone = model(text[None])
        torch.testing.assert_close(output.pooler_output[number], alone.pooler_output[0])
        found = output.last_hidden_state[number, 1 : 1 + len(text)]
        torch.testing.assert_close(found, alone.last_hidden_state[0])
    assert output.pooler_output[3].eq(0).all()


def test_onnx_runs_it_for_any_batch_and_length(student, texts, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    class TextVectors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = student

        def forward(self, input_ids, attention_mask):
            return self.student(input_ids, attention_mask).pooler_output

    randomize(student)
    for table_dtype in ("float32", "int8"):
        student.backbone.convert_tables(table_dtype)
        batch = student.tokenizer(texts[:3], padding=True, return_tensors="pt")
        inputs = (batch["input_ids"], batch["attention_mask"])
        axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
        path = tmp_path / f"{table_dtype}.onnx"
        names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["vectors"]}
        torch.onnx.export(
            TextVectors().eval(), inputs, path, dynamic_shapes=(axes, axes), verbose=False, dynamo=True, **names
        )
        session = onnxruntime.InferenceSession(path)
        for some in (texts[:1], ["w1 [SEP] w2", *texts[3:9]]):
            batch = student.tokenizer(some, padding=True, return_tensors="np")
            found = session.run(None, {name: batch[name] for name in names["input_names"]})[0]
            torch.testing.assert_close(torch.from_numpy(found), student.encode(some), rtol=1e-4, atol=1e-4)


def test_a_long_text_takes_memory_for_its_ids(model):
    """No tensor has a row of full width for each token."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                self.numel = max(self.numel, output.numel())
            return output

    ids, vectors = torch.randint(4, 32, (100_000,)), []
    for table_dtype in ("float32", "int8"):
        model.convert_tables(table_dtype)
        with torch.inference_mode(), Largest() as largest:
            vectors.append(model.encode_ragged(ids, torch.tensor([100_000]))[1])
        assert 100_000 <= largest.numel < 100_000 * model.config.hidden_size
    torch.testing.assert_close(*vectors, rtol=0.05, atol=0.05)


def test_the_weights_of_frequent_tokens_do_not_overflow(model):
    model.token_weights.weight.data.fill_(1000.0)
    vectors = model.encode_ragged(torch.arange(4, 20), torch.tensor([10, 6]))[1]
    assert vectors.isfinite().all()


def test_a_student_starts_with_the_mean_vectors_of_its_teacher(bert, senses, student):
    alone = encode_tokens(bert, 32)
    table = student.get_input_embeddings().weight.detach() * student.backbone.config.vector_scale
    states = bert.hidden_states(torch.tensor([[2, 9, 3]]))
    torch.testing.assert_close(alone[9], states[0, 1])
    for token in (9, 31):
        rows = senses.rows_of(token)
        usage = senses.usage[rows].float()
        mean = (senses.senses_of(token) * usage[:, None]).sum(0)
        expected = (mean + 2 * alone[token]) / (usage.sum() + 2)
        torch.testing.assert_close(table[token], expected)
    assert student.backbone.token_weights.weight[4] > student.backbone.token_weights.weight[31]  # the rare one
    # Context and hidden layer change nothing yet: the vector of a text is a weighted mean.
    ids = bert.tokenizer("w1 w2 w2", add_special_tokens=False)["input_ids"]
    weights = student.backbone.token_weights.weight[ids].exp()
    expected = (table[ids] * weights).sum(0) / weights.sum()
    torch.testing.assert_close(student.encode("w1 w2 w2"), expected.detach())


def test_it_encodes_as_it_pools_and_survives_saving(student, texts, tmp_path):
    randomize(student)
    batch = student.tokenizer(texts[:9], padding=True, return_tensors="pt")
    vectors = student.encode(texts[:9], batch_size=4)
    torch.testing.assert_close(vectors, student(**batch).pooler_output)
    torch.testing.assert_close(student.encode((text for text in texts[:9]), batch_size=2), vectors)
    assert student.encode([]).shape == (0, 16) and student.encode(texts[0]).shape == (16,)
    assert [words.shape for words in student.encode_words([["w1", "w2"], ["w3"]])] == [(2, 16), (1, 16)]
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, SKDStudentModel) and isinstance(loaded.backbone, LayerFreeModel)
    assert torch.equal(loaded.encode(texts[:9], batch_size=4), vectors)


def test_sentence_transformers_encodes_alike(student, texts, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="5.4")
    randomize(student)
    student.config.max_seq_length = 16
    student.save_pretrained(tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    texts = [*texts[:5], "w1 [SEP] w2", " ".join(WORDS)]  # a special token that does not count, and a text that is cut
    assert model.max_seq_length == 16
    torch.testing.assert_close(torch.from_numpy(model.encode(texts)), student.encode(texts), rtol=1e-4, atol=1e-5)


def test_special_tokens_that_are_written_out_do_not_count(student):
    batch = student.tokenizer(["w1 [SEP] w2", "w3"], padding=True, return_tensors="pt")
    vectors = student.encode(["w1 [SEP] w2", "w3"])
    torch.testing.assert_close(vectors, student(**batch).pooler_output)
    torch.testing.assert_close(vectors, student.encode(["w1 w2", "w3"]))
    with pytest.raises(ValueError, match=r"text 1 \('\[SEP\]'\) has no tokens"):
        student.encode(["w1", "[SEP]"])


def test_tables_in_int8_stay_int8(student, texts, tmp_path):
    """Saved, loaded in any dtype, and made floats again; each number moves by half a step at most."""
    randomize(student)
    backbone, exact = student.backbone, student.encode(texts[:9])
    rows = backbone.token_embeddings.weight.detach().clone()
    before = parameters(student)
    backbone.convert_tables("int8")
    assert parameters(student) == before
    close = student.encode(texts[:9])
    assert F.cosine_similarity(close, exact).min() > 0.999 and not torch.equal(close, exact)
    step = rows.abs().amax(1, keepdim=True) / 127
    ids = torch.arange(32)
    assert ((backbone.token_embeddings(ids) - rows).abs() <= step / 2 + 1e-6).all()
    batch = student.tokenizer(texts[:9], padding=True, return_tensors="pt")
    torch.testing.assert_close(student(**batch).pooler_output, close)
    student.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.backbone.token_embeddings.weight.dtype == torch.int8
        assert loaded.backbone.context_embeddings.weight.dtype == torch.int8
        assert F.cosine_similarity(loaded.encode(texts[:9]), close).min() > 0.999
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode(texts[:9]), close)
    backbone.convert_tables("float32")
    torch.testing.assert_close(student.encode(texts[:9]), close)
    assert backbone.token_embeddings.weight.requires_grad
    with pytest.raises(ValueError, match="table_dtype 'int4': choose one of float32, int8"):
        backbone.convert_tables("int4")


def test_a_file_without_its_scales_is_refused(student, tmp_path):
    student.backbone.convert_tables("int8")
    student.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["backbone.token_embeddings.scales"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="token_embeddings.scales"):
        AutoModel.from_pretrained(tmp_path)


def test_an_instruction_is_seen_but_not_pooled(student):
    with_instruction = student.encode([["w1 w2", "w5 w6 w7"]])
    torch.testing.assert_close(with_instruction, student.encode(["w5 w6 w7"]))


def test_long_texts_are_cut_where_the_teacher_cuts_them(student):
    text = " ".join(WORDS * 4)
    torch.testing.assert_close(student.encode(text), student.encode(" ".join((WORDS * 4)[:62])))


def test_senses_are_kept_when_they_are_used(bert, senses, texts):
    assert len(SKDStudentModel.from_teacher(bert, senses, 0).senses.table) == 0
    student = SKDStudentModel.from_teacher(bert, senses, 0, assignment="hard")
    assert torch.equal(student.senses.table, senses.table)
    batch = student.tokenizer(texts[:3], padding=True, return_tensors="pt")
    assert (student(**batch).sense_ids[batch["attention_mask"] == 0] == -1).all()
    assert student(**batch).sense_ids.max() >= 0


def test_a_classifier_reads_the_vector_of_the_text(student, texts, tmp_path):
    student.save_pretrained(tmp_path)
    model = SKDStudentForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    batch = student.tokenizer(texts[:4], padding=True, return_tensors="pt")
    expected = model.classifier(student.encode(texts[:4]))
    torch.testing.assert_close(model(**batch).logits, expected)


def test_what_is_refused(bert, senses, student):
    with pytest.raises(ValueError, match="context_size=-1: give an integer of at least 0"):
        SKDStudentModel.from_teacher(bert, senses, 0, context_size=-1)
    with pytest.raises(ValueError, match="vector_scale=0: give a finite number above 0"):
        LayerFreeConfig(vector_scale=0)
    with pytest.raises(ValueError, match="pooling='mean' with a layer_free backbone: choose 'learned'"):
        SKDStudentModel.from_teacher(bert, senses, 0, pooling="mean")
    with pytest.raises(ValueError, match="pooling='learned' with a bert backbone"):
        SKDStudentConfig(pooling="learned")
    with pytest.raises(ValueError, match="text 1 .* has no tokens"):
        student.encode(["w1", ""])
    with pytest.raises(ValueError, match="no setting 'depth'"):
        SKDStudentModel.from_teacher(bert, senses, 0, depth=3)


@pytest.mark.parametrize("kept", [True, False])
def test_texts_have_no_senses(bert, senses, texts, kept):
    """Their vectors are computed without them, so an assignment is refused and not ignored."""
    settings = {"assignment": "hard"} if kept else {}
    student = SKDStudentModel.from_teacher(
        bert, senses, num_hidden_layers=0, context_size=0, text_hidden_size=4, **settings
    )
    assert student.encode(texts[:2], assignment="none").shape == (2, 16)
    with pytest.raises(ValueError, match="without its senses" if kept else "this student has no senses"):
        student.encode(texts[:2], assignment="hard")


def test_half_precision_tables_in_int8(student, texts, tmp_path):
    student = student.to(torch.bfloat16)
    before = student.encode(texts[:5])
    student.backbone.convert_tables("int8")
    close = student.encode(texts[:5])
    torch.testing.assert_close(close, before, atol=0.1, rtol=0.1)
    student.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode(texts[:5]), close)
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    assert main(["verify", str(tmp_path)]) == 0
    # Floats in the place of the table would be cut to integers, and integers are no scales.
    tensors = load_file(tmp_path / "model.safetensors")
    for name, dtype in [("weight", torch.float32), ("scales", torch.int64)]:
        name = f"backbone.token_embeddings.{name}"
        save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"do not agree on {name}"):
            AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_vectors_of_long_texts(model, dtype):
    ids, lengths = torch.randint(4, 32, (3000,)), torch.tensor([2990, 10])
    expected = model.encode_ragged(ids, lengths)[1]
    assert F.cosine_similarity(model.to(dtype).encode_ragged(ids, lengths)[1].float(), expected).min() > 0.99
    for table_dtype in ("float32", "int8"):
        model.convert_tables(table_dtype)
        found = model.encode_ragged(ids, lengths)[1]
        assert found.dtype == dtype
        torch.testing.assert_close(found.float().norm(dim=1), expected.norm(dim=1), rtol=0.05, atol=0)


def test_adapters_on_a_table_count_in_encode_and_are_trained(bert, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0)
    model = get_peft_model(student, LoraConfig(target_modules=["token_embeddings", "text_hidden"]))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    batch = student.tokenizer(texts[:5], padding=True, return_tensors="pt")
    expected = model.eval()(**batch).pooler_output
    torch.testing.assert_close(student.encode(texts[:5]), expected.detach(), atol=1e-5, rtol=1e-4)
    args = SKDTrainingArguments(str(tmp_path), report_to="none", save_strategy="no", max_steps=2, disable_tqdm=True)
    SKDTrainer(model, args, teacher=bert, train_dataset=texts).train()
    assert not torch.allclose(student.encode(texts[:5]), expected.detach())


def test_special_tokens_and_cuts_are_those_of_forward(bert, texts):
    bert.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[SEP] $A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts), num_hidden_layers=0)
    randomize(student.backbone)
    for text, split in ((" ".join(texts), False), ("w1 [SEP] w2 [CLS] w3", True)):
        student.tokenizer.split_special_tokens = split
        ids = student.tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"]
        torch.testing.assert_close(student.encode(text), student(ids).pooler_output[0].detach(), atol=1e-4, rtol=1e-4)


def test_senses_that_texts_do_not_read_are_not_learned(bert, senses, tmp_path):
    assert len(SKDStudentModel.from_teacher(bert, senses, 0, assignment=None).senses.table) == 0
    SKDStudentModel.from_teacher(bert, senses, 0, assignment="soft").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="learn_senses=True for texts: without layers"):
        SKDStudentForSequenceClassification.from_pretrained(tmp_path, num_labels=3, learn_senses=True)


def test_a_longer_limit_is_the_way_out_of_a_cut(student, texts, monkeypatch):
    said = []
    monkeypatch.setattr("sensedict_hf.models.encoding.logger.warning_once", said.append)
    student.encode(" ".join(texts))
    assert "a larger max_seq_length in its config reads all of it" in said[0]
