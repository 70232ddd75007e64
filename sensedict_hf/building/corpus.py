"""Texts -> token ids on disk."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..data import Texts, iterate_texts
from ..models.prompts import Prompt
from ..models.tokenizers import check_offsets, special_token_counts
from .alignment import align_texts
from .windows import Alignment, TokenizedCorpus

CORPUS_FILES = {"input_ids": np.int32, "offsets": np.int64, "digests": np.uint64}
ALIGNMENT_FILES = {"teacher_ids": np.int32, "teacher_offsets": np.int64, "places": np.int32, "bounds": np.int64}
# Where less than this share of the tokens aligns with the teacher's, a dictionary would lack most of the text.
SMALLEST_ALIGNED_SHARE = 0.5
# One call of the tokenizer, and how much work a killed run may lose in this stage.
BATCH_TEXTS, BATCH_CHARACTERS, COMMIT_SECONDS = 1000, 1_000_000, 10


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
            raise ValueError(
                f"a prompt ({prompt.template!r}) and a dictionary for another tokenizer: choose one of them"
            )
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
            raise CorpusChangedError(
                f"this is not the corpus that was begun with: {changed}; give the same, another folder, or overwrite"
            )
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


def tokenize_in_memory(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, prompt: Prompt | None = None
) -> TokenizedCorpus:
    """Tokenizes a few texts."""
    rows = [ids for ids, _ in _token_ids(texts, tokenizer, None, prompt)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])])
    return TokenizedCorpus(
        np.concatenate(rows), offsets, np.zeros(len(rows), np.uint64), **_surroundings(tokenizer, prompt)
    )


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
    corpus = TokenizedCorpus(
        *(files[name] for name in CORPUS_FILES), dropped=progress.dropped, **_surroundings(tokenizer, prompt)
    )
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


def _tokenize(
    strings, tokenizer, teacher_tokenizer, folder: Path, progress: Progress, digest, truncate_at, prompt, bar
) -> None:
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
