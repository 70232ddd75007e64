"""Reading texts: from files and datasets, and from every form in which callers may pass strings."""

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from .data_files import find_files, kind_of, read_files, read_lines
from .models.arguments import check_flag, check_path, check_string, check_unicode

# What functions of this package accept as texts: strings, or rows with a column of strings.
Texts: TypeAlias = Iterable[str] | Dataset | IterableDataset


def read_dataset(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], split: str = "train", *, streaming: bool = False
) -> Dataset | IterableDataset:
    """Read a dataset from files, from a folder or from the Hub.

    Args:
        source: One of these:

            - One or more files ending in `.jsonl`, `.json`, `.csv`, `.txt`, `.parquet` or `.arrow`, all of the same
              kind, or folders of such files, or patterns such as `texts/*.jsonl`. Files of a folder are read in the
              order of their names. The first four kinds may be compressed: `texts.jsonl.gz`, `texts.txt.zst`.
            - A folder written by `Dataset.save_to_disk`.
            - A dataset on the Hub: `NAME`, `NAME:CONFIG` or `NAME:CONFIG:SPLIT`. `NAME::SPLIT` is a split of the
              default config. NAME may also be a folder written by `DatasetDict.save_to_disk`, or a copy of the
              repository.
            - `-`: standard input, one text a line.

            A file that has the given name is read, whatever characters its name has. A `.txt` file has one text a
            line, which becomes the column `text`; blank lines are skipped. Cells of a `.csv` file and strings of a
            `.json` file stay strings as they were written, also `NA` and `2024-01-01`. Files may differ in their
            columns; the columns that all of them have are kept.
        split: Split of a dataset whose name does not say which. Files and folders are read as a whole.
        streaming: Read rows as they are needed, instead of copying all of them into the cache of `datasets` first.

    Returns:
        The rows; an `IterableDataset` with `streaming`.

    Raises:
        ValueError: A file is missing, broken or of an unknown kind, the files are of different kinds or all empty, or
            there is no dataset of that name.

    Example:
        >>> from sensedict_hf import read_dataset
        >>> _ = Path("texts.txt").write_text("The dog began to bark.\\nThe bark of a birch is white.\\n")
        >>> dataset = read_dataset("texts.txt")
        >>> dataset[1]
        {'text': 'The bark of a birch is white.'}
    """
    given: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
    if not given or not all(isinstance(name, (str, os.PathLike)) for name in given):
        raise ValueError(f"{source!r:.60} is not the name of a dataset, nor a list of files: give one of these")
    check_string("split", split)
    check_flag("streaming", streaming)
    names = [os.fspath(name) for name in given]
    for name in names:
        check_path("source", name)

    if "-" in names:
        return _read_standard_input(names, streaming)

    # A single source can also be a saved dataset, or a name on the Hub such as "ag_news" or "org/v1.0".
    if len(names) == 1 and not Path(names[0]).is_file() and not glob.has_magic(names[0]):
        name, config, chosen = _split_name(names[0])
        if Path(name, "state.json").is_file() and name == names[0]:
            saved = load_from_disk(name)
            return saved.to_iterable_dataset() if streaming else saved
        is_of_splits = Path(name, "dataset_dict.json").is_file()
        if name != names[0] or is_of_splits or hub_name(name):
            try:
                if is_of_splits and config is None:
                    saved = load_from_disk(name)[chosen or split]
                    return saved.to_iterable_dataset() if streaming else saved
                return load_dataset(name, config, split=chosen or split, streaming=streaming)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"there is no file or folder {names[0]}, and no dataset of that name could be loaded from the "
                    f"Hub: check the name ({error})"
                ) from error

    paths = [path for name in names for path in find_files(name)]
    kinds = sorted({str(kind_of(path)) for path in paths})
    if len(kinds) > 1:
        raise ValueError(f"the files are of different kinds ({', '.join(kinds)}): convert them to one kind")
    return read_files(paths, streaming=streaming)


def hub_name(source: str) -> str | None:
    """Return the name of the dataset on the Hub that a source means; None for files, folders and patterns.

    Args:
        source: One of the sources of :func:`read_dataset`.
    """
    name = _split_name(source)[0]
    looks_like_a_repository = not Path(name).suffix or name.count("/") == 1
    is_local = glob.has_magic(source) or Path(name).exists() or kind_of(name) is not None
    return name if looks_like_a_repository and not is_local else None


def dataset_names(texts: Texts) -> list[str]:
    """Return the names of the datasets on the Hub that texts come from, as far as they are known.

    Args:
        texts: The texts.
    """
    sources = getattr(getattr(texts, "info", None), "download_checksums", None) or {}
    found = (re.match("hf://datasets/([^@]+)@", source) for source in sources)
    return sorted({match[1] for match in found if match})


def with_datasets(card_data: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any] | None:
    """Return metadata of a model card with more names of datasets; None if it says nothing.

    Args:
        card_data: The metadata, as in :class:`SenseEmbeddingConfig`.
        names: The names to add.
    """
    known = dict(card_data or {})
    names = sorted({*known.pop("datasets", []), *names})
    return known | ({"datasets": names} if names else {}) or None


def _split_name(name: str) -> tuple[str, str | None, str | None]:
    """Split `NAME:CONFIG:SPLIT` into its parts; a part that is missing or empty is None."""
    parts = name.split(":")
    if len(parts) > 3 or not parts[0] or Path(name).exists():
        return name, None, None
    given = [part or None for part in parts[1:]] + [None, None]
    return parts[0], given[0], given[1]


def _read_standard_input(names: list[str], streaming: bool) -> Dataset:
    """Read one text a line.

    Raises:
        ValueError: There are other sources too, the texts are to be streamed, are not UTF-8, or there are none.
    """
    if len(names) > 1:
        raise ValueError(f"- is standard input, and cannot be read with {', '.join(names)}: give one or the other")
    if streaming:
        raise ValueError("standard input can be read only once, not streamed: leave out streaming, or give a file")
    try:
        rows = list(read_lines(StringIO(sys.stdin.buffer.read().decode("utf-8-sig"), newline=None)))
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8: convert it ({error})") from error
    if not rows:
        raise ValueError("standard input is empty: write one text a line to it")
    return Dataset.from_list(rows)


def iterate_texts(texts: Texts, text_column: str = "text") -> Iterator[str]:
    """Yield the strings of a list, another iterable or a dataset.

    Args:
        texts: Strings, or rows (dicts) with a column of strings.
        text_column: The column of the texts.

    Yields:
        One text after the other.

    Raises:
        ValueError: `texts` is a string, a table or a mapping, a row lacks the column, or an entry is not a string.
    """
    check_string("text_column", text_column)
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts is one string ({texts[:40]!r}...): pass a list of strings")
    if hasattr(texts, "columns"):
        raise ValueError(f"texts is a {type(texts).__name__}: choose one of its columns, and pass that as a list")
    if not isinstance(texts, Iterable):
        raise ValueError(f"texts is {type(texts).__name__}: pass a list of strings")
    if isinstance(texts, Set):
        raise ValueError("texts is a set, whose order changes from run to run: pass a list, such as sorted(texts)")
    if isinstance(texts, Mapping):
        raise ValueError(f"texts is a mapping of {', '.join(map(str, texts))}: pass the list of one of these keys")

    if isinstance(texts, (Dataset, IterableDataset)) and text_column in (texts.column_names or ()):
        texts = texts.select_columns(text_column)  # the other columns need not be decoded
    for number, row in enumerate(texts):
        if isinstance(row, dict):
            if text_column not in row:
                raise ValueError(
                    f"there is no column {text_column!r}, only {', '.join(row)}: name one with text_column"
                )
            row = row[text_column]
        if not isinstance(row, str):
            raise ValueError(f"text {number} is {type(row).__name__} {row!r:.40}, not a string: remove or convert it")
        check_unicode(row, f"text {number}")
        yield row
