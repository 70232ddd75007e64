"""The subcommand `card`, and the scores that `sensedict evaluate --card` writes into the card of a model."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard
from transformers import AutoConfig

from ..data import hub_name
from ..models.files import check_source, reading
from ..models.model_card import model_card
from ..models.teachers import origin_of

CARD = "README.md"
# How the Hub calls the tasks.
TASK_TYPES = {
    "classification": "text-classification",
    "similarity": "sentence-similarity",
    "retrieval": "text-retrieval",
    "tokens": "token-classification",
    "language_modeling": "text-generation",
}
SPEED = "texts_per_second"
# The table of scores stands between these lines of the card, and is made anew with every evaluation.
BEGIN, END = "<!-- scores of sensedict evaluate -->", "<!-- end of the scores -->"
TABLE = re.compile(rf"{BEGIN}.*?{END}\n", re.DOTALL)


def card(options: argparse.Namespace) -> None:
    """Write the card of a model, or add to the card of another library how the model loads."""
    save_card(read_card(options.folder, options.trust_remote_code), options.folder)
    print(f"saved: {options.folder}")


def read_card(source: str, trust_remote_code: bool = False) -> ModelCard:
    """Read the card of a dictionary or student.

    A library that has fine-tuned the model may have written a card of its own. Then it is completed: how the model
    loads, licence, teacher and tags.

    Args:
        source: Its folder, or its name on the Hub.
        trust_remote_code: Whether to run code from there.

    Raises:
        ValueError: There is another kind of model, or none.
    """
    source = check_source(source)
    folder = Path(source) if Path(source).is_dir() else None
    with reading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if config.model_type not in ("sense_embedding", "skd_student"):
        raise ValueError(
            f"{source} holds a {config.model_type} model: only dictionaries and students have such a card"
        )
    own = model_card(config, folder, name=None if folder else source)
    if folder is not None and not (folder / CARD).is_file():
        return own
    found: ModelCard = ModelCard.load(source if folder is None else folder / CARD)
    data: Any = found.data
    if "sensedict_hf" not in (data.tags or []):
        begin, end = (own.text.index(heading) for heading in ("## How to load it", "## What it is"))
        found.text = f"{found.text.rstrip()}\n\n{own.text[begin:end]}"
        for name, value in own.data.to_dict().items():
            data[name] = data.get(name) or value
        data.tags = list(dict.fromkeys([*data.tags, *own.data["tags"]]))
    return found


def save_card(card: ModelCard, source: str) -> None:
    """Save a card in a folder, or on the Hub."""
    if Path(source).is_dir():
        card.save(Path(source, CARD))
    else:
        card.push_to_hub(source, commit_message="Update the card")


def scored_model(options: argparse.Namespace) -> str:
    """Return the folder or name of the model whose card gets the scores.

    Args:
        options: The options of `sensedict evaluate`.

    Raises:
        ValueError: `--index` is given. An index has no card.
    """
    if options.index:
        raise ValueError("--card with --index: an index has no card; leave it out")
    return str(options.query_model or options.senses or options.model)


def write_scores(options: argparse.Namespace, scores: Mapping[str, Any], speed: float) -> None:
    """Write scores into the card of the model that was evaluated.

    Scores of other evaluations stay. The same evaluation replaces its earlier scores.

    Args:
        options: The options of `sensedict evaluate`.
        scores: The scores by their names.
        speed: Texts that were encoded in a second.
    """
    source = scored_model(options)
    found = read_card(source, options.trust_remote_code)
    data: Any = found.data
    # What was evaluated on which data.
    sources = options.corpus or options.test
    names = _short_names(sources)
    on_hub = hub_name(sources[0]) if len(sources) == 1 else None
    settings = {name: getattr(options, name) for name in ("assignment", "residual")}
    settings |= {"documents": origin_of(options.model) if options.query_model else None}
    settings |= {"queries": _short_names(options.queries or []), "trained on": _short_names(options.train or [])}
    columns = {kind: getattr(options, f"{kind}_column") for kind in ("text", "label")}
    settings |= {f"{kind} column": name for kind, name in columns.items() if name != kind}
    place = "cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu"
    threads = torch.get_num_threads()
    machine = torch.cuda.get_device_name() if place == "cuda" else f"{threads} CPU thread{'s' * (threads > 1)}"
    values = {name: value for name, value in scores.items() if isinstance(value, float) and math.isfinite(value)}
    new = [
        EvalResult(
            task_type=TASK_TYPES[options.task],
            task_name=options.task,
            dataset_type=on_hub or str(Path(names).with_suffix("")),
            dataset_name=sources[0] if on_hub else names,
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=f"texts per second ({machine})" if name == SPEED else name.replace("_", " "),
            metric_args={key: value for key, value in settings.items() if value not in (None, "")} or None,
        )
        for name, value in (values | {SPEED: round(speed, 1)}).items()
    ]
    # The metadata, and the table.
    kept = [old for old in data.eval_results or [] if not any(each.is_equal_except_value(old) for each in new)]
    data.eval_results = [*kept, *new]
    data.model_name = data.model_name or origin_of(source)
    table = _table(data.eval_results)
    if TABLE.search(found.text):
        found.text = TABLE.sub(lambda _: table, found.text)
    else:
        before, heading, after = found.text.partition("## Limits\n")
        found.text = f"{before.rstrip()}\n\n## Scores\n\n{table}\n{heading}{after}"
    save_card(found, source)


def _short_names(sources: Sequence[str]) -> str:
    """Return the names of files with the folder that each is in, or names on the Hub, for a card."""
    return ", ".join(source if hub_name(source) else "/".join(Path(source).parts[-2:]) for source in sources)


def _table(results: Sequence[EvalResult]) -> str:
    """Return scores as a table, between the lines that mark it."""
    rows = []
    for result in results:
        settings = ", ".join(f"{name} {value}" for name, value in (result.metric_args or {}).items())
        cells = result.task_name or result.task_type, result.dataset_name, settings, result.metric_name
        rows.append(f"| {' | '.join(str(cell or '') for cell in cells)} | {result.metric_value} |")
    return "\n".join([BEGIN, "", "| task | data | settings | score | |", "|---|---|---|---|---|", *rows, "", END, ""])
