"""The tables of memory and speed."""

from typing import NamedTuple

import torch
from transformers import AutoModel

from sensedict_hf import SenseEmbeddingModel

from .models import Setting, Size, llama, sense_config, tensor_bytes

SMALL_VOCABULARY = 32_000


class Measured(NamedTuple):
    """What was measured of a model in a setting.

    Attributes:
        weights: Bytes of the weights, without the dictionary.
        dictionary: Bytes of the dictionary.
        peak: Bytes at the peak on the device; None on a CPU.
        total: Bytes on the device and in host memory.
        seconds: Median time of a forward pass.
    """

    weights: int
    dictionary: int
    peak: int | None
    total: int
    seconds: float


Results = dict[str, dict[Setting, Measured]]


def gigabytes(number: int | None) -> str:
    """Format bytes."""
    return "-" if number is None else f"{number / 1e9:.3f}"


def share(number: int | None, whole: int | None) -> str:
    """Format a share."""
    return "-" if number is None or whole is None else f"{number / whole:.1%}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def print_measured(results: Results, size: Size, distinct: dict[Setting, float]) -> None:
    """Print the tables of memory and of speed.

    Args:
        results: What was measured.
        size: The shapes.
        distinct: Mean number of different tokens in a batch.
    """
    memory, speed = [], []
    for setting in size.settings:
        full = results["full model"][setting]
        for name, models in results.items():
            found, is_full = models[setting], name == "full model"
            model = f"full, {size.layers} layers" if is_full else f"student, {size.student_layers} layers"
            cells = [str(setting), model, "-" if is_full else name]
            sizes = [gigabytes(found.weights), gigabytes(found.dictionary or None)]
            peak = [gigabytes(found.peak), share(found.peak, full.peak)]
            memory.append([*cells, *sizes, *peak, gigabytes(found.total), share(found.total, full.total)])
            rate, times = setting.batch / found.seconds, full.seconds / found.seconds
            speed.append(
                [*cells, f"{distinct[setting]:.0f}", f"{1000 * found.seconds:.1f}", f"{rate:.2f}", f"{times:.2f}x"]
            )
    which = ["batch x tokens", "model", "dictionary"]
    total = "weights + dictionary, GB" if full.peak is None else "device + host, GB"
    print_table([*which, "weights, GB", "dictionary, GB", "device peak, GB", "share", total, "share"], memory)
    print_table([*which, "tokens", "ms", "texts/s", "times the full model"], speed)


def print_computed(size: Size) -> None:
    """Print the bytes of weights and dictionaries, computed from models without memory."""

    def parts(size: Size, layers: int, dtype: str) -> tuple[int, int, int]:
        """Return the bytes of layers, embedding table and dictionary."""
        with torch.device("meta"):
            model = AutoModel.from_config(llama(size, layers))
            senses = SenseEmbeddingModel(sense_config(size, dtype))
        return tensor_bytes(model.layers), tensor_bytes(model.embed_tokens), tensor_bytes(senses)

    layers, embedding, _ = parts(size, size.layers, "bfloat16")
    full, kept = layers + embedding, layers * size.student_layers // size.layers
    each, total, part = gigabytes(layers // size.layers), gigabytes(full), gigabytes(kept + embedding)
    print(
        f"\nComputed: {size.student_layers} layers of {each} GB and the embedding table of {gigabytes(embedding)} GB "
        f"are {part} GB. That is {share(kept + embedding, full)} of the {total} GB of {size.layers} layers and the "
        "same table."
    )
    rows = []
    for vocabulary in (size.vocabulary, SMALL_VOCABULARY):
        for dtype in ("bfloat16", "int8"):
            layers, embedding, dictionary = parts(size._replace(vocabulary=vocabulary), size.student_layers, dtype)
            without, with_it = layers + embedding, layers + embedding + dictionary
            cells = map(gigabytes, (layers, embedding, dictionary, without))
            totals = [share(without, full), gigabytes(with_it), share(with_it, full)]
            rows.append([f"{vocabulary:,}", dtype, *cells, *totals])
    header = ["vocabulary", "senses", "layers, GB", "embedding table, GB", "dictionary, GB"]
    totals = ["without dictionary, GB", "share of the full", "with dictionary, GB", "share of the full"]
    print_table([*header, *totals], rows)
