"""Files and data sets of texts."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

FILE_FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
FILES_HELP = "text files (.jsonl, .csv, .parquet, .arrow, .txt), all of one kind, a folder of save_to_disk, or the name of a data set"
Texts: TypeAlias = Iterable[str] | Dataset | IterableDataset


def read_dataset(
    source: str | list[str], split: str = "train", *, streaming: bool = False
) -> Dataset | IterableDataset:
    """Reads files (.jsonl, .json, .csv, .parquet, .arrow or .txt, all of one kind), a folder made by `Dataset.save_to_disk`, or the
    data set of that name. Blank lines of .txt files are no texts.

    Args:
        split: of a named data set. streaming: reads as it goes, without a copy in the cache of `datasets`.

    Raises:
        ValueError: a file is missing or of another kind.
    """
    paths = [source] if isinstance(source, str) else list(source)
    if len(paths) == 1 and Path(paths[0], "state.json").is_file():
        return load_from_disk(paths[0])
    if len(paths) == 1 and not Path(paths[0]).exists() and Path(paths[0]).suffix not in FILE_FORMATS:
        if not Path(paths[0]).suffix or paths[0].count("/") == 1:
            return load_dataset(paths[0], split=split, streaming=streaming)
    for path in paths:
        if Path(path).suffix not in FILE_FORMATS:
            raise ValueError(
                f"cannot read {path}: give files ending in {', '.join(FILE_FORMATS)}, or the name of a data set"
            )
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
    formats = {FILE_FORMATS[Path(path).suffix] for path in paths}
    if len(formats) > 1:
        raise ValueError(
            f"files of different kinds ({', '.join(sorted(formats))}) in one corpus: convert them to one kind"
        )
    kind = formats.pop()
    try:
        dataset = load_dataset(
            kind, data_files=[os.fspath(path) for path in paths], split="train", streaming=streaming
        )
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read {', '.join(paths)} as {kind}: {error.__cause__ or error}") from error
    return dataset.filter(lambda row: bool(row["text"].strip())) if kind == "text" else dataset


def iterate_texts(texts: Texts, text_column: str = "text") -> Iterator[str]:
    """Yields the strings of a list, an iterable, or the text column of a data set.

    Raises:
        ValueError: one string instead of many, no such column, or an entry that is not a string.
    """
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts is one string ({texts[:40]!r}...): pass a list of strings")
    if hasattr(texts, "columns"):
        raise ValueError(f"texts is a {type(texts).__name__}: choose one of its columns, and pass that as a list")
    if isinstance(texts, Mapping):
        raise ValueError(f"texts is a mapping of {', '.join(map(str, texts))}: choose one of them")
    if text_column in (getattr(texts, "column_names", None) or ()):
        texts = texts.select_columns(text_column)  # the others need not be decoded
    for number, row in enumerate(texts):
        if isinstance(row, dict):
            if text_column not in row:
                raise ValueError(
                    f"there is no column {text_column!r}, only {', '.join(row)}: name one with text_column"
                )
            row = row[text_column]
        if not isinstance(row, str):
            raise ValueError(f"text {number} is {type(row).__name__} {row!r:.40}, not a string")
        yield row
