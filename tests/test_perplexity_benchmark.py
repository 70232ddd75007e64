"""The benchmark of language modelling with senses."""

import json
import sys

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import perplexity
from sensedict_hf import evaluate_language_modeling


def test_states_score_like_the_model_and_one_sense_for_each_sample_like_the_states(
    tokenizer, texts, tmp_path, monkeypatch, capsys
):
    torch.manual_seed(0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])  # as decoders
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes)).eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    (tmp_path / "set").mkdir()
    file, results = tmp_path / "set" / "texts.jsonl", tmp_path / "results.json"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts[:20]))
    options = {
        "teacher": tmp_path / "teacher",
        "train": file,
        "test": file,
        "output": tmp_path,
        "results": results,
        "length": 32,
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["perplexity", *arguments])
    # So many senses that each sample is one.
    monkeypatch.setattr(perplexity, "DICTIONARIES", {"all": {"senses_per_token": 10_000}})
    perplexity.main()
    assert "| next | all |" in capsys.readouterr().out
    scores = json.loads(results.read_text())["entries"]["teacher, set"]
    found = evaluate_language_modeling(model, texts[:20], tokenizer=tokenizer, max_length=32)
    for key in ("input", "next"):
        for each in (scores["states"], scores[f"{key}, all"]["hard"]):
            assert each["perplexity"] == pytest.approx(found["perplexity"], rel=1e-3)
            assert each["token_accuracy"] == pytest.approx(found["token_accuracy"], abs=0.01)
