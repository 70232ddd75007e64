"""Texts -> token ids on disk -> windows that fit the model."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
# Windows are not longer unless asked for: a batch of texts as long as a long-context model takes does not fit into memory.
DEFAULT_MAX_LENGTH = 512
CORPUS_FILES = {"input_ids": np.int32, "offsets": np.int64, "digests": np.uint64}
# One call of the tokenizer, and how much work a killed run may lose in this stage.
BATCH_TEXTS, BATCH_CHARACTERS, COMMIT_SECONDS = 1000, 1_000_000, 10
# What a tokenizer does with case, accents, digits, white space, scripts and symbols tells it from others with the same vocabulary.
PROBE = "The naïve CAFÉ's 1,234.5 e-mails\tcost  $67 & 8%?\n日本語 Привет 😀 don't_re-use it…"

PROBE_TOKENS = 200

Texts: TypeAlias = Iterable[str] | Dataset | IterableDataset


def read_dataset(source: str | list[str], split: str = "train", *, streaming: bool = False) -> Dataset | IterableDataset:
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
            raise ValueError(f"cannot read {path}: give files ending in {', '.join(FILE_FORMATS)}, or the name of a data set")
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
    formats = {FILE_FORMATS[Path(path).suffix] for path in paths}
    if len(formats) > 1:
        raise ValueError(f"files of different kinds ({', '.join(sorted(formats))}) in one corpus: convert them to one kind")
    kind = formats.pop()
    dataset = load_dataset(kind, data_files=[os.fspath(path) for path in paths], split="train", streaming=streaming)
    return dataset.filter(lambda row: bool(row["text"].strip())) if kind == "text" else dataset


def iterate_texts(texts: Texts, text_column: str = "text") -> Iterator[str]:
    """Yields the strings of a list, an iterable, or the text column of a data set.

    Raises:
        ValueError: one string instead of many, no such column, or an entry that is not a string.
    """
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts is one string ({texts[:40]!r}...): pass a list of strings")
    if isinstance(texts, Mapping):
        raise ValueError(f"texts is a mapping of {', '.join(map(str, texts))}: choose one of them")
    if text_column in (getattr(texts, "column_names", None) or ()):
        texts = texts.select_columns(text_column)  # the others need not be decoded
    for number, row in enumerate(texts):
        if isinstance(row, dict):
            if text_column not in row:
                raise ValueError(f"there is no column {text_column!r}, only {', '.join(row)}: name one with text_column")
            row = row[text_column]
        if not isinstance(row, str):
            raise ValueError(f"text {number} is {type(row).__name__} {row!r:.40}, not a string")
        yield row


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary and of what the tokenizer makes of a probe text and of some of its own tokens in small letters and
    capitals: equal for two copies of a tokenizer whatever the version of the library, different for tokenizers that differ there."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    words = [token for token, _ in vocabulary[:: 1 + len(vocabulary) // PROBE_TOKENS]]
    probes = [PROBE, " ".join(words).lower(), " ".join(words).upper()]
    content = json.dumps([vocabulary, [tokenizer(probe, truncation=False, verbose=False)["input_ids"] for probe in probes]])
    return sha256(content.encode()).hexdigest()[:16]


def model_max_length(tokenizer: PreTrainedTokenizerBase, config=None) -> int:
    """The longest input in tokens: the smaller of what the tokenizer and the model's position table say."""
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or int(1e9)]
    if getattr(config, "model_type", None) in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet"):
        limits[1] -= 2  # their positions start behind the padding index
    return min(limits)


def check_max_length(max_length: int | None, longest: int) -> int:
    """The length of windows in tokens: what was asked for, or the longest input of the model, but not more than 512.

    Raises:
        ValueError: more than the model takes, or too few for a window with context.
    """
    if max_length is not None and not 8 <= max_length <= longest:
        raise ValueError(f"max_length={max_length}: the model takes 8 to {longest:,} tokens")
    return max_length or min(longest, DEFAULT_MAX_LENGTH)


@dataclass
class Windows:
    """Parts of texts that fit the model; arrays `[windows]`.

    Window w shows the content tokens `start:stop` of text `text`, between the text's special tokens, and owns the positions
    `own_start:own_stop` of that text (special tokens counted). Every position of a text is owned by exactly one window.
    """

    text: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    own_start: np.ndarray
    own_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.text)


@dataclass
class TokenizedCorpus:
    """Token ids of all texts, special tokens included, one behind the other, in memory-mapped files.

    Attributes:
        input_ids: `[tokens]`, int32. offsets: `[texts + 1]`, int64. digests: `[texts]`, uint64, of each text's token ids.
        prefix, suffix: number of special tokens before and behind each text.
        dropped: number of tokens cut off by truncation.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray
    prefix: int
    suffix: int
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def windows(self, max_length: int, first: int = 0, last: int | None = None) -> Windows:
        """Cuts the texts `first:last`, where longer than `max_length`, into windows that overlap by a quarter; the middle of an overlap
        divides the ownership, so that an owned token has context on both sides."""
        width = max_length - self.prefix - self.suffix
        stride = width - width // 4
        lengths = np.diff(self.offsets[first : len(self) + 1 if last is None else last + 1])
        content = lengths - self.prefix - self.suffix
        pieces = 1 + np.maximum(0, -(-(content - width) // stride))
        text = np.repeat(np.arange(len(lengths)), pieces)
        number = np.arange(len(text)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        is_first, is_last = number == 0, number == pieces[text] - 1
        start = np.where(is_last, np.maximum(content[text] - width, 0), number * stride)
        stop = np.minimum(start + width, content[text])
        border = (start[1:] + stop[:-1] + 1) // 2 + self.prefix
        own_start = np.where(is_first, 0, np.concatenate([[0], border]))
        own_stop = np.where(is_last, lengths[text], np.concatenate([border, [0]]))
        return Windows(text + first, start, stop, own_start, own_stop)

    def window_ids(self, text: int, start: int, stop: int) -> np.ndarray:
        """The token ids of one window, special tokens included; position p of the text is at `p - start`."""
        ids = self.input_ids[self.offsets[text] : self.offsets[text + 1]]
        if stop - start == len(ids) - self.prefix - self.suffix:
            return ids
        content = ids[self.prefix + start : self.prefix + stop]
        return np.concatenate([ids[: self.prefix], content, ids[len(ids) - self.suffix :]])


def special_token_counts(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and behind a text."""
    plain, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for prefix in range(len(full) - len(plain) + 1):
        if full[prefix : prefix + len(plain)] == plain:
            return prefix, len(full) - len(plain) - prefix
    raise ValueError(f"{type(tokenizer).__name__} changes a text's own tokens when it adds special tokens: not supported")


class CorpusChangedError(ValueError):
    """The texts are not those of the call that was interrupted."""


@dataclass
class Progress:
    """How far a corpus has been tokenized.

    Attributes:
        texts, tokens: in the files. dropped: by truncation. sha256: of the texts themselves. complete: there are no more.
    """

    texts: int = 0
    tokens: int = 0
    dropped: int = 0
    sha256: str = sha256().hexdigest()
    complete: bool = False


def tokenize_corpus(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike,
    *,
    text_column: str = "text",
    truncate_at: int | None = None,
) -> TokenizedCorpus:
    """Tokenizes a corpus into `directory`, in one pass and with memory for one batch.

    Where an earlier call was interrupted, the texts that it has done are read again, to see that they are the same, but not tokenized.

    Args:
        truncate_at: longest text in tokens, special tokens included; what lies behind is dropped and counted. None: no truncation.

    Raises:
        ValueError: no texts, or a text that is not a string. CorpusChangedError: texts that differ from those of the earlier call.
    """
    prefix, suffix = special_token_counts(tokenizer)
    folder = Path(directory)
    progress = read_progress(folder)
    strings = iterate_texts(texts, text_column)
    digest = sha256()
    read = 0
    total = len(texts) if hasattr(texts, "__len__") else None
    with tqdm(total=total, desc="Tokenizing", unit=" texts", leave=False) as bar:
        for text in islice(strings, progress.texts):
            _update(digest, text)
            read += 1
            bar.update()
        changed = None
        if read < progress.texts or digest.hexdigest() != progress.sha256:
            changed = f"its first {progress.texts:,} texts were others"
        elif progress.complete and next(strings, None) is not None:
            changed = f"it had {progress.texts:,} texts, now it has more"
        if changed:
            raise CorpusChangedError(f"this is not the corpus that was begun with: {changed}; give the same, another folder, or overwrite")
        if not progress.complete:
            _tokenize(strings, tokenizer, folder, progress, digest, suffix, truncate_at, bar)
    if progress.tokens <= progress.texts * (prefix + suffix):
        (folder / "progress.json").unlink()  # so that another corpus can be given
        raise ValueError(f"the corpus is empty: none of its {progress.texts} texts holds a token")
    return open_corpus(folder, tokenizer)


def corpus_digest(texts: Texts, text_column: str = "text") -> str:
    """SHA-256 of the texts, in their order."""
    digest = sha256()
    for text in iterate_texts(texts, text_column):
        _update(digest, text)
    return digest.hexdigest()


def read_progress(folder: Path) -> Progress:
    """How far the corpus in this folder is."""
    path = folder / "progress.json"
    return Progress(**json.loads(path.read_text())) if path.is_file() else Progress()


def open_corpus(folder: Path, tokenizer: PreTrainedTokenizerBase) -> TokenizedCorpus:
    """The corpus that [`tokenize_corpus`] has left in this folder."""
    files = [np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name, dtype in CORPUS_FILES.items()]
    return TokenizedCorpus(*files, *special_token_counts(tokenizer), dropped=read_progress(folder).dropped)


def _update(digest, text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "little") + content)


def _batches(strings: Iterator[str]) -> Iterator[list[str]]:
    """Lists of texts, bounded in number and in characters."""
    batch, characters = [], 0
    for text in strings:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenize(strings, tokenizer, folder: Path, progress: Progress, digest, suffix: int, truncate_at: int | None, bar) -> None:
    """Appends the remaining texts to the files, from where `progress` is, and brings it and `digest` up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"input_ids": progress.tokens, "offsets": progress.texts + 1 if progress.texts else 0, "digests": progress.texts}
    files = {}
    for name, dtype in CORPUS_FILES.items():
        path = folder / f"{name}.bin"
        path.touch()
        os.truncate(path, kept[name] * np.dtype(dtype).itemsize)
        files[name] = open(path, "ab")
    if not progress.texts:
        files["offsets"].write(np.int64(0).tobytes())

    def commit() -> None:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        progress.sha256 = digest.hexdigest()
        partial = folder / "progress.json.partial"
        partial.write_text(json.dumps(asdict(progress)))
        partial.replace(folder / "progress.json")

    committed = time.monotonic()
    for batch in _batches(strings):
        # verbose=False: longer texts than the model takes are expected, windows are cut from them
        for ids in tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]:
            if truncate_at is not None and len(ids) > truncate_at:
                progress.dropped += len(ids) - truncate_at
                ids = ids[: truncate_at - suffix] + ids[len(ids) - suffix :]
            content = np.asarray(ids, dtype=np.int32).tobytes()
            progress.tokens += len(ids)
            files["input_ids"].write(content)
            files["offsets"].write(progress.tokens.to_bytes(8, "little"))
            files["digests"].write(blake2b(content, digest_size=8).digest())
        for text in batch:
            _update(digest, text)
        progress.texts += len(batch)
        bar.update(len(batch))
        if time.monotonic() - committed > COMMIT_SECONDS:
            commit()
            committed = time.monotonic()
    progress.complete = True
    commit()
    for file in files.values():
        file.close()
