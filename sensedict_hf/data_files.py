"""Reading rows from files: the file that is named, and strings as they were written."""

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader, TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset
from transformers.utils import logging

logger = logging.get_logger(__name__)
# File name endings, and what the files hold.
FILE_FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
# Endings of compressed files, which follow the others: texts.jsonl.gz. Formats of pyarrow have compression inside.
COMPRESSED = (".gz", ".zst")
# How many rows are looked at together.
ROWS = 1000
# Longest cell of a .csv file in characters; the limit of Python's module csv is too low for long texts.
LONGEST_CELL = 2**31 - 1


def kind_of(path: str) -> str | None:
    """Return what a file holds, by the ending of its name; None if it is of a kind that cannot be read."""
    stem = os.path.splitext(path)[0] if path.endswith(COMPRESSED) else path
    kind = FILE_FORMATS.get(Path(stem).suffix)
    return None if stem != path and kind in ("parquet", "arrow") else kind


def find_files(name: str) -> list[str]:
    """Find the files that a name means.

    Args:
        name: A file, whatever characters its name has. Or, if there is no such file, a folder with files of texts, or
            a pattern such as `texts/*.jsonl`, with `**` for folders inside folders.

    Returns:
        The files, sorted by name.

    Raises:
        ValueError: There is no such file, or none of a kind that can be read.
    """
    kinds = f"{', '.join(FILE_FORMATS)}, or the text files among them with {' or '.join(COMPRESSED)} added"
    if Path(name).is_file():
        if kind_of(name) is None:
            raise ValueError(f"cannot read {name}: give files ending in {kinds}")
        return [name]
    if not Path(name).is_dir() and not glob.has_magic(name):
        raise ValueError(f"there is no file or folder {name}: check the path")
    pattern = os.path.join(glob.escape(name), "*") if Path(name).is_dir() else name
    found = sorted(path for path in glob.glob(pattern, recursive=True) if kind_of(path) and os.path.isfile(path))
    if not found:
        raise ValueError(f"{name} has no files ending in {kinds}: check the path")
    logger.info(f"{name}: {len(found)} files")
    return found


def read_files(paths: list[str], *, streaming: bool) -> Dataset | IterableDataset:
    """Read files as a dataset.

    Args:
        paths: The files, of one kind.
        streaming: Read rows as they are needed, with all the columns that their file has.

    Returns:
        The rows, with the columns that all files have; an `IterableDataset` with `streaming`.

    Raises:
        ValueError: A file is broken, there are no rows, or the files have no column in common.
    """
    if next(iterate_rows(paths), None) is None:
        raise ValueError(f"{', '.join(paths)} is empty: give files that hold texts")
    if streaming:
        return IterableDataset.from_generator(iterate_rows, gen_kwargs={"paths": paths})
    # The cache of `datasets` goes by the arguments, so they say which state of the files was read.
    # The same name may mean another file, in another folder or at another time.
    found = [(os.path.abspath(path), os.stat(path)) for path in paths]
    states = tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found)
    features = find_features(paths)
    arguments = {"states": states, "names": tuple(features)}
    return Dataset.from_generator(_iterate_columns, features=features, gen_kwargs=arguments)


def iterate_rows(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of files.

    Args:
        paths: The files.

    Yields:
        One row after the other: a value for each column of its file.

    Raises:
        ValueError: A file is broken; its name and the place in it are in the message.
    """
    readers = {"text": _read_lines, "csv": _read_csv, "json": _read_json}
    for path in paths:
        kind = str(kind_of(path))
        try:
            if kind in readers:
                yield from readers[kind](path)
            else:
                yield from chain.from_iterable(batch.to_pylist() for batch in _iterate_batches(path, kind))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 in {_find_broken_line(path)}: convert the file to UTF-8") from error
        except (ValueError, csv.Error, pa.ArrowException, OSError, RecursionError) as error:
            raise ValueError(f"cannot read {path} as {kind}: {error}") from error


def find_features(paths: list[str]) -> Features:
    """Find the columns that all files have, and their types.

    Args:
        paths: The files, of one kind.

    Returns:
        The type of each column. A column is left out if its values are of types that do not go together.

    Raises:
        ValueError: A file is broken, or the files have no column in common.
    """
    types: dict[str, set[pa.DataType | None]] = {}
    common: list[str] | None = None
    for path in paths:
        own: dict[str, None] = {}
        for name, kind in _iterate_types(path):
            own[name] = None
            types.setdefault(name, set()).add(kind)
        if own:  # a file without rows has no columns
            common = [name for name in (own if common is None else common) if name in own]

    found = Features()
    for name in common or ():
        try:
            schemas = [pa.schema({name: kind}) for kind in types[name]]
            found |= Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError):
            logger.warning(f"left out {name}, whose values are of different types: {_find_other_type(paths, name)}")
        except ValueError:
            logger.warning(f"{', '.join(paths)}: left out {name}, whose type datasets does not know")
    if not found:
        raise ValueError(f"{', '.join(paths)} have no column in common with values of one type: read them one by one")
    return found


def _find_other_type(paths: list[str], name: str) -> str:
    """Describe the first value of a column that is of another type than the first one."""
    first: Any = None
    for path in paths:
        for number, value in enumerate(row.get(name) for row in iterate_rows([path])):
            kind = "number" if type(value) in (int, float) else type(value).__name__
            if value is not None and first not in (None, kind):
                return f"{path} has {kind} {value!r:.40} in row {number}, after values that are {first}"
            first = first if value is None else kind
    return ", ".join(paths)


def _iterate_columns(
    states: tuple[tuple[str, int, int, int], ...], names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of files with these columns only."""
    for row in iterate_rows([path for path, *_ in states]):
        yield {name: row.get(name) for name in names}


def _iterate_types(path: str) -> Iterator[tuple[str, pa.DataType | None]]:
    """Yield names of columns and the types of their values. None: the values are of different types."""
    kind = kind_of(path)
    if kind in ("parquet", "arrow"):
        for batch in _iterate_batches(path, kind):
            yield from zip(batch.schema.names, batch.schema.types)
        return
    rows = iterate_rows([path])
    while chunk := list(islice(rows, ROWS)):
        for name in dict.fromkeys(chain.from_iterable(chunk)):
            try:
                yield name, pa.array([row.get(name) for row in chunk]).type
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                yield name, None


def _iterate_batches(path: str, kind: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a .parquet or .arrow file."""
    if kind == "parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS)
        return
    with pa.memory_map(path) as source:  # `datasets` writes streams, other programs also files with an index
        try:
            reader: Iterable[pa.RecordBatch] = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(source)
            reader = (opened.get_batch(number) for number in range(opened.num_record_batches))
        yield from reader


def open_text(path: str, newline: str | None = None) -> TextIO:
    """Open a UTF-8 file to read, compressed or not."""
    if not path.endswith(COMPRESSED):
        return open(path, encoding="utf-8-sig", newline=newline)
    return TextIOWrapper(pa.input_stream(path), encoding="utf-8-sig", newline=newline)  # pyarrow goes by the ending


def read_lines(file: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the lines of a text file that are not blank."""
    for line in file:
        if line.strip():
            yield {"text": line.rstrip("\n")}


def _read_lines(path: str) -> Iterator[dict[str, str]]:
    with open_text(path) as file:
        yield from read_lines(file)


def _read_csv(path: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a .csv file, whose cells are strings."""
    csv.field_size_limit(LONGEST_CELL)
    with open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"two columns have the same name: {', '.join(header)}")
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise ValueError(f"line {reader.line_num} has {len(cells)} cells, the header has {len(header)}")
                yield dict(zip(header, cells))
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def _read_json(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with an object on each line, or with one list of objects."""
    with open_text(path) as file:
        is_list = next((line.lstrip()[0] for line in file if line.strip()), "") == "["
    with open_text(path) as file:
        for number, row in enumerate(json.load(file) if is_list else file, 1):
            place = f"{'row' if is_list else 'line'} {number}"
            if not is_list:
                if not row.strip():
                    continue
                try:
                    row = json.loads(row)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{place}: {error.msg} at character {error.colno}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place} is {type(row).__name__}, not an object: write one object a line")
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{place} has a lone surrogate, half of a character: remove or repair it") from error
            yield row


def _find_broken_line(path: str) -> str:
    """Name the first line of a file that is not UTF-8."""
    with BufferedReader(pa.input_stream(path)) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number}"
    return "its last line"
