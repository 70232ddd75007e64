"""Reading rows from files: the file that is named, and strings as they were written."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
# How many rows are looked at together.
ROWS = 1000
# Longest cell of a .csv file in characters; the limit of Python's module csv is too low for long texts.
LONGEST_CELL = 2**31 - 1


def read_files(paths: list[str], *, streaming: bool) -> Dataset | IterableDataset:
    """Read files of one kind as a dataset.

    The files may differ in their columns: those that all of them have are kept.

    Args:
        paths: The files. Each name is taken as it is, whatever signs it holds.
        streaming: Read rows as they are needed, instead of copying all of them into the cache of `datasets` first.

    Returns:
        The rows; an `IterableDataset` with `streaming`.

    Raises:
        ValueError: A file is broken, or there are no rows.
    """
    if next(iterate_rows(paths), None) is None:
        raise ValueError(f"{', '.join(paths)} is empty: give files that hold texts")
    if streaming:
        return IterableDataset.from_generator(iterate_rows, gen_kwargs={"paths": paths})
    # The cache of `datasets` goes by the arguments, so they say which state of the files was read.
    states = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    features = find_features(paths)
    return Dataset.from_generator(
        _iterate_known, features=features, gen_kwargs={"states": (*states,), "names": (*features,)}
    )


def iterate_rows(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of files.

    Args:
        paths: The files.

    Yields:
        One row after the other: a value for each column of its file.

    Raises:
        ValueError: A file is broken; its name and the place in it are in the message.
    """
    for path in paths:
        kind = FILE_FORMATS[Path(path).suffix]
        try:
            if kind in ("parquet", "arrow"):
                for batch in _iterate_batches(path, kind):
                    yield from batch.to_pylist()
            else:
                yield from {"text": _read_lines, "csv": _read_csv, "json": _read_json}[kind](path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 in {_find_broken_line(path)}: convert the file to UTF-8") from error
        except (csv.Error, pa.ArrowInvalid, OSError) as error:
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
    found: dict[str, pa.DataType | None] = {}
    names: list[str] | None = None
    for path in paths:
        own: dict[str, None] = {}
        for types in _iterate_types(path):
            own |= dict.fromkeys(types)
            for name, kind in types.items():
                found[name] = _unify(found[name], kind) if name in found else kind
        if own:  # a file without rows has no columns
            names = [*own] if names is None else [name for name in names if name in own]
    kept = {name: found[name] for name in names or () if found[name] is not None}
    mixed = [name for name in names or () if found[name] is None]
    if mixed:
        logger.warning(f"{', '.join(paths)}: left out {', '.join(mixed)}, whose values are of different types")
    if not kept:
        raise ValueError(
            f"{', '.join(paths)} have no column in common whose values are of one type: read them one by one"
        )
    return Features.from_arrow_schema(pa.schema(kept))


def _iterate_known(states: tuple[tuple[str, int, int], ...], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of files with these columns only."""
    for row in iterate_rows([path for path, *_ in states]):
        yield {name: row.get(name) for name in names}


def _iterate_types(path: str) -> Iterator[dict[str, pa.DataType | None]]:
    """Yield the type of each column in some rows at a time. None: the values are of different types."""
    if FILE_FORMATS[Path(path).suffix] in ("parquet", "arrow"):
        for batch in _iterate_batches(path, FILE_FORMATS[Path(path).suffix]):
            yield {field.name: field.type for field in batch.schema}
        return
    rows: list[dict[str, Any]] = []
    for row in iterate_rows([path]):
        rows.append(row)
        if len(rows) == ROWS:
            yield _types_of(rows)
            rows = []
    yield _types_of(rows)


def _types_of(rows: list[dict[str, Any]]) -> dict[str, pa.DataType | None]:
    """Return the type of each column in some rows."""
    types: dict[str, pa.DataType | None] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            types[name] = pa.infer_type([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            types[name] = None
    return types


def _unify(first: pa.DataType | None, second: pa.DataType | None) -> pa.DataType | None:
    """Return a type that holds the values of two others, or None."""
    if first is None or second is None:
        return None
    try:
        schemas = [pa.schema({"column": kind}) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


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


def _read_lines(path: str) -> Iterator[dict[str, str]]:
    """Yield the lines of a .txt file that are not blank."""
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                yield {"text": line.rstrip("\n")}


def _read_csv(path: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a .csv file, whose cells are strings."""
    csv.field_size_limit(LONGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise csv.Error(f"two columns have the same name: {', '.join(header)}")
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise csv.Error(f"{len(cells)} cells, but the file has {len(header)} columns")
                if cells:
                    yield dict(zip(header, cells))
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from error


def _read_json(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with an object on each line, or with one list of objects."""
    with open(path, encoding="utf-8-sig") as file:
        is_list = next((line.lstrip()[0] for line in file if line.strip()), "") == "["
        file.seek(0)
        rows = enumerate(json.loads(file.read())) if is_list else enumerate(file, 1)
        for number, row in rows:
            place = f"{'row' if is_list else 'line'} {number}"
            if not is_list:
                if not row.strip():
                    continue
                try:
                    row = json.loads(row)
                except json.JSONDecodeError as error:
                    raise ValueError(f"cannot read {path} as json: {place}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: {place} is {type(row).__name__}, not an object: write one object a line")
            _check_unicode(row, f"{path}, {place}")
            yield row


def _check_unicode(row: dict[str, Any], where: str) -> None:
    """Raise a ValueError if a value has a lone surrogate, half of a sign that was cut in two."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: a value has a lone surrogate, half of a sign: remove or repair it") from error


def _find_broken_line(path: str) -> str:
    """Name the first line of a file that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number}"
    return "its last line"
