"""Look-up against what one would write first: hard and soft assignment, and the cross-entropy with its gradient.

    python benchmarks/lookup.py --output lookup.json
    python benchmarks/lookup.py --senses FOLDER --texts train.jsonl       # a real dictionary and real token ids

The methods, on one batch of 32 x 128 tokens:

- `ours`: `sensedict_hf.models.sense_lookup`.
- `padded`: the senses of every position gathered, padded to the most that a token of the batch has, one batched product, masked. Where
  that takes more than 2 GB, it is done in chunks of positions, with a backward pass for each.
- `all senses`: one product of all positions with all senses of the batch's tokens, masked to each position's own; chunked likewise.
- `loop`: one position after the other, each with the slice of its token's senses.

In every case all of them give the same senses, vectors, loss and gradient, which is checked before they are timed. They take turns, and
the table has the medians, as multiples of ours; a method is left out of further turns once it has taken 20 seconds.

Senses: `uniform` is 20 for every token; `allocated` is uneven, as where a budget is allocated by distortion: the token of frequency
rank r has 2000 / r, at least 1 and at most 500. Token ids are drawn by a Zipf-Mandelbrot law, p(r) ~ 1 / (r + 2.7), over 30,522 tokens,
and only those drawn are given senses. With `--senses` and `--texts` both come from a dictionary and from the texts, shuffled and one
behind the other; at a width that is not the dictionary's the senses are random. The vectors are senses with noise.

`student` is our time in percent of the forward pass, on the same batch, of a BERT of MiniLM's shape with two layers and random weights.
`extra MB` is the peak of our memory beyond the inputs and the results (for the cross-entropy, the gradient): on CUDA by
`torch.cuda.max_memory_allocated`, on a CPU by the allocations and releases that the torch profiler records in one more call.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel, BertConfig, BertModel

import sensedict_hf  # noqa: F401  AutoModel knows dictionaries after it
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses, sense_cross_entropy

BATCH, POSITIONS, VOCABULARY, STUDENT_WIDTH = 32, 128, 30_522, 384
CHUNK_BYTES = 2 << 30
PATIENCE = 20.0  # seconds


class Case(NamedTuple):
    """`hidden [n, width]`, `token_ids [n]`, `labels [n]`, `senses [total, width]`, `offsets [vocab + 1]`, and a temperature."""

    hidden: Tensor
    token_ids: Tensor
    labels: Tensor
    senses: Tensor
    offsets: Tensor
    temperature: float


def ours(case: Case, task: str) -> list[Tensor]:
    """What all methods give: vectors and sense ids, or the mean loss and its gradient."""
    hidden, token_ids, labels, table, offsets, temperature = case
    senses = RaggedSenses(table, offsets)
    if task != "loss":
        return list(assign_senses(hidden, token_ids, senses, temperature if task == "soft" else None))
    hidden = hidden.detach().requires_grad_()
    loss = sense_cross_entropy(hidden, token_ids, labels, senses, temperature)[0] / len(hidden)
    loss.backward()
    return [loss.detach(), hidden.grad]


def in_chunks(
    case: Case, task: str, step: int, scores_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
) -> list[Tensor]:
    """The naive methods: `scores_of` some vectors and tokens gives masked scores `[m, k]`, the column of the token's first sense `[m]`
    and the senses of the columns, `[m, k, width]` or `[k, width]`."""
    hidden, token_ids, labels, _, _, temperature = case
    vectors, sense_ids, loss = (
        torch.empty_like(hidden),
        torch.empty_like(token_ids),
        torch.zeros((), device=hidden.device),
    )
    hidden = hidden.detach().requires_grad_(task == "loss")
    for part in torch.arange(len(hidden)).split(step):
        at = slice(int(part[0]), int(part[-1]) + 1)
        scores, first, own = scores_of(hidden[at], token_ids[at])
        if task == "loss":
            piece = F.cross_entropy(scores / temperature, first + labels[at], reduction="sum") / len(hidden)
            piece.backward()
            loss += piece.detach()
            continue
        best = scores.argmax(-1)
        sense_ids[at] = best - first
        if task == "soft":
            weights = (scores / temperature).softmax(-1)
            vectors[at] = weights @ own if own.dim() == 2 else torch.bmm(weights[:, None], own)[:, 0]
        else:
            vectors[at] = own[best] if own.dim() == 2 else own[torch.arange(len(best), device=best.device), best]
    return [loss, hidden.grad] if task == "loss" else [vectors, sense_ids]


def padded(case: Case, task: str) -> list[Tensor]:
    senses, offsets = case.senses, case.offsets
    sizes, squares = offsets.diff(), senses.square().sum(-1)
    slots = torch.arange(int(sizes[case.token_ids].max()), device=senses.device)

    def scores_of(vectors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = (offsets[tokens][:, None] + slots).clamp_max_(len(senses) - 1)
        own = F.embedding(rows, senses)
        scores = 2 * torch.bmm(own, vectors[..., None])[..., 0] - squares[rows]
        return scores.masked_fill(slots >= sizes[tokens][:, None], -torch.inf), torch.zeros_like(tokens), own

    return in_chunks(case, task, max(1, CHUNK_BYTES // (4 * len(slots) * senses.shape[1])), scores_of)


def all_senses(case: Case, task: str) -> list[Tensor]:
    sizes = case.offsets.diff()
    tokens = case.token_ids.unique()
    is_used = torch.zeros(len(sizes), dtype=torch.bool, device=tokens.device)
    is_used[tokens] = True
    owner = torch.arange(len(sizes), device=tokens.device).repeat_interleave(sizes)
    rows = is_used[owner].nonzero().squeeze(-1)
    own, owner = case.senses[rows], owner[rows]
    squares, firsts = own.square().sum(-1), (sizes * is_used).cumsum(0) - sizes

    def scores_of(vectors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = 2 * vectors @ own.T - squares
        return scores.masked_fill(tokens[:, None] != owner, -torch.inf), firsts[tokens], own

    return in_chunks(case, task, max(1, CHUNK_BYTES // (4 * len(own))), scores_of)


def loop(case: Case, task: str) -> list[Tensor]:
    hidden, token_ids, labels, senses, offsets, temperature = case
    hidden, starts = hidden.detach().requires_grad_(task == "loss"), offsets.tolist()
    vectors, sense_ids, losses = [], [], []
    rows = (
        hidden.unbind()
    )  # the gradient of hidden[position] would be a tensor of the size of the batch for each position
    for position, token in enumerate(token_ids.tolist()):
        own = senses[starts[token] : starts[token + 1]]
        scores = 2 * own @ rows[position] - own.square().sum(-1)
        if task == "loss":
            losses.append(F.cross_entropy(scores / temperature, labels[position]))
            continue
        sense_ids.append(scores.argmax())
        vectors.append((scores / temperature).softmax(-1) @ own if task == "soft" else own[sense_ids[-1]])
    if task != "loss":
        return [torch.stack(vectors), torch.stack(sense_ids)]
    loss = torch.stack(losses).mean()
    loss.backward()
    return [loss.detach(), hidden.grad]


METHODS = {"ours": ours, "padded": padded, "all senses": all_senses, "loop": loop}


def synthetic(profile_name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids, which are frequency ranks from 0, and how many senses each token has."""
    ranks = torch.arange(1, VOCABULARY + 1)
    token_ids = torch.multinomial(1 / (ranks + 2.7), BATCH * POSITIONS, replacement=True, generator=generator)
    sizes = torch.full_like(ranks, 20) if profile_name == "uniform" else (2000 // ranks).clamp(1, 500)
    return token_ids, sizes * (token_ids.bincount(minlength=VOCABULARY) > 0)


def real(folder: str, file: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids that have senses, how many senses each token has, and the senses."""
    dictionary = AutoModel.from_pretrained(folder)
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(texts)
    sizes = dictionary.offsets.diff()
    token_ids = torch.tensor(
        [token for text in texts for token in dictionary.tokenizer(text)["input_ids"] if sizes[token]]
    )
    return token_ids[: BATCH * POSITIONS], sizes, dictionary.table.float()


def make_case(
    token_ids: Tensor, sizes: Tensor, senses: Tensor | None, width: int, device: str, generator: torch.Generator
) -> Case:
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    if senses is None or senses.shape[1] != width:
        senses = torch.randn(int(offsets[-1]), width, generator=generator)
    labels = (torch.rand(len(token_ids), generator=generator) * sizes[token_ids]).long()
    spread = float(senses.var(0).mean().sqrt())
    hidden = senses[offsets[token_ids] + labels] + spread * torch.randn(len(token_ids), width, generator=generator)
    return Case(
        *(tensor.to(device) for tensor in (hidden, token_ids, labels, senses, offsets)), temperature=width * spread**2
    )


def seconds(call: Callable[[], object], device: str) -> float:
    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    begin = clock()
    call()
    return clock() - begin


def extra_megabytes(call: Callable[[], list[Tensor]], device: str) -> float:
    """The peak of memory during a call, without what was there before and without its results."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            results = call()
        held = peak = 0
        events = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
    return (peak - sum(tensor.nbytes for tensor in results)) / 2**20


def measure(case: Case, turns: int, device: str, student: BertModel | None) -> Iterator[dict]:
    """One result for each task."""

    @torch.inference_mode()
    def run_student() -> None:
        student(case.token_ids.view(-1, POSITIONS))

    for task in ("hard", "soft", "loss"):
        expected = loop(case, task)
        for method in METHODS.values():
            for found, wanted in zip(method(case, task), expected):
                if wanted.is_floating_point():
                    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().mean()))
                else:
                    assert torch.equal(found, wanted)
        calls = {name: (lambda method=method: method(case, task)) for name, method in METHODS.items()}  # noqa: B023
        if student is not None:
            run_student()
            calls["student"] = run_student
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                if sum(times[name]) < PATIENCE:
                    times[name].append(seconds(call, device))
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        yield {"task": task, "seconds": medians, "turns": {name: len(taken) for name, taken in times.items()}} | {
            "extra_megabytes": extra_megabytes(calls["ours"], device)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 1024, 4096])
    parser.add_argument("--senses", help="folder of a dictionary")
    parser.add_argument("--texts", type=Path, help="a .jsonl file with `text`, to go with --senses")
    parser.add_argument("--quick", action="store_true", help="3 turns instead of 15")
    parser.add_argument("--output", type=Path, help="a .json file for the results")
    options = parser.parse_args()
    if bool(options.senses) != bool(options.texts):
        parser.error("--senses and --texts go together")

    config = BertConfig(hidden_size=STUDENT_WIDTH, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=2)
    bert = BertModel(config).eval().to(options.device)
    results = []
    print(
        "| senses | width | task | ours, ms | padded | all senses | loop | student | extra MB |\n" + "|---" * 9 + "|"
    )
    for name in ["real"] if options.senses else ["uniform", "allocated"]:
        for width in options.widths:
            generator = torch.Generator().manual_seed(0)
            tokens_sizes_senses = (
                real(options.senses, options.texts) if options.senses else (*synthetic(name, generator), None)
            )
            case = make_case(*tokens_sizes_senses, width, options.device, generator)

            for result in measure(
                case, 3 if options.quick else 15, options.device, bert if width == STUDENT_WIDTH else None
            ):
                taken = result["seconds"]
                ratios = [f"{taken[method] / taken['ours']:.1f}x" for method in ("padded", "all senses", "loop")]
                share = f"{taken['ours'] / taken['student']:.1%}" if "student" in taken else ""
                cells = [
                    name,
                    width,
                    result["task"],
                    f"{1000 * taken['ours']:.1f}",
                    *ratios,
                    share,
                    f"{result['extra_megabytes']:.1f}",
                ]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
                results.append({"senses": name, "width": width} | result)
    if options.output:
        machine = {
            "device": torch.cuda.get_device_name()
            if options.device == "cuda"
            else platform.processor() or platform.machine()
        }
        machine |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        options.output.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
