"""The methods `encode` and `encode_words`, which teachers and students share."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .arguments import check_flag, check_flags
from .encoding import BatchEncoder
from .prompts import Prompted


class TextEncoder:
    """The base class of models that encode texts and words, that is teachers and students.

    A subclass implements `_batch_encoder`.

    Attributes:
        sentence_head: What is done with a pooled vector, see :func:`make_sentence_head`. None: nothing.
    """

    sentence_head: nn.Sequential | None

    def _batch_encoder(self, prompt_name: str | None, batch_size: int, assignment: str | None) -> BatchEncoder:
        """Return what runs the texts in batches. For the arguments see :meth:`encode`."""
        raise NotImplementedError

    @overload
    def encode(
        self,
        texts: str | Iterable[Prompted],
        *,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: Literal[False] = False,
        normalize_embeddings: bool = False,
        long_texts: str = "truncate",
        assignment: str | None = None,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Iterable[Prompted],
        *,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: Literal[True],
        normalize_embeddings: bool = False,
        long_texts: str = "truncate",
        assignment: str | None = None,
    ) -> npt.NDArray[np.float32]: ...

    def encode(
        self,
        texts: str | Iterable[Prompted],
        *,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = False,
        normalize_embeddings: bool = False,
        long_texts: str = "truncate",
        assignment: str | None = None,
    ) -> Tensor | npt.NDArray[np.float32]:
        """Return one vector per text.

        If the model has modules after its pooling, as in sentence-transformers, the vectors have gone through them.

        Texts are read and sorted by length in chunks of 4,096. So an iterable, such as a generator, may be larger than
        memory.

        Args:
            texts: One text or many. A text is a string, or a pair of an instruction and a text.
            prompt_name: Name of the prompt to put before each text. Default: the model's own prompt, if it has one.
            batch_size: Texts per forward pass.
            show_progress_bar: Whether to show a progress bar. None: if there is more than one batch.
            convert_to_numpy: Whether to return a numpy array instead of a tensor.
            normalize_embeddings: Whether to scale each vector to length 1.
            long_texts: What is done with texts that are longer than the model's `max_seq_length`: `truncate` leaves
                their end out, and a warning says of how many texts. `windows` cuts them into windows that overlap by a
                quarter; the vector of the text is the mean of their vectors, weighted by the number of tokens.
            assignment: For students only: `hard`, `soft` or `none`. None: the assignment of the config.

        Returns:
            `[texts, hidden]`, float32 on the CPU; `[hidden]` for a single string.

        Raises:
            ValueError: A text is neither a string nor a pair of strings, a text has no tokens, the model has no prompt
                of that name, or a vector is NaN or infinite.
            TypeError: A teacher is given an assignment.

        Example:
            >>> teacher.encode(["River bank.", "Savings bank."]).shape
            torch.Size([2, 384])
            >>> teacher.encode("River bank.", normalize_embeddings=True, convert_to_numpy=True).shape
            (384,)
            >>> student.encode((text for text in texts[:5]), assignment="hard").shape
            torch.Size([5, 384])
        """
        check_flags(convert_to_numpy=convert_to_numpy, normalize_embeddings=normalize_embeddings)
        if show_progress_bar is not None:
            check_flag("show_progress_bar", show_progress_bar)
        encoder = replace(self._batch_encoder(prompt_name, batch_size, assignment), long_texts=long_texts)
        with _on_cpu():
            vectors = encoder.encode_texts([texts] if isinstance(texts, str) else texts, show_progress_bar)
            if self.sentence_head is not None:
                with torch.inference_mode():
                    vectors = self.sentence_head(vectors.to(encoder.device)).float().cpu()
        _check_finite(vectors, "text")
        if normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if isinstance(texts, str):
            vectors = vectors[0]
        return vectors.numpy() if convert_to_numpy else vectors

    def encode_words(
        self,
        sentences: Iterable[Sequence[str]],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        assignment: str | None = None,
    ) -> list[Tensor]:
        """Return one vector per word.

        The model reads the words of a sentence with spaces between them, without a prompt. The vector of a word is the
        mean over the tokens that end in the word. It is zero if the word has no tokens or comes after `max_seq_length`
        tokens.

        Args:
            sentences: One list of words per sentence.
            batch_size: Sentences per forward pass.
            show_progress_bar: Whether to show a progress bar. None: if there is more than one batch.
            assignment: For students only: `hard`, `soft` or `none`. None: the assignment of the config.

        Returns:
            `[words, hidden]` per sentence, float32 on the CPU.

        Raises:
            ValueError: A sentence is not a list of strings or has no tokens, or the tokenizer does not return
                character offsets.

        Example:
            >>> [vectors.shape for vectors in teacher.encode_words([["river", "bank"], ["mint"]])]
            [torch.Size([2, 384]), torch.Size([1, 384])]
        """
        if show_progress_bar is not None:
            check_flag("show_progress_bar", show_progress_bar)
        encoder = self._batch_encoder(None, batch_size, assignment)
        with _on_cpu():
            found = encoder.encode_words(sentences, show_progress_bar)
            if found:
                _check_finite(torch.stack([vectors.sum(0) for vectors in found]), "sentence")
            return found


def _check_finite(vectors: Tensor, kind: str) -> None:
    """Raise a ValueError if a vector of `[n, hidden]` is NaN or infinite."""
    is_wrong = ~vectors.isfinite().all(1)
    if is_wrong.any():
        raise ValueError(
            f"the model yields NaN or infinite values for {kind} {int(is_wrong.nonzero()[0])}: load it in another "
            "dtype, such as float32; if that does not help, its weights are damaged"
        )


def _on_cpu() -> AbstractContextManager[Any]:
    """Return a context in which new tensors are on the CPU, whatever `torch.set_default_device` says."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
