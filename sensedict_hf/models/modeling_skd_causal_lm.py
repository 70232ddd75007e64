"""Students that generate text: some layers of a decoder, with its language-model head."""

import copy
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .attention import evaluating
from .configuration_sense_embedding import SenseEmbeddingConfig
from .configuration_skd_student import SKDStudentConfig
from .fingerprints import tokenizer_fingerprint
from .head_transfer import load_with_head
from .layer_transfer import (
    check_weights,
    choose_layers,
    encoding_settings,
    keep_layer_weights,
    keep_layers,
    load_weights,
    student_config,
)
from .loading import move_model
from .modeling_skd_base import SKDStudentPreTrainedModel
from .modeling_skd_student import SKDStudentModel
from .teachers import Teacher, load_teacher

logger = logging.get_logger(__name__)
# Fields of configs of models that scale or clip their logits.
LOGIT_SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# Settings of sampling, which a generation config may have without `do_sample`.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
# With label smoothing `Trainer` computes the loss itself, and shifts the labels only for classes in this table.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["skd_student"] = "SKDStudentForCausalLM"


class SKDStudentForCausalLM(SKDStudentPreTrainedModel, GenerationMixin):
    """A small decoder that predicts the next token, made from some layers of a large one.

    It holds no senses: they guide its training, and are not needed afterwards. See :class:`SKDTrainer`.

    Args:
        config: Configuration of the student. Its dictionary is empty.

    Attributes:
        student: The layers, a :class:`SKDStudentModel` without senses.
        lm_head: The linear layer from states to the logits of all tokens. It shares its weights with the token
            embeddings if the teacher's does.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from sensedict_hf import SKDStudentForCausalLM
        >>> large = LlamaForCausalLM(LlamaConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=4,
        ...     num_attention_heads=2, intermediate_size=64, tie_word_embeddings=True))
        >>> student = SKDStudentForCausalLM.from_teacher(large, num_hidden_layers=2, tokenizer=teacher.tokenizer)
        >>> batch = student.tokenizer("the bank of the", return_tensors="pt", return_token_type_ids=False)
        >>> student.generate(**batch, max_new_tokens=3, do_sample=False).shape
        torch.Size([1, 9])
    """

    # The loss is a sum over tokens, divided by their number in all accumulated batches, which Trainer counts.
    accepts_loss_kwargs = True

    def __init__(self, config: SKDStudentConfig):
        super().__init__(config)
        self.student = SKDStudentModel(config)
        embeddings = self.student.get_input_embeddings()
        name = next(name for name, module in self.student.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"student.{name}.weight"}
        # Some backbones cannot take back tokens. Then transformers refuses assisted generation, which needs that.
        self._is_stateful = bool(getattr(self.student.backbone, "_is_stateful", False))
        has_bias = bool(getattr(config.text_config, "lm_head_bias", False))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=has_bias)
        self.post_init()

    @classmethod
    def from_teacher(
        cls,
        teacher: str | os.PathLike[str] | PreTrainedModel,
        num_hidden_layers: int | Sequence[int] = 2,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **config: Any,
    ) -> "SKDStudentForCausalLM":
        """Make a student from some layers of a decoder, with its head.

        Args:
            teacher: The decoder with its language-model head: a name, a path or a loaded model.
            num_hidden_layers: How many of its layers to keep, the first ones and the last, or the indices of the
                layers to keep.
            tokenizer: The tokenizer of a loaded model. Default: the one stored with it.
            config: Other fields of :class:`SKDStudentConfig`, such as `max_seq_length`.

        Returns:
            A student in float32, on the device of the teacher, with its tokenizer, chat template and settings of
            generation.

        Raises:
            ValueError: The model has no head, is not causal or has no such layers, its logits are more than a linear
                map of its states, its weights cannot be copied, or `config` names an unknown field.

        Example:
            >>> from sensedict_hf import SKDStudentForCausalLM
            >>> student = SKDStudentForCausalLM.from_teacher("meta-llama/Llama-3.2-1B", 4)  # doctest: +SKIP
        """
        source, head, generation = load_language_model(teacher, tokenizer)
        check_weights(source)
        layers = choose_layers(num_hidden_layers, source)

        # A config whose dictionary is empty, but says where the student comes from.
        text_config = keep_layers(source.model.config, layers)
        senses = SenseEmbeddingConfig(
            vocab_size=text_config.vocab_size,
            hidden_size=text_config.hidden_size,
            base_model_name_or_path=source.name,
            base_model_revision=source.revision,
            tokenizer_fingerprint=tokenizer_fingerprint(source.tokenizer),
            attention=source.attention,
            card_data=source.card_data or None,
        )
        settings = encoding_settings(source) | {"teacher_layers": layers, "assignment": "none"} | config
        own_config = student_config(text_config, senses, settings)
        own_config.tie_word_embeddings = head.weight is source.model.get_input_embeddings().weight
        own_config.text_config.lm_head_bias = head.bias is not None

        # The weights.
        student = cls(own_config)
        load_weights(student.student.backbone, keep_layer_weights(source.model, layers), source.model)
        student.lm_head.load_state_dict(head.state_dict())
        student.tie_weights()
        student.tokenizer = source.tokenizer
        if generation is not None:
            student.generation_config = _saveable(generation)
        student.to(source.device)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
        student.eval()
        return student

    @classmethod
    def _check_files(cls, config: Any, source: str, has_new_head: bool, kwargs: dict[str, Any]) -> None:
        made = config.architectures or [cls.__name__]
        if cls.__name__ not in made:
            raise ValueError(
                f"{source} is a {made[0]}, which has no language-model head: make a student that generates text with "
                "SKDStudentForCausalLM.from_teacher, or sensedict distill --head causal_lm"
            )
        super()._check_files(config, source, has_new_head, kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.student.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        head: nn.Module = self.lm_head
        return head

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of the next token at every position.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.
            position_ids: `[batch, positions]`, places in the texts. None: counted from 0.
            past_key_values: The cache of keys and values of earlier positions.
            inputs_embeds: `[batch, positions, hidden]`, embeddings instead of token ids.
            labels: `[batch, positions]`, token ids; -100 is not counted. They are shifted here, as in transformers.
            use_cache: Whether to return a cache.
            logits_to_keep: How many of the last positions get logits, or their indices. 0: all.
            num_items_in_batch: What the summed loss is divided by. None: the number of labels.
            kwargs: Other arguments of the backbone, and `return_dict`.

        Returns:
            Logits `[batch, positions, vocab]`, with labels also the loss, and the cache.

        Example:
            >>> from sensedict_hf import SKDStudentForCausalLM
            >>> student = SKDStudentForCausalLM.from_pretrained("student")  # doctest: +SKIP
        """
        if position_ids is not None:
            kwargs["position_ids"] = position_ids  # not all architectures take them
        outputs = self.student.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        states = outputs.get("hidden_states")
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.get("past_key_values"),
            # The last of them is what the head reads, in every architecture.
            hidden_states=None if states is None else (*states[:-1], outputs.last_hidden_state),
            attentions=outputs.get("attentions"),
        )


def load_language_model(
    model: str | os.PathLike[str] | PreTrainedModel | Teacher,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: torch.device | str | None = None,
) -> tuple[Teacher, nn.Linear, GenerationConfig | None]:
    """Load a causal language model, and take it apart into a teacher, its head and its settings of generation.

    Args:
        model: A name, a path or a loaded model with its head.
        tokenizer: The tokenizer of a loaded model. Default: the one stored with it.
        device: Device of both. Default: a GPU if there is one; a loaded model stays where it is.

    Returns:
        The teacher, the head, and the settings of generation, if it has any.

    Raises:
        ValueError: The model has no head, has no attention layers or is not causal, or it scales its logits.
    """
    if isinstance(model, Teacher):
        raise ValueError(
            "a Teacher has no language-model head: pass the name of the model, or the model that "
            "AutoModelForCausalLM.from_pretrained returns"
        )
    is_loaded = isinstance(model, PreTrainedModel)
    loaded = load_with_head(model, AutoModelForCausalLM)
    if device is None and not is_loaded and torch.cuda.is_available():
        device = "cuda"
    if device is not None:
        move_model(loaded, device)
    head = loaded.get_output_embeddings()
    if not isinstance(head, nn.Linear) or loaded.base_model is loaded:
        raise ValueError(
            f"{type(loaded).__name__} has no linear language-model head: pass the model that "
            "AutoModelForCausalLM.from_pretrained returns"
        )
    teacher = load_teacher(loaded, tokenizer=tokenizer)
    if teacher.attention != "causal":
        raise ValueError(
            f"the attention of {teacher.name} is {teacher.attention}: only a causal model predicts the next token; "
            "load it as it was trained"
        )
    # Some architectures scale or clip their logits, which a student would not do. A few small logits may not show it.
    scales = {name: getattr(loaded.config.get_text_config(), name, None) for name in LOGIT_SCALES}
    changes_logits = any(scale not in (None, 1, 1.0) for scale in scales.values())
    ids = torch.arange(4, device=loaded.device)[None]
    with torch.no_grad(), evaluating(loaded):
        outputs = cast(Any, loaded)(input_ids=ids)
        if hasattr(outputs, "cache_params"):  # Mamba and its relatives
            raise ValueError(
                f"{type(loaded).__name__} has no attention layers, and generates from a cache of another kind, which "
                "students do not support: choose another architecture, such as Llama, Jamba or Qwen"
            )
        states = teacher.model(input_ids=ids).last_hidden_state
        if changes_logits or not torch.allclose(outputs.logits, head(states), rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"the logits of {type(loaded).__name__} are more than a linear map of its last states, which students "
                "do not support: choose another architecture, such as Llama, Mistral or Qwen"
            )
    return teacher, head, getattr(loaded, "generation_config", None)


def _saveable(generation: GenerationConfig) -> GenerationConfig:
    """Return a copy without settings of sampling if there is none, as some published models have them.

    Generation ignores them. But `Trainer` gives the config the tokenizer's special tokens, and then transformers saves
    it only if it is valid.
    """
    own = copy.deepcopy(generation)
    try:
        own.validate(strict=True)
    except ValueError:
        given = [name for name in SAMPLING if not own.do_sample and getattr(own, name) is not None]
        if given:
            logger.warning(f"{', '.join(given)} without do_sample in the teacher's generation config: left out")
        for name in given:
            setattr(own, name, None)
    return own
