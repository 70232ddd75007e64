"""Texts -> token ids on disk."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from .alignment import align_texts, check_offsets, special_token_counts
from .prompts import Prompt
from .windows import Alignment, TokenizedCorpus

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
# Windows are not longer unless asked for: a batch of texts as long as a long-context model takes does not fit into memory.
DEFAULT_MAX_LENGTH = 512
FILES_HELP = "text files (.jsonl, .csv, .parquet, .arrow, .txt), all of one kind, a folder of save_to_disk, or the name of a data set"
CORPUS_FILES = {"input_ids": np.int32, "offsets": np.int64, "digests": np.uint64}
ALIGNMENT_FILES = {"teacher_ids": np.int32, "teacher_offsets": np.int64, "places": np.int32, "bounds": np.int64}
# Where less than this share of the tokens aligns with the teacher's, a dictionary would lack most of the text.
SMALLEST_ALIGNED_SHARE = 0.5
# One call of the tokenizer, and how much work a killed run may lose in this stage.
BATCH_TEXTS, BATCH_CHARACTERS, COMMIT_SECONDS = 1000, 1_000_000, 10
# What a tokenizer does with case, accents, digits, white space, scripts and symbols tells it from others with the same vocabulary.
PROBE = "The naïve CAFÉ's 1,234.5 e-mails\tcost  $67 & 8%?\n日本語 Привет 😀 don't_re-use it…"

PROBE_TOKENS = 200
# Models whose positions start behind the padding index, so that two of their table are not for tokens.
POSITIONS_BEHIND_PADDING = (
    "roberta xlm-roberta xlm-roberta-xl roberta-prelayernorm camembert longformer mpnet data2vec-text xmod luke".split()
)

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
    try:
        dataset = load_dataset(kind, data_files=[os.fspath(path) for path in paths], split="train", streaming=streaming)
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
    if getattr(config, "model_type", None) in POSITIONS_BEHIND_PADDING:
        limits[1] -= 2
    return min(limits)


def check_max_length(max_length: int | None, longest: int) -> int:
    """The length of windows in tokens: what was asked for, or the longest input of the model, but not more than 512.

    Raises:
        ValueError: more than the model takes, or too few for a window with context.
    """
    if max_length is not None and not 8 <= max_length <= longest:
        raise ValueError(f"max_length={max_length}: the model takes 8 to {longest:,} tokens")
    return max_length or min(longest, DEFAULT_MAX_LENGTH)


class CorpusChangedError(ValueError):
    """The texts are not those of the call that was interrupted."""


@dataclass
class Progress:
    """How far a corpus has been tokenized.

    Attributes:
        texts, tokens, teacher_tokens, pairs: in the files. dropped: by truncation. unaligned: see [`Alignment`].
        sha256: of the texts themselves. complete: there are no more.
    """

    texts: int = 0
    tokens: int = 0
    teacher_tokens: int = 0
    pairs: int = 0
    dropped: int = 0
    unaligned: int = 0
    sha256: str = sha256().hexdigest()
    complete: bool = False


def tokenize_corpus(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike,
    *,
    text_column: str = "text",
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    truncate_at: int | None = None,
    prompt: Prompt | None = None,
) -> TokenizedCorpus:
    """Tokenizes a corpus into `directory`, in one pass and with memory for one batch.

    Where an earlier call was interrupted, the texts that it has done are read again, to see that they are the same, but not tokenized.

    Args:
        teacher_tokenizer: what the teacher reads the texts with, if that is another tokenizer: the tokens are aligned with its tokens.
        truncate_at: longest text in (the teacher's) tokens, special tokens included; what lies behind is dropped and counted. None: no
            truncation.
        prompt: what is put around every text; its tokens are among the special tokens.

    Raises:
        ValueError: no texts, a text that is not a string, or two tokenizers of which one does not tell which characters its tokens cover.
        CorpusChangedError: texts that differ from those of the earlier call.
    """
    if teacher_tokenizer is not None:
        check_offsets(tokenizer, teacher_tokenizer)
        if prompt is not None and prompt.around(tokenizer) != Prompt().around(tokenizer):
            raise ValueError(f"a prompt ({prompt.template!r}) and a dictionary for another tokenizer: choose one of them")
    surroundings = _surroundings(tokenizer, prompt)
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
            _tokenize(strings, tokenizer, teacher_tokenizer, folder, progress, digest, truncate_at, prompt, bar)
    content = progress.tokens - progress.texts * (surroundings["prefix"] + surroundings["suffix"])
    wrong = None
    if content <= 0:
        wrong = f"the corpus is empty: none of its {progress.texts} texts holds a token"
    elif progress.unaligned > (1 - SMALLEST_ALIGNED_SHARE) * content:
        wrong = (
            f"only {1 - progress.unaligned / content:.1%} of {content:,} tokens cover a character that a token of the teacher covers, "
            f"white space apart; at least {SMALLEST_ALIGNED_SHARE:.0%} must: {type(tokenizer).__name__} or the teacher's "
            f"{type(teacher_tokenizer).__name__} does not tell where its tokens stand, or the texts are hardly more than white space; give "
            "another tokenizer or other texts, or leave tokenizer out to use the teacher's"
        )
    if wrong:
        (folder / "progress.json").unlink()  # so that another corpus can be given
        raise ValueError(wrong)
    return open_corpus(folder, tokenizer, teacher_tokenizer, prompt)


def tokenize_in_memory(texts: list[str], tokenizer: PreTrainedTokenizerBase, prompt: Prompt | None = None) -> TokenizedCorpus:
    """Tokenizes a few texts."""
    rows = [ids for ids, _ in _token_ids(texts, tokenizer, None, prompt)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])])
    return TokenizedCorpus(np.concatenate(rows), offsets, np.zeros(len(rows), np.uint64), **_surroundings(tokenizer, prompt))


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


def open_corpus(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: Prompt | None = None,
) -> TokenizedCorpus:
    """The corpus that [`tokenize_corpus`] has left in this folder."""
    progress = read_progress(folder)
    kinds = CORPUS_FILES if teacher_tokenizer is None else CORPUS_FILES | ALIGNMENT_FILES
    files = {name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name, dtype in kinds.items()}
    corpus = TokenizedCorpus(*(files[name] for name in CORPUS_FILES), dropped=progress.dropped, **_surroundings(tokenizer, prompt))
    if teacher_tokenizer is not None:
        specials = special_token_counts(teacher_tokenizer)
        teacher = TokenizedCorpus(files["teacher_ids"], files["teacher_offsets"], corpus.digests, *specials)
        corpus.alignment = Alignment(teacher, files["places"], files["bounds"], progress.unaligned)
    return corpus


def _surroundings(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | None) -> dict[str, Any]:
    """How many tokens stand before and behind each text, and how many of them have no part in its vector: fields of the corpus."""
    if prompt is None:
        prefix, suffix = special_token_counts(tokenizer)
        return {"prefix": prefix, "suffix": suffix}
    prefix, suffix = map(len, prompt.around(tokenizer))
    return {"prefix": prefix, "suffix": suffix, "without": (prefix * prompt.skips_head, suffix * prompt.skips_tail)}


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


def _tokenize(strings, tokenizer, teacher_tokenizer, folder: Path, progress: Progress, digest, truncate_at, prompt, bar) -> None:
    """Appends the remaining texts to the files, from where `progress` is, and brings it and `digest` up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = int(progress.texts > 0)  # files of offsets begin with a zero
    kept = {"input_ids": progress.tokens, "offsets": progress.texts + begun, "digests": progress.texts}
    kept |= {"teacher_ids": progress.teacher_tokens, "teacher_offsets": progress.texts + begun}
    kept |= {"places": progress.pairs, "bounds": progress.tokens + begun}
    files = {}
    for name, dtype in (CORPUS_FILES if teacher_tokenizer is None else CORPUS_FILES | ALIGNMENT_FILES).items():
        path = folder / f"{name}.bin"
        path.touch()
        os.truncate(path, kept[name] * np.dtype(dtype).itemsize)
        files[name] = open(path, "ab")
        if name in ("offsets", "teacher_offsets", "bounds") and not begun:
            files[name].write(np.int64(0).tobytes())

    def commit() -> None:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        progress.sha256 = digest.hexdigest()
        partial = folder / "progress.json.partial"
        partial.write_text(json.dumps(asdict(progress)))
        partial.replace(folder / "progress.json")

    def write(input_ids: np.ndarray, dropped: int) -> None:
        content = input_ids.tobytes()
        progress.tokens += len(input_ids)
        progress.dropped += dropped
        files["input_ids"].write(content)
        files["offsets"].write(progress.tokens.to_bytes(8, "little"))
        files["digests"].write(blake2b(content, digest_size=8).digest())

    committed = time.monotonic()
    for batch in _batches(strings):
        if teacher_tokenizer is None:
            for ids, dropped in _token_ids(batch, tokenizer, truncate_at, prompt):
                write(ids, dropped)
        else:
            for row in align_texts(batch, tokenizer, teacher_tokenizer, truncate_at=truncate_at):
                write(row.input_ids, row.dropped)
                progress.teacher_tokens += len(row.teacher_ids)
                files["teacher_ids"].write(row.teacher_ids.tobytes())
                files["teacher_offsets"].write(progress.teacher_tokens.to_bytes(8, "little"))
                files["places"].write(row.places.tobytes())
                files["bounds"].write((progress.pairs + np.cumsum(row.sizes, dtype=np.int64)).tobytes())
                progress.pairs += len(row.places)
                progress.unaligned += row.unaligned
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


def _token_ids(
    batch: list[str], tokenizer: PreTrainedTokenizerBase, truncate_at: int | None, prompt: Prompt | None
) -> Iterator[tuple[np.ndarray, int]]:
    """The ids of each text, int32, and how many more were cut off."""
    if prompt is None:
        suffix = special_token_counts(tokenizer)[1]
        # verbose=False: longer texts than the model takes are expected, windows are cut from them
        rows = tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]
    else:
        before, behind = prompt.around(tokenizer)
        suffix, rows = len(behind), [before + ids + behind for ids in prompt.content(tokenizer, batch)]
    for ids in rows:
        dropped = 0 if truncate_at is None else max(0, len(ids) - truncate_at)
        kept = ids[: len(ids) - suffix - dropped] + ids[len(ids) - suffix :] if dropped else ids
        yield np.asarray(kept, dtype=np.int32), dropped
