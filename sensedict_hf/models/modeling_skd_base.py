"""The base class of students with and without a head."""

from typing import Any, cast

from torch import nn

from .configuration_skd_student import SKDStudentConfig
from .hub import SensePreTrainedModel
from .modeling_sense_embedding import SenseEmbeddingModel

FIXED_TOKENS = (
    "the token embeddings of a student cannot be replaced, because its dictionary is for the same tokens: build a "
    "dictionary for the new tokenizer, and a student from that"
)


class SKDStudentPreTrainedModel(SensePreTrainedModel):
    """The base class of students with and without a head."""

    config: SKDStudentConfig
    config_class = SKDStudentConfig
    base_model_prefix = "student"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`, with an error of its own for embeddings in the place of token ids."""
        if kwargs.get("inputs_embeds") is not None and not self.can_generate():
            raise ValueError("senses are chosen by token id: call the student with input_ids, not with inputs_embeds")
        return super().__call__(*args, **kwargs)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Return the token embeddings; refuse to change their number.

        Args:
            new_num_tokens: The number that there is, or None.
            pad_to_multiple_of: A divisor of it, or None.
            mean_resizing: Has no effect.

        Raises:
            ValueError: It is another number: the dictionary has senses for the old tokens.

        Example:
            >>> student.resize_token_embeddings(len(student.tokenizer))
            Embedding(30522, 384, padding_idx=0)
        """
        size = self.config.vocab_size
        if new_num_tokens not in (None, size) or size % (pad_to_multiple_of or 1):
            raise ValueError(f"{new_num_tokens} tokens instead of {size}: {FIXED_TOKENS}")
        return cast(nn.Embedding, self.get_input_embeddings())

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], *args: Any, **kwargs: Any) -> None:
        """Set the implementation of attention, as in transformers.

        Args:
            attn_implementation: Its name.
            args: As in transformers.
            kwargs: As in transformers.

        Raises:
            ValueError: The backbone must use another one, see :class:`SKDStudentConfig`.
        """
        own = self.config.attention_implementation
        if own is not None and attn_implementation != own:
            raise ValueError(
                f"attn_implementation={attn_implementation!r}: the backbone attends as its teacher only with {own!r}"
            )
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Names of buffers that DistributedDataParallel must not broadcast.

        It broadcasts all buffers at every forward pass, but the dictionary never changes. A PEFT model passes on this
        attribute of the model inside it, but has longer names for the buffers, so these are listed too.
        """
        dictionaries = {name for name, module in self.named_modules() if isinstance(module, SenseEmbeddingModel)}
        names = [name for name, _ in self.named_buffers() if name.rpartition(".")[0] in dictionaries]
        return names + [f"base_model.model.{name}" for name in names]
