"""The examples that train decoders."""

import importlib.util
import math
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import SIZES, WORDS, make_tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)
from transformers.integrations.peft import MIN_PEFT_VERSION

from sensedict_hf import load_teacher


def example(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base(tmp_path):
    """A saved decoder with a head. Its weights are large, so that the untrained head tells words apart."""
    folder = tmp_path / "base"
    settings = {"num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3}
    LlamaForCausalLM(LlamaConfig(**SIZES, **settings, pad_token_id=0)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def texts():
    """Words in a fixed order, so that the neighbours of a masked word tell which one it is."""
    return [" ".join(WORDS[begin : begin + 8]) for begin in range(20)] * 4


@pytest.fixture
def files(texts, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    return ["--texts", str(tmp_path / "texts.txt"), "--held-out", "0.2", "--batch-size", "16"]


def test_mntp(base, files, texts, tmp_path, capsys):
    settings = ["--model", str(base), *files, "--mask-token", "[UNK]", "--learning-rate", "2e-2"]
    before, after = example("mntp").main([*settings, "--output", str(tmp_path / "mntp"), "--max-steps", "15"])
    assert after < before - 0.3
    assert f"held-out windows: {before:.4f} before, {after:.4f} after 15 steps" in capsys.readouterr().out

    # Only the adapter was trained, and it fits the base model without a head.
    saved = load_file(tmp_path / "mntp" / "adapter_model.safetensors")
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "mntp")
    assert saved.keys() == get_peft_model_state_dict(adapted).keys()
    assert len(saved) == 2 * 7 * SIZES["num_hidden_layers"] and all(
        name.startswith("base_model.model.layers.") for name in saved
    )
    assert all(tensor.abs().max() > 0 for tensor in saved.values())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mntp")
    assert (
        tokenizer.mask_token is None
        and tokenizer(texts)["input_ids"] == AutoTokenizer.from_pretrained(base)(texts)["input_ids"]
    )

    teacher = load_teacher(tmp_path / "mntp", bidirectional=True)
    ids = torch.tensor([tokenizer("w1 w2 w3")["input_ids"], tokenizer("w1 w2 w4")["input_ids"]])
    states = teacher.hidden_states(ids)
    assert not torch.equal(states[0, 1], states[1, 1])
    adapted.config.is_causal = False
    torch.testing.assert_close(states, adapted.eval()(ids).last_hidden_state, rtol=1e-4, atol=1e-5)

    # The same seed makes the same adapter. Gradient checkpointing changes nothing.
    for name, more in (("one", []), ("two", ["--gradient-checkpointing"])):
        torch.rand(1)
        example("mntp").main([*settings, "--output", str(tmp_path / name), "--max-steps", "1", *more])
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(one, two)


def test_mntp_predicts_from_the_position_before(base, tmp_path):
    """The loss and the accuracy are those of all logits, moved by one position."""
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = example("mntp").MNTPTrainer(model, TrainingArguments(tmp_path, use_cpu=True))
    ids = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 10]])
    labels = torch.tensor([[-100, -100, 6, 7], [2, -100, -100, 10]])  # no position is before the first
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    torch.testing.assert_close(trainer.compute_loss(model, inputs), expected)
    torch.testing.assert_close(trainer.compute_loss(model, inputs, num_items_in_batch=6), expected / 2)
    loss, found, true = trainer.prediction_step(model, inputs)
    torch.testing.assert_close(loss, expected.detach())
    assert true.tolist() == [[6, 7, 10]] and found.tolist() == [logits[[1, 2, 5]].argmax(-1).tolist()]
    none = inputs | {"labels": torch.full_like(ids, -100)}
    assert trainer.compute_loss(model, none).item() == 0
    assert model(ids).logits.shape == (2, 4, model.config.vocab_size)  # the hook is gone


def test_mntp_continues_after_an_interruption(base, files, tmp_path):
    settings = ["--model", str(base), *files, "--mask-token", "[UNK]", "--max-steps", "4", "--save-steps", "2"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    example("mntp").main([*settings, "--output", str(straight)])
    mntp = example("mntp")
    steps = iter(range(3))

    class Interrupted(mntp.MNTPTrainer):
        def training_step(self, *args, **kwargs):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    mntp.MNTPTrainer = Interrupted
    with pytest.raises(KeyboardInterrupt):
        mntp.main([*settings, "--output", str(resumed)])
    assert [path.name for path in resumed.glob("checkpoint-*")] == ["checkpoint-2"]
    example("mntp").main([*settings, "--output", str(resumed)])
    one, two = (folder / "adapter_model.safetensors" for folder in (straight, resumed))
    assert one.read_bytes() == two.read_bytes()


def test_mntp_needs_a_mask_that_the_model_knows(base, files, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"mask token '_' is none of the tokenizer's 32 tokens: .* --mask-token, for example '\[UNK\]'",
    ):
        example("mntp").main(["--model", str(base), *files, "--output", str(tmp_path / "mntp")])


@pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION), reason=f"transformers needs PEFT {MIN_PEFT_VERSION} here"
)
def test_simcse(base, files, tmp_path):
    """After MNTP, the second step makes one model, the same for both libraries, and resumes to the same bytes."""
    settings = [*files[:2], "--batch-size", "8", "--max-steps", "4", "--save-steps", "2", "--learning-rate", "1e-2"]
    simcse = example("simcse")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    simcse.main(["--model", str(base), *settings, "--output", str(straight)])
    before, after = load_teacher(base, bidirectional=True), load_teacher(straight)
    assert (after.attention, after.pooling, after.model.config.attention_dropout) == ("bidirectional", "mean", 0.0)
    sentences = ["w1 w2 w3", "w4 w5"]
    vectors = after.encode(sentences)
    assert (vectors - before.encode(sentences)).abs().max() > 1e-3
    torch.testing.assert_close(vectors, SentenceTransformer(str(straight)).encode(sentences, convert_to_tensor=True))

    steps = iter(range(3))

    class Interrupted(simcse.SentenceTransformerTrainer):
        def training_step(self, *args, **kwargs):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    simcse.SentenceTransformerTrainer = Interrupted
    with pytest.raises(KeyboardInterrupt):
        simcse.main(["--model", str(base), *settings, "--output", str(resumed)])
    example("simcse").main(["--model", str(base), *settings, "--output", str(resumed)])
    one, two = (folder / "model.safetensors" for folder in (straight, resumed))
    assert one.read_bytes() == two.read_bytes()
    assert not list(tmp_path.glob("*.training"))


def test_train_decoder(files, texts, tmp_path):
    sizes = [
        "--hidden-size",
        "16",
        "--num-hidden-layers",
        "2",
        "--num-attention-heads",
        "2",
        "--vocab-size",
        "270",
        "--max-length",
        "16",
    ]
    settings = [*files, *sizes, "--max-steps", "20", "--learning-rate", "1e-2", "--output", str(tmp_path / "decoder")]
    before, after = example("train_decoder").main(settings)
    # Earlier versions of transformers divide by one token more in each window of 16.
    assert before == pytest.approx(math.log(270), abs=0.4) and after < before - 1
    tokenizer, decoder = (kind.from_pretrained(tmp_path / "decoder") for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert (
        decoder.config.num_hidden_layers == 2
        and decoder.config.use_cache
        and decoder.config.vocab_size == len(tokenizer) == 270
    )
    ids = tokenizer("w1 Ünïcode_ 日本")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == "w1 Ünïcode_ 日本"
    assert decoder.generate(torch.tensor([ids[:3]]), max_new_tokens=3, do_sample=False).shape == (1, 6)
    assert load_teacher(tmp_path / "decoder").encode(texts[:2]).shape == (2, 16)
    # The tokenizer has the mask of LLM2Vec, so MNTP works without an option.
    example("mntp").main(
        ["--model", str(tmp_path / "decoder"), *files, "--max-steps", "1", "--output", str(tmp_path / "mntp")]
    )


def test_train_decoder_needs_a_window(files, tmp_path):
    with pytest.raises(
        ValueError, match="the train texts have fewer than 9000 tokens: give more texts, or a smaller --max-length"
    ):
        example("train_decoder").main([*files, "--max-length", "9000", "--output", str(tmp_path / "decoder")])
