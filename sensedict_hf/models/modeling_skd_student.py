"""Students: backbone -> projection to the teacher's width -> senses."""

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .attention import probe_attention
from .configuration_skd_student import SKDStudentConfig
from .encoding import BatchEncoder, padding_id
from .hub import SensePreTrainedModel, write_sentence_transformers
from .layer_transfer import _keep_layer_weights, _keep_layers, _refuse_quantized
from .modeling_sense_embedding import SenseEmbeddingModel
from .prompts import Prompt, choose_prompt
from .teachers import Teacher, check_teacher, load_teacher
from .text_encoder import TextEncoder

logger = logging.get_logger(__name__)


@dataclass
class SKDStudentOutput(ModelOutput):
    """
    Args:
        last_hidden_state: `[batch, positions, teacher's hidden]`, after the assignment of senses.
        student_hidden_state: the same before it: the student's own vectors, projected to the teacher's width.
        sense_ids: `[batch, positions]`, the best sense of each token (None for assignment `none`).
        hidden_states, attentions: of the backbone, if asked for.
    """

    last_hidden_state: Tensor | None = None
    student_hidden_state: Tensor | None = None
    sense_ids: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class SKDStudentPreTrainedModel(SensePreTrainedModel):
    config: SKDStudentConfig
    config_class = SKDStudentConfig
    base_model_prefix = "student"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """DDP would send the dictionary, which never changes, at every forward pass; also of a model with adapters of PEFT, which has
        this attribute of the model inside."""
        of_senses = [name for name, module in self.named_modules() if isinstance(module, SenseEmbeddingModel)]
        names = [name for name, _ in self.named_buffers() if name.rpartition(".")[0] in of_senses]
        return names + [f"base_model.model.{name}" for name in names]


class SKDStudentModel(SKDStudentPreTrainedModel, TextEncoder):
    """A small model that picks, for each token, the sense its teacher would pick."""

    def __init__(self, config: SKDStudentConfig):
        config.check()
        if config.learn_senses and config.default_assignment == "none":
            raise ValueError(
                "learn_senses=True: assignment 'none' returns no senses, so none would be learned; pass assignment='soft' too"
            )
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.text_config)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # the senses take the place of what it reads
        width, teacher_width = config.text_config.hidden_size, config.sense_config.hidden_size
        self.projection = nn.Linear(width, teacher_width) if width != teacher_width else None
        self.senses = SenseEmbeddingModel(config.sense_config)
        self.post_init()

    @classmethod
    def from_teacher(
        cls,
        teacher: str | os.PathLike | PreTrainedModel | Teacher,
        senses: SenseEmbeddingModel,
        num_hidden_layers: int | Sequence[int] = 2,
        **config: Any,
    ) -> "SKDStudentModel":
        """A student made of layers of its teacher.

        Args:
            teacher: the model that the dictionary was built from.
            num_hidden_layers: how many of its first layers, or the indices of the layers to keep.
            config: fields of [`SKDStudentConfig`].

        Raises:
            ValueError: the dictionary does not fit the teacher, or there are no such layers.
        """
        senses.check_takes_teacher_tokens()
        teacher = load_teacher(teacher)
        check_teacher(senses, teacher)
        _refuse_quantized(teacher)
        total = teacher.model.config.num_hidden_layers
        layers = list(range(num_hidden_layers)) if isinstance(num_hidden_layers, int) else list(num_hidden_layers)
        if not layers or not all(0 <= layer < total for layer in layers):
            raise ValueError(f"num_hidden_layers={num_hidden_layers}: {teacher.name} has layers 0 to {total - 1}")
        config = _encoding_settings(teacher) | {"teacher_layers": layers} | config
        text_config = _keep_layers(teacher.model.config, layers)
        student = cls._new(text_config, senses, config)
        weights = _keep_layer_weights(teacher.model, layers)
        missing, unexpected = student.backbone.load_state_dict(weights, strict=False)
        unexpected = [key for key in unexpected if not key.startswith("pooler.")]
        if missing or unexpected:
            wrong = ", ".join((missing + unexpected)[:5])
            raise ValueError(
                f"cannot take layers out of {type(teacher.model).__name__} ({wrong} do not match): use from_backbone"
            )
        return student._adopt(senses, teacher)

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike | PreTrainedModel | Teacher, senses: SenseEmbeddingModel, **config: Any
    ) -> "SKDStudentModel":
        """A student made of another, smaller model; a projection is added if its width is not the teacher's.

        Args:
            backbone: a name, a path or a model. senses: the teacher's dictionary, built for the backbone's tokenizer.
            config: fields of [`SKDStudentConfig`].

        Raises:
            ValueError: the backbone uses another tokenizer than the dictionary.
        """
        if isinstance(backbone, PreTrainedModel) and not backbone.name_or_path:
            backbone = load_teacher(backbone, tokenizer=senses.tokenizer)
        backbone = load_teacher(backbone)
        _refuse_quantized(backbone)
        senses.check_tokenizer(backbone.tokenizer)
        embeddings = backbone.model.get_input_embeddings().num_embeddings
        if (senses.offsets[embeddings:].diff() > 0).any():
            raise ValueError(
                f"{backbone.name} has embeddings for {embeddings} tokens, the dictionary senses of others: the tokenizer is not the "
                "model's, or the model must be resized to it"
            )
        prompt = senses.config.prompt or _encoding_settings(backbone)["prompt"]  # inside which the senses were found
        config = _encoding_settings(backbone) | {"prompt": prompt} | config
        student = cls._new(copy.deepcopy(backbone.model.config), senses, config)
        weights = {key: value for key, value in backbone.model.state_dict().items() if not key.startswith("pooler.")}
        student.backbone.load_state_dict(weights)
        return student._adopt(senses, backbone)

    @classmethod
    def _new(
        cls, text_config: PreTrainedConfig, senses: SenseEmbeddingModel, config: dict[str, Any]
    ) -> "SKDStudentModel":
        # In float32 whatever the source's dtype: training in pure half precision loses small updates (use Trainer's bf16 or fp16).
        text_config.dtype = torch.float32
        made = SKDStudentConfig(text_config=text_config, sense_config=copy.deepcopy(senses.config))
        if unknown := [name for name in config if not hasattr(made, name)]:
            raise ValueError(
                f"a student has no setting {unknown[0]!r}: choose fields of SKDStudentConfig, such as assignment or pooling"
            )
        return cls(SKDStudentConfig(text_config=text_config, sense_config=made.sense_config, **config))

    def _adopt(self, senses: SenseEmbeddingModel, source: Teacher) -> "SKDStudentModel":
        """Takes over the tensors of a dictionary, and the tokenizer, the device and what tokens attend to of a teacher or backbone."""
        self.senses.load_state_dict(senses.state_dict())
        self.tokenizer = source.tokenizer
        self.to(source.device)
        if source.attention is not None and probe_attention(self.backbone) != source.attention:
            self.config.attention_implementation = (
                "eager"  # of some architectures the only implementation that does as it is asked
            )
            self.set_attn_implementation("eager")
            if (found := probe_attention(self.backbone)) != source.attention:
                raise ValueError(
                    f"the student's tokens attend otherwise ({found}) than those of {source.name} ({source.attention})"
                )
        return self

    def replace_senses(self, senses: SenseEmbeddingModel) -> None:
        """Takes another dictionary of the same teacher in the place of its own: one that `merge_sense_dictionaries` has made smaller, or
        of another dtype (`student.senses.to_dtype("int8")`). How senses are assigned stays as it is.

        Raises:
            ValueError: the dictionary is of another teacher or for another tokenizer.
        """
        own = self.config.sense_config
        own.check_same_vectors(senses.config)
        config = copy.deepcopy(senses.config)
        for name in ("assignment", "assignment_temperature", "residual", "learn_senses", "sense_device"):
            setattr(config, name, getattr(own, name))
        replacement = SenseEmbeddingModel(config)
        replacement.load_state_dict(senses.state_dict())
        replacement.tokenizer = self.tokenizer
        self.senses = replacement.to(self.senses.device).train(self.training)
        self.config.sense_config = config

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers; also saves the tokenizer, a model card and, unless there is a prompt, which it would pool too, what
        sentence-transformers needs to encode texts alike."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process and self.config.prompt is None:
            write_sentence_transformers(
                save_directory, self.config.hidden_size, self.config.pooling, self.config.max_seq_length
            )

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise ValueError("a student's vocabulary is that of its dictionary: build a dictionary with the new tokenizer")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        assignment: str | None = None,
        **kwargs: Any,
    ) -> SKDStudentOutput:
        """
        Args:
            input_ids: `[batch, positions]`. attention_mask: `[batch, positions]`.
            assignment: `hard`, `soft` or `none`; default: the config's.
            kwargs: for the backbone.
        """
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        own = outputs.last_hidden_state if self.projection is None else self.projection(outputs.last_hidden_state)
        assignment = assignment or self.config.default_assignment
        assigned = None
        if assignment != "none":
            assigned = self.senses(input_ids, own, attention_mask, assignment, self.config.default_residual)
        return SKDStudentOutput(
            last_hidden_state=own if assigned is None else assigned.hidden_states,
            student_hidden_state=own,
            sense_ids=None if assigned is None else assigned.sense_ids,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _batch_encoder(self, prompt_name: str | None, batch_size: int, assignment: str | None = None) -> BatchEncoder:
        self.eval()
        prompt = None if self.config.prompt is None else Prompt(**self.config.prompt)
        prompts = getattr(self.config, "prompts", None) or {}
        return BatchEncoder(
            lambda input_ids, mask: self(input_ids, mask, assignment=assignment, return_dict=True).last_hidden_state,
            self.tokenizer,
            padding_id(self.tokenizer, self),
            max_length=self.config.max_seq_length,
            device=self.device,
            batch_size=batch_size,
            pooling=self.config.pooling,
            prompt=choose_prompt(prompt_name, prompt, prompts, getattr(self.config, "include_prompt", True)),
            hidden_size=self.config.hidden_size,
        )


def load_senses(path: str | os.PathLike) -> SenseEmbeddingModel:
    """A dictionary, or the one inside a student.

    Raises:
        ValueError: it is another kind of model.
    """
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(f"{path} holds no finished model: if it was being made there, give that command again")
    kind = AutoConfig.from_pretrained(path).model_type
    if kind not in ("sense_embedding", "skd_student"):
        raise ValueError(f"{path} holds a {kind} model, not a sense dictionary: make one with sensedict build")
    model = AutoModel.from_pretrained(path)
    return model if kind == "sense_embedding" else model.senses


def _encoding_settings(source: Teacher) -> dict[str, Any]:
    """What a student takes over of how its teacher or backbone makes vectors of texts."""
    prompt = None if source.prompt is None else asdict(source.prompt)
    return {"pooling": source.pooling, "max_seq_length": source.max_seq_length, "prompt": prompt}
