"""Turn texts into token ids on disk, in one pass and with memory for one batch.

:func:`tokenize_corpus` writes a folder of flat files, :func:`open_corpus` maps them into memory:

- `input_ids.bin`: the token ids of all texts, one text after the other;
- `offsets.bin`: where each text begins, and where the last one ends;
- `digests.bin`: a hash of each text's token ids;
- four more files if the teacher has another tokenizer: the teacher's token ids and the alignment (see `alignment.py`);
- `progress.json`: how many texts, tokens and so on the files hold, and a SHA-256 of these texts.

An interrupted run can be resumed. The files only grow, and `progress.json` is replaced every few seconds, after the
files have reached the disk. The next run cuts off whatever `progress.json` does not count. It reads the texts that are
already done once more, but only to compare their SHA-256, and tokenizes the rest.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..data import Texts, iterate_texts
from ..models.prompts import Prompt
from ..models.tokenizers import check_offsets, special_token_counts
from .alignment import AlignedText, align_texts
from .windows import Alignment, TokenizedCorpus

CORPUS_FILES = {"input_ids": np.int32, "offsets": np.int64, "digests": np.uint64}
ALIGNMENT_FILES = {"teacher_ids": np.int32, "teacher_offsets": np.int64, "places": np.int32, "bounds": np.int64}
# If a smaller share of the tokens aligns with the teacher's, most of the text would get no senses.
SMALLEST_ALIGNED_SHARE = 0.5
# The most that one call of the tokenizer gets.
BATCH_TEXTS = 1000
BATCH_CHARACTERS = 1_000_000
# How many seconds of work a killed run may lose.
COMMIT_SECONDS = 10


class CorpusChangedError(ValueError):
    """The texts differ from those of the run that was interrupted."""


@dataclass
class Progress:
    """What the files of a corpus hold.

    Attributes:
        texts: Number of texts.
        tokens: Number of tokens, special tokens included.
        teacher_tokens: Number of tokens of the teacher's tokenizer, if it is another one.
        pairs: Number of pairs of a token and a teacher's token that are aligned.
        dropped: Number of tokens that truncation has cut off.
        unaligned: Number of tokens that align with none of the teacher's, special tokens not counted.
        sha256: SHA-256 of the texts; see :class:`TextDigest`.
        complete: Whether all texts are in the files.
    """

    texts: int = 0
    tokens: int = 0
    teacher_tokens: int = 0
    pairs: int = 0
    dropped: int = 0
    unaligned: int = 0
    sha256: str = sha256().hexdigest()
    complete: bool = False


class TextDigest:
    """SHA-256 of a sequence of texts; it depends on their order and on where each of them ends."""

    def __init__(self) -> None:
        self._sha256 = sha256()

    def update(self, text: str) -> None:
        """Add the next text."""
        content = text.encode("utf-8", "surrogatepass")
        self._sha256.update(len(content).to_bytes(8, "little") + content)

    def hexdigest(self) -> str:
        """Return the digest of all texts so far."""
        return self._sha256.hexdigest()


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
    """Tokenize texts into a folder, or resume an interrupted run there.

    Args:
        texts: Strings, or a dataset with a text column.
        tokenizer: The tokenizer of the dictionary.
        directory: The folder; it is created if needed.
        text_column: The column of a dataset that holds the texts.
        teacher_tokenizer: The tokenizer of the teacher, if it is another one. The texts are then tokenized by both and
            aligned.
        truncate_at: Length in tokens (of the teacher, special tokens included) at which texts are cut. None: no
            truncation.
        prompt: What the teacher reads around each text. Its tokens count as special tokens.

    Returns:
        The corpus, memory-mapped.

    Raises:
        ValueError: There are no texts, one of them is not a string, a prompt comes with a second tokenizer, or the two
            tokenizers cannot be aligned.
        CorpusChangedError: An interrupted run in this folder began with other texts.
    """
    if teacher_tokenizer is not None:
        check_offsets(tokenizer, teacher_tokenizer)
        if prompt is not None and prompt.around(tokenizer) != Prompt().around(tokenizer):
            raise ValueError(
                f"the teacher has a prompt ({prompt.template!r}) and the dictionary another tokenizer: only one of "
                "them is supported; leave out the prompt, or use the teacher's tokenizer"
            )
    prefix, suffix, _ = _special_tokens(tokenizer, prompt)
    folder = Path(directory)
    progress = read_progress(folder)
    strings = iterate_texts(texts, text_column)
    total = len(texts) if isinstance(texts, Sized) else None
    with tqdm(total=total, desc="Tokenizing", unit=" texts", leave=False) as bar:
        digest = _skip_finished(strings, progress, bar)
        if not progress.complete:
            is_aligned = teacher_tokenizer is not None
            with closing(CorpusWriter(folder, progress, digest, is_aligned=is_aligned)) as writer:
                for batch in _batches(strings):
                    if teacher_tokenizer is None:
                        for ids, dropped in _token_ids(batch, tokenizer, truncate_at, prompt):
                            writer.add(ids, dropped)
                    else:
                        for row in align_texts(batch, tokenizer, teacher_tokenizer, truncate_at=truncate_at):
                            writer.add_aligned(row)
                    writer.finish_batch(batch)
                    bar.update(len(batch))
                writer.finish()
    try:
        _check_content(progress, prefix + suffix, tokenizer, teacher_tokenizer)
    except ValueError:
        (folder / "progress.json").unlink()  # the next run may bring another corpus
        raise
    return open_corpus(folder, tokenizer, teacher_tokenizer, prompt)


def tokenize_in_memory(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, prompt: Prompt | None = None
) -> TokenizedCorpus:
    """Tokenize a few texts without writing files; at least one."""
    rows = [ids for ids, _ in _token_ids(texts, tokenizer, None, prompt)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])])
    prefix, suffix, unpooled = _special_tokens(tokenizer, prompt)
    digests = np.zeros(len(rows), np.uint64)
    return TokenizedCorpus(np.concatenate(rows), offsets, digests, prefix, suffix, unpooled=unpooled)


def corpus_digest(texts: Texts, text_column: str = "text") -> str:
    """Return the SHA-256 of texts, as in `Progress.sha256`."""
    digest = TextDigest()
    for text in iterate_texts(texts, text_column):
        digest.update(text)
    return digest.hexdigest()


def read_progress(folder: Path) -> Progress:
    """Read how far the corpus in a folder is; an empty `Progress` if there is none."""
    path = folder / "progress.json"
    return Progress(**json.loads(path.read_text())) if path.is_file() else Progress()


def open_corpus(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: Prompt | None = None,
) -> TokenizedCorpus:
    """Open the corpus that :func:`tokenize_corpus` wrote to a folder with the same tokenizers and prompt.

    Args:
        folder: The folder.
        tokenizer: The tokenizer of the dictionary.
        teacher_tokenizer: The tokenizer of the teacher, if it is another one.
        prompt: What the teacher reads around each text.

    Returns:
        The corpus, memory-mapped.
    """
    progress = read_progress(folder)
    names = CORPUS_FILES if teacher_tokenizer is None else CORPUS_FILES | ALIGNMENT_FILES
    files = {name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name, dtype in names.items()}
    prefix, suffix, unpooled = _special_tokens(tokenizer, prompt)
    arrays = files["input_ids"], files["offsets"], files["digests"]
    corpus = TokenizedCorpus(*arrays, prefix, suffix, dropped=progress.dropped, unpooled=unpooled)
    if teacher_tokenizer is not None:
        specials = special_token_counts(teacher_tokenizer)
        teacher = TokenizedCorpus(files["teacher_ids"], files["teacher_offsets"], corpus.digests, *specials)
        corpus.alignment = Alignment(teacher, files["places"], files["bounds"], progress.unaligned)
    return corpus


class CorpusWriter:
    """The files of a corpus, open for appending.

    Texts are added one by one with :meth:`add` or :meth:`add_aligned`, then :meth:`finish_batch` makes them count.
    What was added after the last commit is cut off when the folder is opened again.

    Args:
        folder: The folder of the corpus.
        progress: What the files hold; it is kept up to date.
        digest: The digest of the texts in the files; it is kept up to date.
        is_aligned: Whether the teacher's tokens and the alignment are stored as well.
    """

    def __init__(self, folder: Path, progress: Progress, digest: TextDigest, *, is_aligned: bool) -> None:
        self._folder, self._progress, self._digest = folder, progress, digest
        self._committed_at = time.monotonic()
        self._files: dict[str, BinaryIO] = {}
        folder.mkdir(parents=True, exist_ok=True)
        begun = int(progress.texts > 0)  # files of offsets begin with a zero
        entries = {
            "input_ids": progress.tokens,
            "offsets": progress.texts + begun,
            "digests": progress.texts,
            "teacher_ids": progress.teacher_tokens,
            "teacher_offsets": progress.texts + begun,
            "places": progress.pairs,
            "bounds": progress.tokens + begun,
        }
        for name, dtype in (CORPUS_FILES | ALIGNMENT_FILES if is_aligned else CORPUS_FILES).items():
            path = folder / f"{name}.bin"
            path.touch()
            os.truncate(path, entries[name] * np.dtype(dtype).itemsize)
            self._files[name] = open(path, "ab")
            if name in ("offsets", "teacher_offsets", "bounds") and not begun:
                self._files[name].write(np.int64(0).tobytes())

    def add(self, input_ids: np.ndarray, dropped: int) -> None:
        """Append a text.

        Args:
            input_ids: `[tokens]`, int32, special tokens included.
            dropped: How many more tokens were cut off.
        """
        content = input_ids.tobytes()
        self._progress.tokens += len(input_ids)
        self._progress.dropped += dropped
        self._files["input_ids"].write(content)
        self._files["offsets"].write(self._progress.tokens.to_bytes(8, "little"))
        self._files["digests"].write(blake2b(content, digest_size=8).digest())

    def add_aligned(self, row: AlignedText) -> None:
        """Append a text in the tokens of both tokenizers."""
        progress, files = self._progress, self._files
        self.add(row.input_ids, row.dropped)
        progress.teacher_tokens += len(row.teacher_ids)
        files["teacher_ids"].write(row.teacher_ids.tobytes())
        files["teacher_offsets"].write(progress.teacher_tokens.to_bytes(8, "little"))
        files["places"].write(row.places.tobytes())
        files["bounds"].write((progress.pairs + np.cumsum(row.sizes, dtype=np.int64)).tobytes())
        progress.pairs += len(row.places)
        progress.unaligned += row.unaligned

    def finish_batch(self, texts: Sequence[str]) -> None:
        """Count texts as done, and commit if the last commit is some time ago.

        Args:
            texts: The texts that were added since the last call.
        """
        for text in texts:
            self._digest.update(text)
        self._progress.texts += len(texts)
        if time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self._commit()
            self._committed_at = time.monotonic()

    def finish(self) -> None:
        """Mark the corpus as complete."""
        self._progress.complete = True
        self._commit()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _commit(self) -> None:
        """Wait until the files are on the disk, then replace `progress.json`."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._progress.sha256 = self._digest.hexdigest()
        partial = self._folder / "progress.json.partial"
        partial.write_text(json.dumps(asdict(self._progress)))
        partial.replace(self._folder / "progress.json")


def _skip_finished(strings: Iterator[str], progress: Progress, bar: tqdm) -> TextDigest:
    """Read the texts that an earlier run has tokenized, check that they are the same, and return their digest."""
    digest = TextDigest()
    read = 0
    for text in islice(strings, progress.texts):
        digest.update(text)
        read += 1
        bar.update()
    changed = None
    if read < progress.texts or digest.hexdigest() != progress.sha256:
        changed = f"its first {progress.texts:,} texts were others"
    elif progress.complete and next(strings, None) is not None:
        changed = f"it had {progress.texts:,} texts, now it has more"
    if changed:
        raise CorpusChangedError(
            f"the folder was begun with another corpus: {changed}; pass the same texts, choose another folder, or "
            "overwrite"
        )
    return digest


def _check_content(
    progress: Progress,
    specials: int,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Raise a ValueError if a corpus holds nothing but special tokens, or if too few of its tokens align.

    Args:
        progress: What the corpus holds.
        specials: Number of special tokens of each text.
        tokenizer: The tokenizer of the dictionary.
        teacher_tokenizer: The tokenizer of the teacher, if it is another one.
    """
    content = progress.tokens - progress.texts * specials
    if content <= 0:
        raise ValueError(f"the corpus is empty: none of its {progress.texts} texts has a token")
    if progress.unaligned > (1 - SMALLEST_ALIGNED_SHARE) * content:
        raise ValueError(
            f"only {1 - progress.unaligned / content:.1%} of {content:,} tokens cover a character (white space apart) "
            f"that a token of the teacher covers; at least {SMALLEST_ALIGNED_SHARE:.0%} must. Either "
            f"{type(tokenizer).__name__} or the teacher's {type(teacher_tokenizer).__name__} reports wrong character "
            "offsets, or the texts are mostly white space: pass another tokenizer or other texts, or leave out "
            "`tokenizer` to use the teacher's"
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | None) -> tuple[int, int, tuple[int, int]]:
    """Count the tokens around each text: `prefix`, `suffix` and `unpooled` of :class:`TokenizedCorpus`."""
    if prompt is None:
        return *special_token_counts(tokenizer), (0, 0)
    prefix, suffix = map(len, prompt.around(tokenizer))
    return prefix, suffix, (prefix * prompt.skips_head, suffix * prompt.skips_tail)


def _batches(strings: Iterator[str]) -> Iterator[list[str]]:
    """Group texts into lists of bounded length and number of characters."""
    batch: list[str] = []
    characters = 0
    for text in strings:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _token_ids(
    batch: list[str], tokenizer: PreTrainedTokenizerBase, truncate_at: int | None, prompt: Prompt | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the token ids of each text, `[tokens]`, int32, and how many were cut off; special tokens are never cut."""
    if prompt is None:
        suffix = special_token_counts(tokenizer)[1]
        # verbose=False: no warning of texts longer than the model's limit, since windows are cut from them
        rows = tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]
    else:
        before, after = prompt.around(tokenizer)
        suffix, rows = len(after), [before + ids + after for ids in prompt.content(tokenizer, batch)]
    for ids in rows:
        dropped = 0 if truncate_at is None else max(0, len(ids) - truncate_at)
        kept = ids[: len(ids) - suffix - dropped] + ids[len(ids) - suffix :] if dropped else ids
        yield np.asarray(kept, dtype=np.int32), dropped
