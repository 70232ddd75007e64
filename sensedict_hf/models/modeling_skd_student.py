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
from .encoding import encode_texts, encode_words, padding_id
from .hub import SensePreTrainedModel, write_sentence_transformers
from .layer_transfer import choose_layers, keep_layer_weights, keep_layers, load_weights, refuse_quantized
from .modeling_sense_embedding import SenseEmbeddingModel
from .prompts import Prompt, Prompted
from .teachers import Teacher, check_teacher, load_teacher

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


class SKDStudentModel(SKDStudentPreTrainedModel):
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
        teacher: str | os.PathLike[str] | PreTrainedModel | Teacher,
        senses: SenseEmbeddingModel,
        num_hidden_layers: int | Sequence[int] = 2,
        **config: Any,
    ) -> "SKDStudentModel":
        """Make a student from some layers of its teacher.

        Args:
            teacher: The model that the dictionary was built from: a name, a path, a loaded model or a :class:`Teacher`.
            senses: The sense dictionary, which is copied into the student.
            num_hidden_layers: How many of the teacher's first layers to keep, or the indices of the layers to keep.
            config: Other fields of :class:`SKDStudentConfig`, such as `assignment` or `residual`.

        Returns:
            A student in float32, on the device of the teacher.

        Raises:
            ValueError: The dictionary was not built from this teacher, the teacher has no such layers, its weights
                cannot be copied, or `config` names an unknown field.

        Example:
            >>> from sensedict_hf import SKDStudentModel
            >>> student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=[0, 5], assignment="hard")
            >>> student.config.num_hidden_layers, student.config.teacher_layers
            (2, [0, 5])
        """
        # Check that dictionary, teacher and layers belong together.
        senses.check_takes_teacher_tokens()
        teacher = load_teacher(teacher)
        check_teacher(senses, teacher)
        refuse_quantized(teacher)
        layers = choose_layers(num_hidden_layers, teacher)
        # Make an empty student, and fill it with the layers and the dictionary.
        settings = _encoding_settings(teacher) | {"teacher_layers": layers} | config
        student = cls._new(keep_layers(teacher.model.config, layers), senses, settings)
        load_weights(student.backbone, keep_layer_weights(teacher.model, layers), teacher.model)
        student._copy_senses(senses)
        student._follow(teacher)
        return student

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel | Teacher,
        senses: SenseEmbeddingModel,
        **config: Any,
    ) -> "SKDStudentModel":
        """Make a student from another, smaller model.

        If the model is not as wide as the senses, a linear projection to their width is added.

        Args:
            backbone: The smaller model: a name, a path, a loaded model or a :class:`Teacher`.
            senses: The teacher's sense dictionary, built for the backbone's tokenizer. It is copied into the student.
            config: Other fields of :class:`SKDStudentConfig`, such as `assignment` or `residual`.

        Returns:
            A student in float32, on the device of the backbone.

        Raises:
            ValueError: The backbone has another tokenizer or fewer tokens than the dictionary, its weights cannot be
                copied, or `config` names an unknown field.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from sensedict_hf import SKDStudentModel
            >>> small = BertModel(BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2))
            >>> student = SKDStudentModel.from_backbone(small, senses)
            >>> student.projection
            Linear(in_features=128, out_features=384, bias=True)
        """
        # Check that dictionary and backbone share their tokens.
        if isinstance(backbone, PreTrainedModel) and not backbone.name_or_path:
            backbone = load_teacher(backbone, tokenizer=senses.tokenizer)
        backbone = load_teacher(backbone)
        refuse_quantized(backbone)
        senses.check_tokenizer(backbone.tokenizer)
        _check_embeddings(senses, backbone)
        # Make an empty student, and fill it with the backbone and the dictionary.
        settings = _encoding_settings(backbone)
        if senses.config.prompt:
            settings["prompt"] = senses.config.prompt  # the teacher's, in which the senses were found
        student = cls._new(copy.deepcopy(backbone.model.config), senses, settings | config)
        load_weights(student.backbone, backbone.model.state_dict(), backbone.model)
        student._copy_senses(senses)
        student._follow(backbone)
        return student

    @classmethod
    def _new(
        cls, text_config: PreTrainedConfig, senses: SenseEmbeddingModel, settings: dict[str, Any]
    ) -> "SKDStudentModel":
        """Make a student with random weights and an empty dictionary.

        Args:
            text_config: The config of the backbone.
            senses: The dictionary that will be copied into the student.
            settings: Fields of :class:`SKDStudentConfig`.

        Raises:
            ValueError: `settings` names no field of the config.
        """
        # Float32 whatever the dtype of the source: training in pure half precision loses small updates. For mixed
        # precision there are the options `bf16` and `fp16` of Trainer.
        text_config.dtype = torch.float32
        known = SKDStudentConfig(text_config=text_config, sense_config=copy.deepcopy(senses.config))
        if unknown := [name for name in settings if not hasattr(known, name)]:
            raise ValueError(
                f"a student has no setting {unknown[0]!r}: choose fields of SKDStudentConfig, such as assignment or pooling"
            )
        return cls(SKDStudentConfig(text_config=text_config, sense_config=known.sense_config, **settings))

    def _copy_senses(self, senses: SenseEmbeddingModel) -> None:
        """Copy the tensors of a dictionary into the one of this student."""
        self.senses.load_state_dict(senses.state_dict())

    def _follow(self, source: Teacher) -> None:
        """Take over the tokenizer, the device and the attention pattern of the model that the weights come from.

        Args:
            source: The teacher or the backbone.

        Raises:
            ValueError: No attention implementation lets the student's tokens attend as those of the source.
        """
        self.tokenizer = source.tokenizer
        self.to(source.device)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
        if source.attention is None or probe_attention(self.backbone) == source.attention:
            return
        # Some architectures are bidirectional with eager attention only.
        self.config.attention_implementation = "eager"
        self.set_attn_implementation("eager")
        if (found := probe_attention(self.backbone)) != source.attention:
            raise ValueError(
                f"the attention of the student is {found}, that of {source.name} is {source.attention}, with every "
                "attention implementation that was tried: pass the model loaded with another attn_implementation"
            )

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

    def encode(
        self,
        texts: Sequence[Prompted],
        *,
        assignment: str | None = None,
        batch_size: int = 32,
        show_progress: bool = True,
    ) -> Tensor:
        """One vector per text, or per pair of an instruction and a text, `[texts, teacher's hidden]`, float32, not normalized; longer
        texts are truncated to `config.max_seq_length`. Puts the model into evaluation mode."""
        self.eval()
        return encode_texts(
            lambda input_ids, mask: self(input_ids, mask, assignment=assignment, return_dict=True).last_hidden_state,
            self.tokenizer,
            texts,
            pad_token_id=padding_id(self.tokenizer, self),
            pooling=self.config.pooling,
            max_length=self.config.max_seq_length,
            batch_size=batch_size,
            device=self.device,
            prompt=None if self.config.prompt is None else Prompt(**self.config.prompt),
            show_progress=show_progress,
        )

    def encode_words(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        assignment: str | None = None,
        batch_size: int = 32,
        show_progress: bool = True,
    ) -> list[Tensor]:
        """Vectors of the words of each sentence, `[words, teacher's hidden]`, float32: means over a word's tokens; zeros behind
        `config.max_seq_length`. Puts the model into evaluation mode."""
        self.eval()
        return encode_words(
            lambda input_ids, mask: self(input_ids, mask, assignment=assignment, return_dict=True).last_hidden_state,
            self.tokenizer,
            sentences,
            pad_token_id=padding_id(self.tokenizer, self),
            max_length=self.config.max_seq_length,
            batch_size=batch_size,
            device=self.device,
            show_progress=show_progress,
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
    """Return the config fields that say how a teacher or a backbone encodes texts; its student does the same."""
    return {
        "pooling": source.pooling,
        "max_seq_length": source.max_seq_length,
        "prompt": None if source.prompt is None else asdict(source.prompt),
    }


def _check_embeddings(senses: SenseEmbeddingModel, backbone: Teacher) -> None:
    """Check that a backbone has an embedding for every token with senses.

    Raises:
        ValueError: It has not.
    """
    count = backbone.model.get_input_embeddings().num_embeddings
    if (senses.offsets[count:].diff() > 0).any():
        raise ValueError(
            f"{backbone.name} has embeddings for {count} tokens, but the dictionary has senses of others: give the model its own "
            "tokenizer, or resize its embeddings to this one"
        )
