"""Which architectures attend as they are asked to: bidirectionally or causally, with each attention implementation.

    python -m benchmarks.architectures

The script builds a small random model of each architecture, sets it up as `load_teacher` does, and probes it. The
result is the table in the guide to decoders. `load_teacher` refuses a model that does not attend as asked. Another
attention implementation may then work.
"""

import torch
from transformers import CONFIG_MAPPING, AutoModel
from transformers.utils import logging

from sensedict_hf.models.attention import probe_attention, set_bidirectional

from .studies import Study, results_file, study_parser
from .supported import OWN_SIZES, SIZES

ARCHITECTURES = (
    "llama mistral mixtral gemma gemma2 gemma3_text qwen2 qwen3 qwen3_moe phi phi3 olmo olmo2 smollm3 granite "
    "starcoder2 cohere glm4 gpt_neox opt gpt2 falcon bloom gptj stablelm gpt_neo"
).split()
IMPLEMENTATIONS = ("sdpa", "eager")
ASKED = {"bidirectional": True, "causal": False}


def probe(name: str, implementation: str, bidirectional: bool) -> str:
    """Return what the tokens of a small model attend to, as `probe_attention`; `-` without that implementation."""
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
    options = study_parser("architectures", __doc__).parse_args()
    study = Study(results_file(options.results, "architectures"), command="python -m benchmarks.architectures")
    logging.set_verbosity_error()
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in ARCHITECTURES:
        found = {
            asked: {implementation: probe(name, implementation, bidirectional) for implementation in IMPLEMENTATIONS}
            for asked, bidirectional in ASKED.items()
        }
        study.record(name, found)
        alike.setdefault(tuple(answer for row in found.values() for answer in row.values()), []).append(name)

    # Architectures with the same answers share a row.
    header = ["architectures", "asked for bidirectional: sdpa", "eager", "asked for causal: sdpa", "eager"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for answers, names in sorted(alike.items(), key=lambda item: -len(item[1])):
        print(f"| {', '.join(names)} | {' | '.join(answers)} |")


if __name__ == "__main__":
    main()
