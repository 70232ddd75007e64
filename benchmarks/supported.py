"""Which architectures can be teachers and students: a table of small random models.

    python -m benchmarks.supported

The script builds a small random model of each architecture and takes it through the package: load it as a teacher,
build a dictionary, attach it, make a student of two of its four layers, save and load the student, train it for two
steps. A step that is refused says why. The result is the table on the page about architectures.
"""

import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from sensedict_hf import (
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    Teacher,
    attach_senses,
    build_sense_dictionary,
    load_teacher,
)

from .studies import Study, results_file, study_parser

WORDS = [f"w{number}" for number in range(60)]
TEXTS = [" ".join(WORDS[(7 * row + 3 * place * place) % 60] for place in range(6)) for row in range(40)]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "embedding_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GPT2_SIZES = {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
XLM_SIZES = {"vocab_size": 64, "emb_dim": 32, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64}
T5_SIZES = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_heads": 4}
BART_SIZES = {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 64} | {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in {"layers": 4, "attention_heads": 4, "ffn_dim": 64}.items()
}
# Sizes of architectures whose configs have other names for them, or more of them.
OWN_SIZES: dict[str, dict[str, Any]] = {
    "bart": BART_SIZES,
    "big_bird": {**SIZES, "attention_type": "original_full"},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "clip_text_model": {**SIZES, "projection_dim": 32},
    "ctrl": {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "dff": 64, "n_positions": 64},
    "deberta": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4},
    "flaubert": XLM_SIZES,
    "funnel": {
        "vocab_size": 64,
        "d_model": 32,
        "block_sizes": [2, 2],
        "n_head": 4,
        "d_head": 8,
        "d_inner": 64,
        "num_decoder_layers": 2,
        "architectures": ["FunnelModel"],
    },
    "gpt2": GPT2_SIZES,
    "gpt_neo": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 2]],
    },
    "gptj": {**GPT2_SIZES, "rotary_dim": 4},
    "ibert": {**SIZES, "quant_mode": False},
    "lilt": {**SIZES, "hidden_size": 48},
    "longformer": {**SIZES, "attention_window": 8},
    "mamba": {**SIZES, "state_size": 4},
    "mobilebert": {**SIZES, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert": {**SIZES, "cls_token_id": 2, "sep_token_id": 3},
    "mt5": T5_SIZES,
    "perceiver": {"vocab_size": 64, "num_latents": 8, "d_latents": 32, "d_model": 32, "max_position_embeddings": 64},
    "phi3": {name: value for name, value in SIZES.items() if name != "head_dim"},
    "rembert": {**SIZES, "input_embedding_size": 32, "output_embedding_size": 32},
    "rwkv": {**SIZES, "attention_hidden_size": 32},
    "t5": T5_SIZES,
    "vit": {**SIZES, "image_size": 8, "patch_size": 4},
    "whisper": {**BART_SIZES, "max_source_positions": 64, "num_mel_bins": 8, "pad_token_id": 0},
    "xlm": XLM_SIZES,
    "xlnet": {"vocab_size": 64, "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 64},
    "xmod": {**SIZES, "languages": ["en_XX"], "default_language": "en_XX"},
}
ARCHITECTURES = {
    "encoders": (
        "albert bert big_bird bros camembert canine clip_text_model convbert data2vec-text deberta deberta-v2 "
        "distilbert electra ernie esm flaubert fnet funnel ibert layoutlm lilt longformer luke markuplm megatron-bert "
        "mobilebert modernbert mpnet mra nystromformer perceiver rembert roberta roberta-prelayernorm roc_bert "
        "roformer splinter squeezebert tapas vit xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso"
    ).split(),
    "encoders of encoder-decoders": ["bart", "mt5", "t5", "whisper"],
    "decoders": (
        "bloom cohere ctrl falcon gemma gemma2 gemma3_text glm4 gpt2 gpt_neo gpt_neox gptj granite llama mamba "
        "mistral mixtral olmo2 opt phi phi3 qwen2 qwen3 smollm3 stablelm starcoder2"
    ).split(),
}
STEPS = ("load", "build", "attach", "student", "save and load", "train")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)


def make_model(name: str) -> PreTrainedModel:
    """Return a small random model; of an encoder-decoder, its encoder."""
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[name](**OWN_SIZES.get(name, SIZES))).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model


def try_steps(name: str) -> dict[str, str]:
    """Take an architecture through the package.

    Returns:
        For each step `yes`, or why it was refused. What comes after a step that was refused is not tried, except that
        a student does not need attached senses.
    """
    state: dict[str, Any] = {}
    tokenizer = make_tokenizer()

    def load() -> None:
        state["teacher"] = load_teacher(make_model(name), tokenizer=tokenizer)

    def build() -> None:
        state["senses"] = build_sense_dictionary(state["teacher"], TEXTS, budget=120)

    def attach() -> None:
        teacher: Teacher = load_teacher(make_model(name), tokenizer=tokenizer)
        before = teacher.encode(TEXTS[:2])
        attach_senses(teacher.model, state["senses"], tokenizer=tokenizer)
        assert not torch.equal(teacher.encode(TEXTS[:2]), before), "the senses changed nothing"

    def make_student() -> None:
        state["student"] = SKDStudentModel.from_teacher(state["teacher"], state["senses"], 2)

    def save_and_load() -> None:
        with tempfile.TemporaryDirectory() as folder:
            state["student"].save_pretrained(folder)
            loaded = AutoModel.from_pretrained(folder)
            torch.testing.assert_close(loaded.encode(TEXTS), state["student"].encode(TEXTS))

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = {"max_steps": 2, "per_device_train_batch_size": 8, "report_to": [], "disable_tqdm": True}
            arguments = SKDTrainingArguments(folder, save_strategy="no", use_cpu=True, **options)
            SKDTrainer(state["student"], arguments, teacher=state["teacher"], train_dataset=TEXTS).train()

    found: dict[str, str] = {}
    for step, action in zip(STEPS, (load, build, attach, make_student, save_and_load, train)):
        try:
            action()
            found[step] = "yes"
        except ValueError as error:
            found[step] = f"refused: {error}"
        except Exception as error:  # a fault: errors of the input are a ValueError
            found[step] = f"fault: {type(error).__name__}: {error}"
        if found[step] != "yes" and step != "attach":
            break
    return found


def main() -> None:
    parser = study_parser("supported", __doc__)
    parser.add_argument("--architecture", nargs="+", help="only these")
    options = parser.parse_args()
    study = Study(results_file(options.results, "supported"), command="python -m benchmarks.supported")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    alike: dict[tuple[str, ...], list[str]] = {}
    reasons: list[str] = []
    for kind, names in ARCHITECTURES.items():
        for name in names:
            if options.architecture and name not in options.architecture:
                continue
            found = try_steps(name)
            study.record(name, {"kind": kind, **found})
            cells = tuple(found.get(step, "").split(":")[0] for step in STEPS)
            alike.setdefault(cells, []).append(name)
            reasons += [f"| {name} | {step} | {answer} |" for step, answer in found.items() if answer != "yes"]

    # Architectures with the same answers share a row.
    print(f"| architectures | {' | '.join(STEPS)} |\n|{'---|' * (len(STEPS) + 1)}")
    for cells, names in sorted(alike.items(), key=lambda item: -len(item[1])):
        print(f"| {', '.join(sorted(names))} | {' | '.join(cells)} |")
    print("\n| architecture | step | answer |\n|---|---|---|", *reasons, sep="\n")


if __name__ == "__main__":
    main()
