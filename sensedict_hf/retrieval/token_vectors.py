"""The vectors of the tokens of texts, from a teacher or a student.

The special tokens and the prompt that a model reads around a text get no vectors. A long text is cut into windows.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor

from ..models.arguments import check_integer
from ..models.encoding import pad_batch, padding_id
from ..models.loading import check_dictionary
from ..models.matching import check_teacher, window_length
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.prompts import Prompt, choose_prompt
from ..models.teachers import Teacher
from ..models.tokenization import model_max_length, special_tokens_around, tokenize
from ..models.windows import cut_windows, window_width

# Models and tokenizers that were compared with a dictionary. A search with one query would take longer to compare.
_CHECKED: WeakKeyDictionary[SenseEmbeddingModel, WeakSet[Any]] = WeakKeyDictionary()


class TokenBatch(NamedTuple):
    """Tokens of some texts.

    Attributes:
        texts: Number of the text of each token, `[tokens]`.
        token_ids: `[tokens]`.
        vectors: `[tokens, hidden]`, float32, on the device of the model.
    """

    texts: Tensor
    token_ids: Tensor
    vectors: Tensor


class TokenEncoder:
    """Compute the vectors of the tokens of texts that a dictionary has senses for.

    Args:
        model: A teacher or a student.
        senses: The dictionary.
        batch_size: Windows in a forward pass.
        prompt_name: Name of the prompt of the model to read before each text. None: its own prompt, if it has one.

    Raises:
        ValueError: The dictionary does not fit the model or its tokenizer, or the model has no such prompt.
    """

    def __init__(
        self,
        model: Teacher | SKDStudentModel,
        senses: SenseEmbeddingModel,
        batch_size: int = 32,
        prompt_name: str | None = None,
    ) -> None:
        batch_size = check_integer("batch_size", batch_size, 1)
        check_dictionary(senses)
        known = _CHECKED.setdefault(senses, WeakSet())
        parts = model.model if isinstance(model, Teacher) else model, model.tokenizer
        if not all(part in known for part in parts):
            check_model(model, senses)
            known.update(parts)
        self.model, self.layer, self.batch_size = model, senses.config.layer, batch_size
        self.tokenizer, self.device = model.tokenizer, model.device
        if isinstance(model, Teacher):
            self.pad_token_id, longest = model.pad_token_id, model.max_window
            prompt, prompts, include_prompt = model.prompt, model.prompts, model.include_prompt
        else:
            model.eval()
            self.pad_token_id = padding_id(model.tokenizer, model)
            longest = model_max_length(model.tokenizer, model.config.text_config)
            prompt = None if model.config.prompt is None else Prompt(**model.config.prompt)
            prompts, include_prompt = model.config.prompts or {}, model.config.include_prompt
        self.prompt = choose_prompt(prompt_name, prompt, prompts, include_prompt)
        self.max_length = window_length(senses, longest)

        # What the model reads before and after every text.
        if self.prompt is not None:
            self.before, self.after = self.prompt.around(self.tokenizer)
        else:
            self.before, self.after = special_tokens_around(self.tokenizer)
        self.width = window_width(self.max_length, len(self.before) + len(self.after))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without prompt and special tokens.

        Args:
            texts: The texts.
        """
        if not texts:
            return []
        if self.prompt is not None:
            return self.prompt.content(self.tokenizer, texts)
        encoding = tokenize(self.tokenizer, list(texts), add_special_tokens=False, verbose=False)
        rows: list[list[int]] = encoding["input_ids"]
        return rows

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[TokenBatch]:
        """Yield the vectors of all tokens, in batches of windows of similar length.

        Args:
            rows: The token ids of each text, from :meth:`tokenize`.

        Raises:
            ValueError: A vector is not finite.
        """
        windows = cut_windows(np.array([len(row) for row in rows], dtype=np.int64), self.width)
        order = np.argsort(windows.start - windows.stop, kind="stable")  # the longest first
        for first in range(0, len(order), self.batch_size):
            # Run the model.
            batch = order[first : first + self.batch_size]
            texts, start, _, own_start, own_stop = (
                torch.from_numpy(column[batch])[:, None] for column in vars(windows).values()
            )
            shown = zip(windows.text[batch], windows.start[batch], windows.stop[batch])
            ids = [[*self.before, *rows[text][begin:end], *self.after] for text, begin, end in shown]
            input_ids, mask = pad_batch(ids, self.pad_token_id)
            with torch.inference_mode():
                vectors = self._forward(input_ids.to(self.device), mask.to(self.device)).float()
            # Keep the tokens that take their vectors from these windows.
            place = torch.arange(input_ids.shape[1]) - len(self.before) + start
            owned = (place >= own_start) & (place < own_stop)
            kept = vectors[owned.to(vectors.device)]
            if not kept.isfinite().all():
                raise ValueError(
                    "the model yields vectors with values that are not finite: load it in another dtype, such as "
                    "float32"
                )
            yield TokenBatch(texts.expand_as(owned)[owned], input_ids[owned], kept)

    def _forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors of a batch, `[batch, positions, hidden]`; of a student its own, before the senses."""
        if isinstance(self.model, Teacher):
            return self.model.hidden_states(input_ids, mask, self.layer)
        output = self.model(input_ids, mask, assignment="none", return_dict=True)
        own: Tensor = output.student_hidden_state
        return own


def check_model(model: Teacher | SKDStudentModel, senses: SenseEmbeddingModel) -> None:
    """Check that a model makes vectors that a dictionary has senses for.

    Args:
        model: A teacher or a student.
        senses: The dictionary.

    Raises:
        ValueError: Teacher, layer, width or tokenizer of the dictionary are other ones, or its senses are of the next
            token.
    """
    if senses.config.key == "next":
        raise ValueError(
            "the senses are of the next token, which the last token of a document or query does not have: build a "
            "dictionary with key='input' for an index"
        )
    senses.config.check_tokenizer(model.tokenizer)
    if isinstance(model, Teacher):
        senses.config.check_takes_teacher_tokens()
        check_teacher(senses, model)
    else:
        model.config.sense_config.check_same_vectors(senses.config)
