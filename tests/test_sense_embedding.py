import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny_models import build_once
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from sensedict_hf import SenseEmbeddingConfig, SenseEmbeddingModel, build_sense_dictionary


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=90)


def same(first, second):
    return all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(first.buffers(), second.buffers(), strict=True)
    )


def test_round_trip(senses, tmp_path):
    senses.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, SenseEmbeddingModel) and same(senses, loaded)
    assert loaded.config.to_diff_dict() == AutoConfig.from_pretrained(tmp_path).to_diff_dict()
    assert loaded.config.num_texts == 60 and loaded.config.method == "budget" and loaded.config.method_value == 90
    assert torch.equal(loaded.senses_of("w9"), senses.senses_of(13))
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == senses.tokenizer.get_vocab()


def test_the_table_is_saved_as_senses(senses):
    assert list(senses.state_dict()) == ["senses", "offsets", "usage"] and senses.table is senses.senses
    ragged = senses.to_dtype("int8").ragged
    assert ragged.table.dtype == torch.int8 and ragged.similarity == "l2"
    assert torch.equal(ragged.take(slice(None), torch.device("cpu")), senses.to_dtype("int8").dequantized())


def test_sharded_saving(senses, tmp_path):
    senses.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(senses, AutoModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_the_stored_dtype_survives_any_request(bert, texts, tmp_path, dtype):
    senses = build_sense_dictionary(bert, texts, senses_per_token=2, senses_dtype=dtype)
    senses.save_pretrained(tmp_path)
    for requested in (None, torch.bfloat16, torch.float32):
        loaded = AutoModel.from_pretrained(tmp_path, dtype=requested)
        assert same(senses, loaded) and loaded.table.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 0.5 / 127)])
def test_other_dtypes(bert, texts, tmp_path, dtype, error):
    """A table is the same whether it is built in a dtype or converted later, and within the rounding of the dtype."""
    exact = build_sense_dictionary(bert, texts, budget=90, senses_dtype="float32")
    stored = exact.to_dtype(dtype)
    assert same(stored, build_sense_dictionary(bert, texts, budget=90, senses_dtype=dtype))
    largest = exact.table.abs().amax(1, keepdim=True)
    assert ((stored.dequantized().float() - exact.table).abs() <= 1.01 * error * largest).all()
    stored.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert (
        same(loaded, stored)
        and loaded.config.senses_dtype == dtype
        and loaded.tokenizer.get_vocab() == exact.tokenizer.get_vocab()
    )
    ids, hidden = torch.tensor([[5, 9, 30]]), torch.randn(1, 3, 16)
    for assignment in ("hard", "soft"):
        expected = exact(ids, hidden, assignment=assignment).hidden_states
        torch.testing.assert_close(
            loaded(ids, hidden, assignment=assignment).hidden_states, expected, rtol=0, atol=5e-2
        )
    torch.testing.assert_close(loaded.senses_of(9).float(), exact.senses_of(9), rtol=0, atol=5e-2)
    loss = exact.cross_entropy(ids, hidden, torch.zeros_like(ids))[0]
    torch.testing.assert_close(loaded.cross_entropy(ids, hidden, torch.zeros_like(ids))[0], loss, rtol=0.05, atol=0.05)
    back = loaded.to_dtype("float32")
    assert back.table.dtype == torch.float32 and back.scales is None


def test_residual(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90, senses_dtype="float32")
    ids, hidden = torch.tensor([[5, 9, 30]]), torch.randn(1, 3, 16, requires_grad=True)
    for assignment in ("hard", "soft"):
        alone = senses(ids, hidden, assignment=assignment)
        senses.config.residual = 0.25
        both = senses(ids, hidden, assignment=assignment)
        torch.testing.assert_close(both.hidden_states, 0.75 * alone.hidden_states + 0.25 * hidden)
        assert torch.equal(both.sense_ids, alone.sense_ids)
        (gradient,) = torch.autograd.grad(both.hidden_states.sum(), hidden)
        torch.testing.assert_close(gradient, torch.ones_like(hidden))
        senses.config.residual = 0.0
    senses.config.residual = 1.0
    torch.testing.assert_close(senses(ids, hidden).hidden_states, hidden)
    senses.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.residual == 1.0
    with pytest.raises(ValueError, match="residual=2"):
        SenseEmbeddingConfig(residual=2)


def test_senses_too_large_for_a_dtype(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90, senses_dtype="float32")
    senses.table[3, 2] = 1e5
    with pytest.raises(ValueError, match="the senses reach 1e\\+05, too large for float16"):
        senses.to_dtype("float16")
    with pytest.raises(ValueError, match="unknown senses_dtype 'int4'"):
        senses.to_dtype("int4")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at the memory of a Linux process")
@pytest.mark.slow
def test_loading_maps_the_table(tmp_path):
    """Loading a table of 100 or 200 MB does not read it into memory."""
    dtypes = ["float16", "bfloat16", "int8"]
    for dtype in dtypes:
        config = SenseEmbeddingConfig(vocab_size=10, hidden_size=1000, num_senses=100_000, senses_dtype=dtype)
        model = SenseEmbeddingModel(config)
        model.offsets[1:] = 100_000
        model.save_pretrained(tmp_path / dtype)
    code = """if True:
        import sys, sensedict_hf
        from pathlib import Path
        from transformers import AutoModel
        def anonymous():
            return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1000
        for folder in sys.argv[1:]:
            before = anonymous()
            model = AutoModel.from_pretrained(folder)
            print(anonymous() - before, model.table.dtype)"""
    folders = [str(tmp_path / dtype) for dtype in dtypes]
    output = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True).stdout
    for dtype, line in zip(dtypes, output.splitlines(), strict=True):
        assert float(line.split()[0]) < 50 and line.split()[1] == f"torch.{dtype}"


def test_construction_on_the_meta_device(senses):
    with torch.device("meta"):
        model = SenseEmbeddingModel(senses.config)
    assert model.table.is_meta and model.table.shape == senses.table.shape


def test_a_card_is_saved(senses, tmp_path):
    senses.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "sense-embeddings" in card.data.tags and "tiny-bert" in card.text and str(tmp_path) not in card.content
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("missing", ["offsets", "senses", "usage"])
def test_missing_tensors_are_not_invented(senses, tmp_path, missing):
    senses.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"and its config do not agree on {missing}"):
        AutoModel.from_pretrained(tmp_path)


def test_wrong_sizes_are_not_invented(senses, tmp_path):
    senses.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_senses"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    for ignored in (True, False):
        with pytest.raises(ValueError, match="do not agree on senses, usage: tensors are missing"):
            AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=ignored)


def test_forward(senses, bert, texts):
    batch = bert.tokenizer(texts[:4], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = bert.last_hidden_state(ids, mask)
    output = senses(ids, hidden, mask, "hard")
    assert (output.sense_ids[mask == 0] == -1).all() and (output.sense_ids[mask == 1] >= 0).all()
    assert torch.equal(output.hidden_states[mask == 0], hidden[mask == 0])
    token, number = int(ids[2, 1]), int(output.sense_ids[2, 1])
    assert torch.equal(output.hidden_states[2, 1], senses.senses_of(token)[number].float())
    assert torch.equal(senses(ids, hidden, mask, "none").hidden_states, hidden)
    soft = senses(ids, hidden, mask, "soft")
    assert torch.equal(soft.sense_ids, output.sense_ids) and not torch.equal(soft.hidden_states, output.hidden_states)


def test_padding_never_has_senses_and_unseen_tokens_keep_their_vectors(senses):
    assert len(senses.senses_of("[PAD]")) == 0 and len(senses.senses_of("[CLS]")) > 0
    hidden = torch.randn(1, 1, 16)
    output = senses(torch.tensor([[1]]), hidden)
    assert output.sense_ids.item() == -1 and torch.equal(output.hidden_states, hidden)


def test_errors(senses):
    ids = torch.tensor([[5, 6]])
    for inputs, message in [
        ((ids, torch.randn(1, 2, 8)), "the vectors are 8 wide, the senses 16"),
        ((ids, torch.randn(1, 3, 16)), "positions differ"),
        ((ids + 30, torch.randn(1, 2, 16)), "token id 35 is outside the dictionary's vocabulary of 32"),
        ((ids, torch.randn(1, 2, 16), None, "best"), "unknown assignment 'best'"),
        ((ids, torch.randn(1, 2, 16), torch.ones(1, 3)), "attention_mask is"),
    ]:
        with pytest.raises(ValueError, match=message):
            senses(*inputs)
    for token, message in [
        ("unheard", "is not one token"),
        ("w1 w2", "w1 w2"),
        (99, "token=99: .* below 32"),
        (-1, "token=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            senses.senses_of(token)
    for settings, message in [
        ({"similarity": "x"}, "similarity"),
        ({"assignment": "x"}, "assignment"),
        ({"format_version": 9}, "upgrade"),
    ]:
        with pytest.raises(ValueError, match=message):
            SenseEmbeddingConfig(**settings)


def test_casting_a_model_keeps_the_senses(senses):
    before = senses.table.clone()
    for cast in (senses.bfloat16(), senses.float(), senses.half(), senses.to("cpu", torch.bfloat16)):
        assert cast.table.dtype == torch.float16 and torch.equal(cast.table, before)
    assert senses.to("meta").senses.is_meta


def test_names_of_tokens(senses):
    """A special token by its name; a word as the tokenizer spells it after a space; a token with senses goes first."""
    assert senses.token_id("[UNK]") == 1 and senses.token_id("[CLS]") == 2
    tokenizer = Tokenizer(
        BPE({"i": 0, "n": 1, "▁": 2, "in": 3, "▁in": 4, "<unk>": 5}, [("i", "n"), ("▁", "in")], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never")
    senses.config.tokenizer_fingerprint = None  # another tokenizer would be refused
    senses.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    senses.offsets.copy_(torch.tensor([0] * 5 + [90] * 28))
    assert senses.token_id("in") == 4 and senses.token_id("▁in") == 4 and len(senses.senses_of("in")) == 90


def test_bytes_of_int8_are_not_taken_for_senses(senses, tmp_path):
    senses.to_dtype("int8").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scales"):
        SenseEmbeddingModel.from_pretrained(tmp_path, senses_dtype="float16")
