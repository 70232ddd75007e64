"""Reading texts: from files and datasets, and from every form in which callers may pass strings."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from .data_files import FILE_FORMATS, find_files, read_files
from .models.arguments import check_flag, check_path, check_string
from .models.prompts import check_unicode

# What functions of this package accept as texts: strings, or rows with a column of strings.
Texts: TypeAlias = Iterable[str] | Dataset | IterableDataset


def read_dataset(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], split: str = "train", *, streaming: bool = False
) -> Dataset | IterableDataset:
    """Read a dataset from files, from a folder or from the Hub.

    Args:
        source: One or more files ending in `.jsonl`, `.json`, `.csv`, `.parquet`, `.arrow` or `.txt`, all of the same
            kind; folders of such files, or patterns such as `texts/*.jsonl`, whose files are read in the order of
            their names; or a folder written by `Dataset.save_to_disk`; or the name of a dataset on the Hub. A file
            that has the given name is read, whatever signs the name holds. A `.txt` file has one text a line, which
            becomes the column `text`; blank lines are skipped. Cells of a `.csv` file and strings of a `.json` file
            stay strings as they were written, also `NA` and `2024-01-01`. Files may differ in their columns; the
            columns that all of them have are kept.
        split: Split of a dataset on the Hub. Files and folders are read as a whole.
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

    # A single source can also be a saved dataset, or a name on the Hub such as "ag_news" or "org/v1.0".
    if len(names) == 1 and not glob.has_magic(names[0]):
        name = names[0]
        if Path(name, "state.json").is_file():
            return load_from_disk(name)
        looks_like_a_repository = not Path(name).suffix or name.count("/") == 1
        if looks_like_a_repository and not Path(name).exists() and Path(name).suffix not in FILE_FORMATS:
            try:
                return load_dataset(name, split=split, streaming=streaming)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"there is no file or folder {name}, and no dataset of that name could be loaded from the Hub: "
                    f"check the name ({error})"
                ) from error

    paths = [path for name in names for path in find_files(name)]
    kinds = sorted({FILE_FORMATS[Path(path).suffix] for path in paths})
    if len(kinds) > 1:
        raise ValueError(f"the files are of different kinds ({', '.join(kinds)}): convert them to one kind")
    return read_files(paths, streaming=streaming)


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
