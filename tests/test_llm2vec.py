"""Checkpoints of LLM2Vec, against what the package itself computes for them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from sensedict_hf import load_teacher
from sensedict_hf.models.checkpoints import LLM2VEC_POOLINGS, _find_base_model, llm2vec_prompt

FOLDER = Path(__file__).parent / "fixtures" / "llm2vec"
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def pairs():
    return json.loads((FOLDER / "sentences.json").read_text())


def load(name):
    # For the model type qwen2 the library's own tokenizer would add a token to the one in the folder.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER / name)
    return load_teacher(
        FOLDER / name, bidirectional=name != "qwen2", tokenizer=tokenizer
    )  # the package's Qwen2 is causal


@pytest.mark.parametrize("name", ["llama", "mistral_sw6", "qwen2"])
def test_hidden_states_are_those_of_the_package(name, expected):
    teacher, causal = load(name), load_teacher(FOLDER / name, bidirectional=False)
    for case in ("nomask", "ones", "left", "right"):
        ids, mask = expected[f"inputs/{case}/input_ids"], expected.get(f"inputs/{case}/attention_mask")
        shown = torch.ones_like(ids).bool() if mask is None else mask.bool()
        for some, key in ((teacher, "last_hidden_state"), (causal, "last_hidden_state_causal")):
            torch.testing.assert_close(
                some.last_hidden_state(ids, mask)[shown], expected[f"{name}/{key}/{case}"][shown], **CLOSE
            )


@pytest.mark.parametrize("name", ["llama", "mistral_sw6", "qwen2"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "eos_token", "last_token", "bos_token"])
@pytest.mark.parametrize("skip", [True, False])
def test_vectors_of_texts_are_those_of_the_package(name, pooling, skip, expected, pairs):
    teacher = load(name)
    prompt = llm2vec_prompt(pooling, teacher.model.config.model_type, skip_instruction=skip, max_text_length=40)
    teacher = replace(teacher, pooling=LLM2VEC_POOLINGS.get(pooling, pooling), max_seq_length=64, prompt=prompt)
    torch.testing.assert_close(
        teacher.encode(pairs), expected[f"{name}/encode/{pooling}/skip_instruction={skip}"], **CLOSE
    )


def test_adapters_and_settings_of_the_folders(expected, pairs):
    teacher = load_teacher(FOLDER / "llama-mntp")
    assert (
        "<|eot_id|>" in teacher.prompt.template
    )  # that of the model it was made of; these vectors were computed without one
    plain = replace(teacher, max_seq_length=64, prompt=replace(teacher.prompt, template="{text}", max_text_length=40))
    torch.testing.assert_close(plain.encode(pairs), expected["llama-mntp/encode/merged"], **CLOSE)
    supervised = load_teacher(FOLDER / "llama-mntp", adapters=FOLDER / "llama-mntp-supervised")
    assert (
        "<|eot_id|>" in supervised.prompt.template and supervised.max_seq_length == 256
    )  # 512, but not more than the model takes
    for merged in (True, False):
        torch.testing.assert_close(
            supervised.encode(pairs), expected[f"llama-mntp-supervised/encode/merge_peft={merged}"], **CLOSE
        )
    rows = supervised.prompt.tokenize(supervised.tokenizer, pairs, 256)
    for row, ids, mask, pooled in zip(rows, *(expected[f"llama-mntp-supervised/tokens/{x}"] for x in INPUTS)):
        assert row.input_ids == ids[mask.bool()].tolist() and row.end - row.begin == int(pooled.sum())


INPUTS = ("input_ids", "attention_mask", "embed_mask")


def test_an_adapter_whose_base_is_not_known_is_refused():
    with pytest.raises(ValueError, match="on top of another"):
        load_teacher(FOLDER / "llama-mntp-supervised")


@pytest.fixture
def llm2vec_folder(tokenizer, tmp_path):
    """As the package saves a model whose adapters are merged."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    folder = tmp_path / "merged"
    LlamaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"pooling_mode": "weighted_mean", "max_length": 48, "doc_max_length": 20, "skip_instruction": True}
    (folder / "llm2vec_config.json").write_text(json.dumps(settings))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["LlamaBiModel"]}))
    return folder


def test_a_merged_save(llm2vec_folder):
    teacher = load_teacher(llm2vec_folder)
    assert (teacher.pooling, teacher.max_seq_length, teacher.prompt.max_text_length) == ("weighted_mean", 48, 20)
    assert teacher.model.config.is_causal is False
    long = "w1 " * 30
    assert teacher.prompt.tokenize(teacher.tokenizer, [long], 48)[0].end <= 22  # 20 and two special tokens
    states = teacher.last_hidden_state(torch.tensor([[2, 5, 6, 3]]))[0]
    # As many positions as the text has tokens alone, from the end of the row: that is the rule, whatever stands there.
    torch.testing.assert_close(teacher.encode(["w1 w2"])[0], (states[2] + 2 * states[3]) / 3)


def test_objects_of_the_package_are_refused():
    wrapper = type("LLM2Vec", (torch.nn.Module,), {"__module__": "llm2vec.llm2vec"})()
    model = type("LlamaBiModel", (LlamaModel,), {"__module__": "llm2vec.models.bidirectional_llama"})
    for teacher in (
        wrapper,
        model(LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)),
    ):
        with pytest.raises(ValueError, match=r"llm2vec package.*load_teacher\(path\)"):
            load_teacher(teacher)
    with pytest.raises(ValueError, match="teacher is int: pass a name"):
        load_teacher(3)


@pytest.mark.parametrize("with_head", [False, True])
def test_any_adapter_is_merged(llm2vec_folder, tmp_path, with_head):
    torch.manual_seed(1)
    model = AutoModel.from_pretrained(llm2vec_folder)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    ).eval()
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    if with_head:  # of a model with a head, one module deeper
        weights = load_file(folder / "adapter_model.safetensors")
        save_file(
            {name.replace("base_model.model.", "base_model.model.model."): tensor for name, tensor in weights.items()},
            folder / "adapter_model.safetensors",
        )
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    alone = load_teacher(llm2vec_folder).last_hidden_state(ids)
    for teacher in (
        load_teacher(llm2vec_folder, adapters=folder),
        load_teacher(folder, tokenizer=str(llm2vec_folder)),
    ):
        adapted.base_model.model.config.is_causal = False
        torch.testing.assert_close(teacher.last_hidden_state(ids), adapted(input_ids=ids).last_hidden_state)
        assert not torch.allclose(teacher.last_hidden_state(ids), alone)
    with pytest.raises(ValueError, match="holds no adapter"):
        load_teacher(llm2vec_folder, adapters=llm2vec_folder)


@pytest.mark.parametrize("kind", ["mistral", "gemma"])
def test_adapters_of_other_architectures(kind, tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    )
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**sizes, head_dim=8, pad_token_id=0))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    first = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    first.save_pretrained(tmp_path / "mntp")
    second = get_peft_model(
        first.merge_and_unload(), LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    ).eval()
    second.save_pretrained(tmp_path / "supervised")
    teacher = load_teacher(
        tmp_path / "base", adapters=[tmp_path / "mntp", tmp_path / "supervised"], bidirectional=True
    )
    second.base_model.model.config.is_causal = False
    ids, mask = torch.tensor([[5, 6, 7, 8, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    expected = second(input_ids=ids, attention_mask=mask).last_hidden_state[:, :4]
    torch.testing.assert_close(teacher.last_hidden_state(ids, mask)[:, :4], expected)


def test_adapters_on_adapters(llm2vec_folder, tmp_path):
    """One next to a base model of the same name, with that model's settings; and one on a model that has another."""
    model = get_peft_model(AutoModel.from_pretrained(llm2vec_folder), LoraConfig(r=2, target_modules=["q_proj"]))
    folder = tmp_path / "adapters" / "merged"
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(llm2vec_folder)}))
    teacher = load_teacher(folder)
    assert (teacher.pooling, teacher.max_seq_length, teacher.prompt.max_text_length) == ("weighted_mean", 48, 20)
    assert load_teacher(folder, pooling="mean").pooling == "mean"
    assert load_teacher(llm2vec_folder, adapters=folder).name == "merged + merged"
    assert _find_base_model("org/merged", str(folder)) == "org/merged"
    with pytest.raises(ValueError, match="has adapters in it already"):
        load_teacher(model.get_base_model(), adapters=folder)


def test_what_a_template_of_ones_own_pools(llm2vec_folder):
    assert load_teacher(llm2vec_folder, instruction="w1").prompt.pooled == "text_and_tail"
    assert load_teacher(llm2vec_folder, template="w1 {text} w2").prompt.pooled == "text"


def test_an_adapter_of_another_model_is_refused(llm2vec_folder, tmp_path):
    other = LlamaModel(
        LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    )
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="does not fit"):
        load_teacher(llm2vec_folder, adapters=tmp_path / "adapter")


def test_a_base_model_next_to_its_adapter_is_found(llm2vec_folder, tmp_path):
    adapted = get_peft_model(AutoModel.from_pretrained(llm2vec_folder), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "somewhere/merged"}))
    teacher = load_teacher(tmp_path / "adapter")
    assert teacher.name == "adapter" and teacher.model.config.is_causal is False  # the base model's settings hold
