"""The files of a tokenized corpus, and how far they are written.

A corpus is a folder of flat files without headers:

- `input_ids.bin`: the token ids of all texts, one text after the other;
- `offsets.bin`: where each text begins, and where the last one ends;
- `digests.bin`: a hash of each text's token ids;
- `teacher_ids.bin`, `teacher_offsets.bin`, `places.bin`, `bounds.bin`: the teacher's tokens and the alignment, if the
  teacher has another tokenizer;
- `progress.json`: how many texts, tokens and so on the files hold, and a SHA-256 of these texts.

The files only grow, so that a killed run loses little. Every few seconds a run waits until they have reached the disk,
and replaces `progress.json`. The next run cuts off what `progress.json` does not count, and appends.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..models.files import read_object, write_object
from .alignment import AlignedText

CORPUS_FILES = {"input_ids": np.int32, "offsets": np.int64, "digests": np.uint64}
ALIGNMENT_FILES = {"teacher_ids": np.int32, "teacher_offsets": np.int64, "places": np.int32, "bounds": np.int64}
# How many seconds of work a killed run may lose.
COMMIT_SECONDS = 10


class CorpusChangedError(ValueError):
    """The texts differ from the texts of the interrupted run, or its files are damaged."""


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

    @property
    def entries(self) -> dict[str, int]:
        """Number of entries in each file."""
        begun = int(self.texts > 0)  # files of offsets begin with a zero
        return {
            "input_ids": self.tokens,
            "offsets": self.texts + begun,
            "digests": self.texts,
            "teacher_ids": self.teacher_tokens,
            "teacher_offsets": self.texts + begun,
            "places": self.pairs,
            "bounds": self.tokens + begun,
        }


class TextDigest:
    """SHA-256 of a sequence of texts; it depends on their order and on where each of them ends."""

    def __init__(self) -> None:
        self._sha256 = sha256()

    def update(self, text: str) -> None:
        """Add a text.

        Args:
            text: The next text.
        """
        content = text.encode("utf-8", "surrogatepass")
        self._sha256.update(len(content).to_bytes(8, "little") + content)

    def hexdigest(self) -> str:
        """Return the digest of all texts so far."""
        return self._sha256.hexdigest()


def read_progress(folder: Path) -> Progress:
    """Read how far the corpus in a folder is written.

    Args:
        folder: The folder of the corpus.

    Returns:
        What the files hold; nothing if there is no corpus.

    Raises:
        CorpusChangedError: The files are damaged.
    """
    path = folder / "progress.json"
    if not path.is_file():
        return Progress()
    way_out = "choose another folder, or overwrite"
    try:
        content = read_object(path)
    except ValueError as error:
        raise CorpusChangedError(f"{error}: {way_out}") from error
    kinds = {name: type(value) for name, value in asdict(Progress()).items()}
    if {name: type(value) for name, value in content.items()} != kinds:
        raise CorpusChangedError(f"{path} is broken (it has other fields than {', '.join(kinds)}): {way_out}")
    progress = Progress(**content)
    names = CORPUS_FILES | ALIGNMENT_FILES if progress.teacher_tokens else CORPUS_FILES
    for name, dtype in names.items():
        file, size = folder / f"{name}.bin", progress.entries[name] * np.dtype(dtype).itemsize
        if size < 0 or not file.is_file() or file.stat().st_size < size:
            raise CorpusChangedError(f"{file} has less than the {size:,} bytes that {path.name} tells: {way_out}")
    return progress


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
        begun = progress.texts > 0
        for name, dtype in (CORPUS_FILES | ALIGNMENT_FILES if is_aligned else CORPUS_FILES).items():
            path = folder / f"{name}.bin"
            path.touch()
            os.truncate(path, progress.entries[name] * np.dtype(dtype).itemsize)
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
        """Append a text in the tokens of both tokenizers.

        Args:
            row: The text.
        """
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
        write_object(self._folder / "progress.json", asdict(self._progress))
