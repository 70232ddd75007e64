"""The look-up of senses, compared with what one would write first: hard and soft assignment, and the loss.

    python -m benchmarks.lookup
    python -m benchmarks.lookup --forms      # our two forms: grouped and padded

The methods, on one batch of 32 x 128 tokens:

- `ours`: `sensedict_hf.models.sense_lookup`.
- `padded`: gather the senses of every position, padded to the largest number in the batch; one batched product; mask
  the padding. Above 2 GB this is done in chunks of positions, with a backward pass for each chunk.
- `all senses`: one product of all positions with all senses of the batch's tokens; mask senses of other tokens. Above
  2 GB in chunks, as `padded`.
- `loop`: one position after the other.

All methods must give the same senses, vectors, loss and gradient. That is checked before they are timed. They take
turns, and the table shows medians, as multiples of ours. A method that has taken 20 seconds is not run again.

The data:

- `uniform`: 20 senses for every token. `allocated`: uneven, as with a budget; the token of frequency rank r has
  2000 / r senses, at least 1 and at most 500.
- Token ids are drawn from 30,522 tokens by the Zipf-Mandelbrot law, p(r) ~ 1 / (r + 2.7). Only tokens that were drawn
  get senses.
- The vectors are senses with noise.

`--forms` compares the look-up by groups of positions with the one that pads each position to the largest number of
senses, and that is chosen for few numbers, see `is_padding_faster`. Each token has 1 to k senses. The table shows how
many times as fast padding is. On a CPU that is CPU time; run it with one thread.

Columns of the other table:

- `student`: our time as a share of a forward pass over the same batch. The model is a BERT of MiniLM's shape with two
  layers and random weights.
- `extra MB`: our peak memory without inputs and results; the gradient is a result. On CUDA it comes from
  `torch.cuda.max_memory_allocated`, on a CPU from the allocations that the torch profiler records.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses, sense_cross_entropy
from sensedict_hf.models.static_lookup import assign_padded

from .studies import Study, results_file, study_parser

BATCH, POSITIONS, VOCABULARY, STUDENT_WIDTH = 32, 128, 30_522, 384
CHUNK_BYTES = 2 << 30
PATIENCE = 20.0  # seconds after which a method is not run again
TURNS, QUICK_TURNS = 15, 3
LARGEST_PADDED = 1 << 23  # numbers in the padded senses of a batch; above that --forms compares single senses alone


class Case(NamedTuple):
    """The inputs of a look-up.

    Attributes:
        hidden: `[n, width]`.
        token_ids: `[n]`.
        labels: `[n]`, the sense ids of the loss.
        senses: `[total_senses, width]`.
        offsets: `[vocab + 1]`.
        temperature: In units of the score.
    """

    hidden: Tensor
    token_ids: Tensor
    labels: Tensor
    senses: Tensor
    offsets: Tensor
    temperature: float


def ours(case: Case, task: str) -> list[Tensor]:
    """Look up senses with the package.

    Args:
        case: The inputs.
        task: `hard`, `soft` or `loss`.

    Returns:
        Vectors and sense ids; for `loss` the mean loss and its gradient. All methods return this.
    """
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
    """Look up senses naively, in chunks of positions.

    Args:
        case: The inputs.
        task: `hard`, `soft` or `loss`.
        step: Positions in a chunk.
        scores_of: Takes the vectors and the tokens of `m` positions. Returns masked scores `[m, k]`, the column of
            each token's first sense `[m]`, and the senses of the columns, `[m, k, width]` or `[k, width]`.
    """
    hidden, token_ids, labels, _, _, temperature = case
    vectors, sense_ids = torch.empty_like(hidden), torch.empty_like(token_ids)
    loss = torch.zeros((), device=hidden.device)
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
    """Gather the senses of every position, padded."""
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
    """Score every position against all senses of the batch's tokens."""
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
    """Look up one position after the other."""
    hidden, token_ids, labels, senses, offsets, temperature = case
    hidden, starts = hidden.detach().requires_grad_(task == "loss"), offsets.tolist()
    vectors, sense_ids, losses = [], [], []
    rows = hidden.unbind()  # hidden[position] would have a gradient of the size of the batch for each position
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
    """Return token ids, which are frequency ranks from 0, and the number of senses of each token."""
    ranks = torch.arange(1, VOCABULARY + 1)
    token_ids = torch.multinomial(1 / (ranks + 2.7), BATCH * POSITIONS, replacement=True, generator=generator)
    sizes = torch.full_like(ranks, 20) if profile_name == "uniform" else (2000 // ranks).clamp(1, 500)
    return token_ids, sizes * (token_ids.bincount(minlength=VOCABULARY) > 0)


def make_case(token_ids: Tensor, sizes: Tensor, width: int, device: str, generator: torch.Generator) -> Case:
    """Make the inputs of a look-up.

    Args:
        token_ids: `[n]`.
        sizes: `[vocab]`, the number of senses of each token.
        width: Width of vectors and senses.
        device: Device of the inputs.
        generator: Source of random numbers.
    """
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    senses = torch.randn(int(offsets[-1]), width, generator=generator)
    labels = (torch.rand(len(token_ids), generator=generator) * sizes[token_ids]).long()
    spread = float(senses.var(0).mean().sqrt())
    hidden = senses[offsets[token_ids] + labels] + spread * torch.randn(len(token_ids), width, generator=generator)
    tensors = (tensor.to(device) for tensor in (hidden, token_ids, labels, senses, offsets))
    return Case(*tensors, temperature=width * spread**2)


def seconds(call: Callable[[], object], device: str, *, cpu_time: bool = False) -> float:
    """Return the seconds that a call takes. On a CPU with `cpu_time` waiting for other programs does not count."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if cpu_time and device == "cpu" else time.perf_counter()

    begin = clock()
    call()
    return clock() - begin


def extra_megabytes(call: Callable[[], list[Tensor]], device: str) -> float:
    """Return the peak memory of a call, without what was there before it and without its results."""
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


def check(case: Case, task: str) -> None:
    """Raise an AssertionError if the methods disagree."""
    expected = loop(case, task)
    for method in METHODS.values():
        for found, wanted in zip(method(case, task), expected):
            if wanted.is_floating_point():
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().mean()))
            else:
                assert torch.equal(found, wanted)


def measure(case: Case, turns: int, device: str, student: BertModel | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each task with median seconds, number of turns, and our extra memory."""

    @torch.inference_mode()
    def run_student() -> None:
        student(case.token_ids.view(-1, POSITIONS))

    for task in ("hard", "soft", "loss"):
        check(case, task)
        calls = {name: (lambda method=method: method(case, task)) for name, method in METHODS.items()}  # noqa: B023
        if student is not None:
            run_student()
            calls["student"] = run_student
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                if sum(times[name]) < PATIENCE:
                    times[name].append(seconds(call, device))
        yield (
            task,
            {
                "seconds": {name: statistics.median(taken) for name, taken in times.items()},
                "turns": {name: len(taken) for name, taken in times.items()},
                "extra_megabytes": extra_megabytes(calls["ours"], device),
            },
        )


def compare_forms(widths: Sequence[int], device: str, study: Study) -> None:
    """Print and record how many times as fast as grouping it is to pad."""
    print("| width | most senses | positions | log2 of numbers | hard | soft |\n|---|---|---|---|---|---|")
    for width, most, positions in itertools.product(widths, (1, 2, 8, 20, 60), (16, 64, 256, 1024, 4096)):
        if most > 1 and width * most * positions > LARGEST_PADDED:
            continue
        generator = torch.Generator().manual_seed(0)
        sizes = torch.randint(1, most + 1, (VOCABULARY,), generator=generator)
        sizes[0] = most
        token_ids = synthetic("uniform", generator)[0][:positions]
        case = make_case(token_ids, sizes, width, device, generator)
        senses = RaggedSenses(case.senses, case.offsets)
        ratios = []
        for temperature in (None, case.temperature):
            calls = {
                "grouped": lambda: assign_senses(case.hidden, case.token_ids, senses, temperature),  # noqa: B023
                "padded": lambda: assign_padded(case.hidden, case.token_ids, senses, most, temperature),  # noqa: B023
            }
            found = [call() for call in calls.values()]
            assert torch.equal(found[0][1], found[1][1])
            times = {
                name: [seconds(call, device, cpu_time=True) for _ in range(TURNS)] for name, call in calls.items()
            }
            ratios.append(statistics.median(times["grouped"]) / statistics.median(times["padded"]))
        power = math.log2(width * most * positions)
        print(f"| {width} | {most} | {positions} | {power:.1f} | {ratios[0]:.1f} | {ratios[1]:.1f} |", flush=True)
        title = f"forms, width {width}, {torch.get_num_threads()} threads, {device}"
        study.record(title, {f"{most} senses, {positions} positions": dict(zip(("hard", "soft"), ratios))})


def print_row(name: str, width: int, task: str, found: dict[str, Any]) -> None:
    """Print the row of a task."""
    taken = found["seconds"]
    ratios = [f"{taken[method] / taken['ours']:.1f}x" for method in ("padded", "all senses", "loop")]
    share = f"{taken['ours'] / taken['student']:.1%}" if "student" in taken else ""
    cells = [name, width, task, f"{1000 * taken['ours']:.1f}", *ratios, share, f"{found['extra_megabytes']:.1f}"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = study_parser("lookup", __doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 1024, 4096], help="widths of the vectors")
    parser.add_argument("--quick", action="store_true", help=f"a trial with {QUICK_TURNS} turns instead of {TURNS}")
    parser.add_argument("--forms", action="store_true", help="compare the two forms of our look-up instead")
    options = parser.parse_args()
    path = results_file(options.results, "lookup", recorded=not options.quick)
    study = Study(path, options.device, "python -m benchmarks.lookup")

    if options.forms:
        compare_forms(options.widths, options.device, study)
        return
    config = BertConfig(hidden_size=STUDENT_WIDTH, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=2)
    bert = BertModel(config).eval().to(options.device)
    header = ["senses", "width", "task", "ours, ms", "padded", "all senses", "loop", "student", "extra MB"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name in ("uniform", "allocated"):
        for width in options.widths:
            generator = torch.Generator().manual_seed(0)
            case = make_case(*synthetic(name, generator), width, options.device, generator)
            student = bert if width == STUDENT_WIDTH else None
            title = f"{name}, width {width}, {torch.get_num_threads()} threads, {options.device}"
            for task, found in measure(case, QUICK_TURNS if options.quick else TURNS, options.device, student):
                print_row(name, width, task, found)
                study.record(title, {task: found})


if __name__ == "__main__":
    main()
