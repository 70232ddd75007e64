"""Turn texts into token ids: :func:`tokenize_corpus` writes them to a folder, :func:`open_corpus` reads them.

Texts are read once, batch by batch, with memory for one batch. An interrupted run can be resumed: the next run skips
the texts that are done. It reads them once more, but only to check that they are the same. The files are described in
`corpus_files.py`, the alignment with a teacher that has another tokenizer in `alignment.py`.
"""

import os
from collections.abc import Callable, Iterator, Sized
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..data import Texts, iterate_texts
from ..models.prompts import Prompt
from ..models.tokenization import check_offsets, special_token_counts, tokenize
from .alignment import align_texts
from .corpus_files import (
    ALIGNMENT_FILES,
    CORPUS_FILES,
    CorpusChangedError,
    CorpusWriter,
    Progress,
    TextDigest,
    read_progress,
)
from .windows import Alignment, TokenizedCorpus

# If a smaller share of the tokens aligns with the teacher's, most of the text would get no senses.
SMALLEST_ALIGNED_SHARE = 0.5
# The most texts and characters in one call of the tokenizer.
BATCH_TEXTS = 1000
BATCH_CHARACTERS = 1_000_000


def tokenize_corpus(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike[str],
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
        CorpusChangedError: An interrupted run in this folder began with other texts, or its files are damaged.
    """
    if teacher_tokenizer is not None:
        check_offsets(tokenizer, teacher_tokenizer)
        if prompt is not None and prompt.around(tokenizer) != Prompt().around(tokenizer):
            raise ValueError(
                f"the teacher has a prompt ({prompt.template!r}) and the dictionary another tokenizer: only one of "
                "them is supported; leave out the prompt, or use the teacher's tokenizer"
            )
    prefix, suffix, _ = special_tokens(tokenizer, prompt)
    folder = Path(directory)
    progress = read_progress(folder)
    strings = iterate_texts(texts, text_column)
    total = len(texts) if isinstance(texts, Sized) else None
    with tqdm(total=total, desc="Tokenizing", unit=" texts", leave=False) as bar:
        digest = _skip_finished(strings, progress, bar.update)
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
    """Tokenize a few texts in memory.

    Args:
        texts: The texts, at least one.
        tokenizer: The tokenizer of the dictionary.
        prompt: What the teacher reads around each text.

    Returns:
        The corpus, without digests.
    """
    rows = [ids for ids, _ in _token_ids(texts, tokenizer, None, prompt)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])])
    prefix, suffix, unpooled = special_tokens(tokenizer, prompt)
    digests = np.zeros(len(rows), np.uint64)
    return TokenizedCorpus(np.concatenate(rows), offsets, digests, prefix, suffix, unpooled=unpooled)


def corpus_digest(texts: Texts, text_column: str = "text") -> str:
    """Return the SHA-256 of texts, as in `Progress.sha256`.

    Args:
        texts: Strings, or a dataset with a text column.
        text_column: The column of a dataset that holds the texts.
    """
    digest = TextDigest()
    for text in iterate_texts(texts, text_column):
        digest.update(text)
    return digest.hexdigest()


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
    prefix, suffix, unpooled = special_tokens(tokenizer, prompt)
    arrays = files["input_ids"], files["offsets"], files["digests"]
    corpus = TokenizedCorpus(*arrays, prefix, suffix, dropped=progress.dropped, unpooled=unpooled)
    if teacher_tokenizer is not None:
        specials = special_token_counts(teacher_tokenizer)
        teacher = TokenizedCorpus(files["teacher_ids"], files["teacher_offsets"], corpus.digests, *specials)
        corpus.alignment = Alignment(teacher, files["places"], files["bounds"], progress.unaligned)
    return corpus


def _skip_finished(strings: Iterator[str], progress: Progress, advance: Callable[[], object]) -> TextDigest:
    """Read the texts that an earlier run has tokenized, and check that they are the same.

    Args:
        strings: The texts; those that are done are consumed.
        progress: How far the earlier run got.
        advance: Called after each text.

    Returns:
        The digest of these texts.

    Raises:
        CorpusChangedError: The texts are not the same.
    """
    digest = TextDigest()
    read = 0
    for text in islice(strings, progress.texts):
        digest.update(text)
        read += 1
        advance()
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
        raise ValueError(f"the corpus is empty: none of its {progress.texts} texts holds a token; give other texts")
    if progress.unaligned > (1 - SMALLEST_ALIGNED_SHARE) * content:
        raise ValueError(
            f"only {1 - progress.unaligned / content:.1%} of {content:,} tokens cover a character (white space apart) "
            f"that a token of the teacher covers; at least {SMALLEST_ALIGNED_SHARE:.0%} must. Either "
            f"{type(tokenizer).__name__} or the teacher's {type(teacher_tokenizer).__name__} reports wrong character "
            "offsets, or the texts are mostly white space: pass another tokenizer or other texts, or leave out "
            "`tokenizer` to use the teacher's"
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | None) -> tuple[int, int, tuple[int, int]]:
    """Count the tokens around each text.

    Args:
        tokenizer: The tokenizer.
        prompt: The prompt of the teacher, if it has one.

    Returns:
        `prefix`, `suffix` and `unpooled` of :class:`TokenizedCorpus`.
    """
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
        rows = tokenize(tokenizer, batch, return_attention_mask=False, verbose=False)["input_ids"]
    else:
        before, after = prompt.around(tokenizer)
        suffix, rows = len(after), [before + ids + after for ids in prompt.content(tokenizer, batch)]
    for ids in rows:
        dropped = 0 if truncate_at is None else max(0, len(ids) - truncate_at)
        kept = ids[: len(ids) - suffix - dropped] + ids[len(ids) - suffix :] if dropped else ids
        yield np.asarray(kept, dtype=np.int32), dropped
