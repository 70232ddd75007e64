"""Forms of a student: PyTorch and ONNX, with all its senses, with fewer, and with one for each token.

    python -m benchmarks.exporting --data FOLDER --student STUDENT

- Each form is scored on STS-B; `benchmarks/README.md` describes FOLDER.
- Speed is measured in CPU time of one thread, so that other programs count little. The texts are those of
  uci_sentiment, about 15 tokens long: 64 single ones, as queries come, and 320 in batches of 32. The forms take turns,
  and the best of three rounds counts.
- `most` is the largest number of senses of a token, to which the look-up in ONNX pads.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from torch import Tensor
from transformers.utils import logging

from sensedict_hf import SKDStudentModel, export_onnx, merge_sense_dictionaries
from sensedict_hf.models.encoding import BatchEncoder

from .distillation.tasks import load_task
from .studies import Study, results_file, shortest_times, study_parser

QUERIES, TEXTS, BATCH_SIZE, ROUNDS = 64, 320, 32, 3


def run_onnx(file: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the forward pass of an ONNX file, in one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.long().numpy()}
        return torch.from_numpy(session.run(["last_hidden_state"], inputs)[0])

    return forward


def forms(student: SKDStudentModel, folder: Path) -> Iterator[tuple[str, float, BatchEncoder]]:
    """Yield the title of each form, the megabytes of its file, and what encodes texts with it."""
    encoder = student._batch_encoder(None, BATCH_SIZE)
    for file in export_onnx(student, folder, int8=True):
        title = "ONNX, int8" if "quantized" in file else "ONNX"
        yield title, (folder / file).stat().st_size / 1e6, replace(encoder, forward=run_onnx(folder / file))
    yield "PyTorch", (folder / "model.safetensors").stat().st_size / 1e6, encoder


def main() -> None:
    parser = study_parser("exporting", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--student", required=True, help="folder of a student")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    similarity = load_task("stsb", options.data).evaluation
    texts = load_task("uci_sentiment", options.data).evaluation.inputs[1]
    study = Study(
        results_file(options.results, "exporting"),
        command="python -m benchmarks.exporting --data FOLDER --student STUDENT",
    )

    student = SKDStudentModel.from_pretrained(options.student)
    whole, tokens = student.senses, int((student.senses.offsets.diff() > 0).sum())
    print("| senses | most | form | MB | STS-B | queries/s | texts/s in batches |\n|---|---|---|---|---|---|---|")
    for budget in (len(whole.table), len(whole.table) // 4, tokens):
        if budget < len(whole.table):
            student.replace_senses(merge_sense_dictionaries([whole], budget))
        with TemporaryDirectory() as folder, torch.inference_mode():
            made = list(forms(student, Path(folder)))
            runs = {
                (title, number): partial(replace(encoder, batch_size=size).encode_texts, texts[:number])
                for title, _, encoder in made
                for number, size in ((QUERIES, 1), (TEXTS, BATCH_SIZE))
            }
            seconds = shortest_times(runs, ROUNDS, time.process_time)
            most = int(student.senses.offsets.diff().max())
            for title, megabytes, encoder in made:
                score = similarity.score(lambda rows: encoder.encode_texts(rows).numpy(), encoder.encode_words)  # noqa: B023
                values = {"megabytes": megabytes, "most": most, "spearman": score["spearman"]}
                speeds = [number / seconds[title, number] for number in (QUERIES, TEXTS)]
                values |= dict(zip(("queries_per_second", "texts_per_second"), speeds))
                study.record(f"{budget:,} senses, {title}", values)
                cells = [f"{budget:,}", most, title, f"{megabytes:.1f}", f"{score['spearman']:.4f}"]
                print(f"| {' | '.join(map(str, cells))} | {speeds[0]:.0f} | {speeds[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
