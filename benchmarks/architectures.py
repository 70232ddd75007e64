"""Which architectures attend bidirectionally when they are asked to, in which implementation of attention.

    python benchmarks/architectures.py

Builds a small random model of each, as [`load_teacher`] would run it, and probes it; prints the table of the README. What is not
bidirectional in one implementation is refused there by `load_teacher`, and can be loaded with another.
"""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel
from transformers.utils import logging

from sensedict_hf.models.attention import probe_attention, set_bidirectional

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 64}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2_SIZES,
    "gptj": GPT2_SIZES | {"rotary_dim": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 101},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 101,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 101},
    **{name: SIZES | {"head_dim": 8} for name in ("gemma", "gemma2", "gemma3_text")},
}
ARCHITECTURES = (
    "llama mistral mixtral gemma gemma2 gemma3_text qwen2 qwen3 qwen3_moe phi phi3 olmo olmo2 smollm3 granite starcoder2 cohere glm4 "
    "gpt_neox opt gpt2 falcon bloom gptj stablelm gpt_neo"
).split()
IMPLEMENTATIONS = ("sdpa", "eager")


def probe(name: str, implementation: str, bidirectional: bool) -> str:
    """What a small model of this architecture attends to; `-` where it lacks the implementation."""
    config = CONFIG_MAPPING[name](**OWN_SIZES.get(name, SIZES))
    set_bidirectional(config, bidirectional)
    torch.manual_seed(0)
    try:
        model = AutoModel.from_config(config, attn_implementation=implementation)
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        return "-"
    return probe_attention(model.eval())


def main() -> None:
    logging.set_verbosity_error()
    found: dict[tuple[str, ...], list[str]] = {}
    for name in ARCHITECTURES:
        row = tuple(
            probe(name, implementation, bidirectional)
            for bidirectional in (True, False)
            for implementation in IMPLEMENTATIONS
        )
        found.setdefault(row, []).append(name)
    print(
        "| architectures | asked for bidirectional: sdpa | eager | asked for causal: sdpa | eager |\n|---|---|---|---|---|"
    )
    for row, names in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"| {', '.join(names)} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
