"""A decoder as a teacher: causal, through senses, bidirectional, and after LLM2Vec's two steps of training.

    python -m benchmarks.decoders --decoder MODEL --data FOLDER --output runs/decoders
    python -m benchmarks.distillation --teacher runs/decoders/simcse --data FOLDER --dtype bfloat16 ...

The first command makes a sentence encoder of a decoder, as LLM2Vec does, and scores each way to run the decoder on the
nine tasks of `benchmarks.distillation`. The second one makes its dictionary and its students.

- Causal states are pooled in three ways: their mean, their mean with linearly rising weights, and the last one.
- `MNTP` is `examples/mntp.py`, `SimCSE` is `examples/simcse.py` on top of it. Both learn from the texts of
  `wikipedia_en_sample`. SimCSE reads single sentences.
- Causal states are also replaced by their senses, with two dictionaries of the tasks' training texts: senses of the
  token that a state has read (`input`), and of the token after it (`next`). Their means are scored, those of `input`
  also with rising weights and with one sense for each token.
- The states of named entities are not pooled, so of the poolings they are scored for the mean alone.
- Finished steps stay in the output folder, so that an interrupted run continues after them.

What the table can show: what each step is worth for this decoder, with this much training.

What it cannot show: what full training would give. LLM2Vec reads 16 million tokens for MNTP alone.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sensedict_hf import SenseEmbeddingModel, Teacher, build_sense_dictionary, load_teacher, merge_sense_dictionaries

from .distillation.tables import MAIN_SCORES, header, print_row
from .distillation.tasks import NAMES, load_task, read_columns, sentences
from .stored_states import StoredStates
from .studies import ROOT, Study, results_file, study_parser

POOLINGS = ("mean", "weighted_mean", "last")
# Dictionary, weight of the states themselves, and pooling. `one` has one sense for each token.
SENSES = {
    "soft, input": ("input", 0, "mean"),
    "half, input": ("input", 0.5, "mean"),
    "half, input, weighted_mean": ("input", 0.5, "weighted_mean"),
    "one, input": ("one", 0, "mean"),
    "half one, input": ("one", 0.5, "mean"),
    "half one, input, weighted_mean": ("one", 0.5, "weighted_mean"),
    "soft, next": ("next", 0, "mean"),
    "half, next": ("next", 0.5, "mean"),
}
Output = Callable[[Tensor, Tensor, Tensor], Tensor]  # states, token ids and mask to vectors whose mean is scored
BATCH_SIZE = 32


def pooling_factors(mask: Tensor, pooling: str) -> Tensor:
    """Return the factors of states whose mean is a pooling: `[batch, positions]`.

    So several poolings need one pass of the model.

    Args:
        mask: `[batch, positions]`, 0 for padding.
        pooling: One of `POOLINGS`.
    """
    places = mask.cumsum(1) * mask
    total = mask.sum(1, keepdim=True)
    weights = {"mean": mask, "weighted_mean": places, "last": (places == total) * mask}[pooling].float()
    return weights / weights.sum(1, keepdim=True) * total


def pooled(pooling: str) -> Output:
    """Return the output for a pooling."""
    return lambda states, input_ids, mask: states * pooling_factors(mask, pooling)[..., None]


def of_words(output: str) -> str:
    """Return the output that scores words in the place of another one: the vectors of words are not pooled."""
    return output.removesuffix(", weighted_mean") if output not in POOLINGS else "mean"


class Benchmark:
    """The steps of the comparison. Each leaves a folder, or scores in the study.

    Args:
        options: The options of the script.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.output = options, options.output
        self.causal, self.senses = cache(self._causal), cache(self._senses)
        self.output.mkdir(parents=True, exist_ok=True)
        command = "python -m benchmarks.decoders --decoder MODEL --data FOLDER"
        self.study = Study(results_file(options.results, "decoders", folder=options.output), command=command)

    def title(self, way: str, output: str) -> str:
        """Return the title of a row in the study."""
        return f"{Path(self.options.decoder).name}, {way}, {output}"

    def example(self, name: str, folder: Path, texts: Path, **settings: object) -> Path:
        """Run an example that trains a model, or continue with it; return its folder."""
        if not (folder / "done").is_file():
            settings = {"texts": texts, "output": folder, **settings}
            arguments = [
                str(part) for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)
            ]
            command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
            if self.options.dtype == "bfloat16":
                command.append("--bf16")
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout.splitlines()[-1], flush=True)
            (folder / "done").write_text(done.stdout)
        return folder

    def mntp(self) -> Path:
        """Return the folder of the adapter of MNTP."""
        options = self.options
        return self.example(
            "mntp",
            self.output / "mntp",
            options.data / "wikipedia_en_sample" / "train.jsonl",
            model=options.decoder,
            max_steps=options.mntp_steps,
            learning_rate=options.mntp_learning_rate,
            batch_size=options.mntp_batch_size,
            max_length=128,
            lora_dropout=0,
            held_out=0.01,
            mask_token=options.mask_token,
            save_steps=50,
        )

    def simcse(self) -> Path:
        """Return the folder of the sentence encoder."""
        options, texts = self.options, self.output / "sentences.jsonl"
        adapter = self.mntp()
        if not texts.is_file():
            found = sentences(read_columns(options.data / "wikipedia_en_sample" / "train.jsonl")["text"])
            partial = texts.with_suffix(".partial")
            partial.write_text("\n".join(json.dumps({"text": text}) for text in found))
            os.replace(partial, texts)
        return self.example(
            "simcse",
            self.output / "simcse",
            texts,
            model=options.decoder,
            adapters=adapter,
            max_steps=options.simcse_steps,
            learning_rate=options.simcse_learning_rate,
            batch_size=options.simcse_batch_size,
            max_length=64,
            save_steps=10,
        )

    def _senses(self, key: str) -> SenseEmbeddingModel:
        """Return a dictionary of the causal decoder, of the key `input` or `next`, or `one` made from `input`."""
        if key == "one":
            return merge_sense_dictionaries([self.senses("input")]).to(self.causal().device)
        texts = [text for name in NAMES for text in load_task(name, self.options.data).train_texts]
        folder, teacher = self.output / f"senses-{key}", self.causal()
        senses = build_sense_dictionary(teacher, list(dict.fromkeys(texts)), key=key, output_dir=folder)
        teacher.save()
        return senses.to(teacher.device)

    def through_senses(self, key: str, residual: float, pooling: str) -> Output:
        """Return the output for the senses of states; the dictionary is built when it is needed."""

        def output(states: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
            found = self.senses(key)(input_ids, states, mask, "soft", residual).hidden_states
            return pooled(pooling)(found, input_ids, mask)

        return output

    def base(self, bidirectional: bool) -> Teacher:
        """Load the decoder, untrained."""
        settings = {"dtype": self.options.dtype, "device": self.options.device}
        return load_teacher(self.options.decoder, bidirectional=bidirectional, pooling="mean", **settings)

    def _causal(self) -> StoredStates:
        """Load the causal decoder. It reads each text once, for its dictionaries and its scores."""
        return StoredStates(self.base(False), self.output / "states")

    def score(self, way: str, load: Callable[[], Teacher], outputs: dict[str, Output]) -> None:
        """Score one way to run the decoder, with some outputs of each pass."""
        load = cache(load)
        for name in NAMES:
            missing = [output for output in outputs if name not in self.study.read(self.title(way, output))]
            if not missing:
                continue
            teacher, task = load(), load_task(name, self.options.data)
            scored = {output: of_words(output) if task.evaluation.of_words else output for output in missing}
            own = list(dict.fromkeys(scored.values()))

            def forward(input_ids: Tensor, mask: Tensor, teacher: Teacher = teacher, own=own) -> Tensor:
                states = teacher.last_hidden_state(input_ids, mask).float()
                return torch.cat([outputs[output](states, input_ids, mask) for output in own], dim=-1)

            scores = task.score_outputs(
                forward,
                own,
                teacher.model.config.hidden_size,
                teacher.tokenizer,
                pad_token_id=teacher.pad_token_id,
                max_length=teacher.max_seq_length,
                batch_size=BATCH_SIZE,
                device=teacher.device,
            )
            for output in missing:
                self.study.record(self.title(way, output), {name: scores[scored[output]]})
            print(way, name, {each: values[MAIN_SCORES[name]] for each, values in scores.items()}, flush=True)

    def run(self) -> None:
        """Run all steps and print the table."""
        options = self.options
        poolings = {pooling: pooled(pooling) for pooling in POOLINGS}
        mean = {"mean": poolings["mean"]}
        senses = {output: self.through_senses(*settings) for output, settings in SENSES.items()}
        ways: dict[str, tuple[Callable[[], Teacher], dict[str, Output]]] = {
            "causal": (self.causal, poolings),
            "bidirectional": (lambda: self.base(True), mean),
            "causal, senses": (self.causal, senses),
        }
        if not options.without_training:
            settings = {"dtype": options.dtype, "device": options.device}
            ways["MNTP"] = lambda: load_teacher(self.mntp(), bidirectional=True, **settings), mean
            ways["MNTP and SimCSE"] = lambda: load_teacher(self.simcse(), **settings), mean
        for way, (load, outputs) in ways.items():
            self.score(way, load, outputs)
        print("\n" + header("way", "output", tasks=NAMES))
        for way, (_, outputs) in ways.items():
            for output in outputs:
                scores = self.study.read(self.title(way, output))
                print_row(way, output, {name: {output: value} for name, value in scores.items()})


def main() -> None:
    parser = study_parser("decoders", __doc__)
    parser.add_argument("--decoder", required=True, help="name or folder of a decoder")
    parser.add_argument("--data", type=Path, required=True, help="folder of all tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/decoders"), help="folder for all steps")
    text = "of the decoder, and of products in training"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help=text)
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--without-training", action="store_true", help="leave out MNTP and SimCSE")
    parser.add_argument("--mask-token", default="_", help="mask of MNTP if the tokenizer has none")
    parser.add_argument("--mntp-steps", type=int, default=400, help="steps of MNTP")
    parser.add_argument("--mntp-batch-size", type=int, default=16, help="windows of 128 tokens in a step of MNTP")
    parser.add_argument("--mntp-learning-rate", type=float, default=2e-3, help="highest learning rate of MNTP")
    parser.add_argument("--simcse-steps", type=int, default=50, help="steps of SimCSE")
    parser.add_argument("--simcse-batch-size", type=int, default=64, help="sentences in a step of SimCSE")
    parser.add_argument("--simcse-learning-rate", type=float, default=1e-3, help="highest learning rate of SimCSE")
    Benchmark(parser.parse_args()).run()


if __name__ == "__main__":
    main()
