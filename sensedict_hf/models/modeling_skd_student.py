"""Students: a small transformer, a projection to the teacher's width, and the teacher's senses."""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .arguments import check_integer
from .attention import probe_attention
from .configuration_sense_embedding import check_assignment
from .configuration_skd_student import SKDStudentConfig
from .encoding import LEARNED, BatchEncoder, RaggedEncoder, padding_id
from .layer_free_transfer import (
    SIZES,
    StoredVectors,
    TokenStatistics,
    empty_dictionary,
    make_layer_free,
    read_statistics,
)
from .layer_transfer import (
    check_weights,
    choose_layers,
    encoding_settings,
    keep_layer_weights,
    keep_layers,
    load_weights,
    make_backbone,
    student_config,
)
from .loading import check_dictionary
from .matching import check_backbone, check_teacher
from .modeling_layer_free import LayerFreeModel
from .modeling_sense_embedding import SenseEmbeddingModel
from .modeling_skd_base import FIXED_TOKENS, SKDStudentPreTrainedModel
from .outputs import SKDStudentOutput
from .prompts import Prompt, choose_prompt
from .sentence_files import read_student_head, write_student_files
from .sentence_head import make_sentence_head
from .teachers import Teacher, load_teacher
from .text_encoder import TextEncoder
from .token_senses import TokenSense, senses_in
from .tokenization import complete_tokenizer


class SKDStudentModel(SKDStudentPreTrainedModel, TextEncoder):
    """A small model that is distilled from a teacher, and may return the senses of its tokens.

    Args:
        config: Configuration of backbone and dictionary. The weights are random, and the senses zeros: make a student
            from its teacher with :meth:`from_teacher`, from another small model with :meth:`from_backbone`, or load
            one with `from_pretrained`.

    Attributes:
        backbone: A transformer without a head.
        projection: A linear layer from the width of the backbone to the teacher's; None if they are equal.
        senses: The sense dictionary, a :class:`SenseEmbeddingModel`.
        sentence_head: What `encode` does with a pooled vector; None: nothing.
        tokenizer: The tokenizer whose token ids the student takes.

    Raises:
        ValueError: A field of the config has a value that is not allowed, or senses are to be learned with assignment
            `none`.

    Example:
        >>> from sensedict_hf import SKDStudentModel
        >>> student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=2)
        >>> output = student(**student.tokenizer(["the bank of the river"], return_tensors="pt"))
        >>> output.last_hidden_state.shape
        torch.Size([1, 7, 384])
    """

    def __init__(self, config: SKDStudentConfig):
        config.check()
        if config.learn_senses and config.default_assignment == "none":
            raise ValueError(
                "learn_senses=True with assignment 'none': the student returns no senses, so that none would be "
                "learned; pass assignment='soft' too"
            )
        super().__init__(config)
        self.backbone = make_backbone(config.text_config)
        widths = config.text_config.hidden_size, config.sense_config.hidden_size
        self.projection = None if widths[0] == widths[1] else nn.Linear(*widths)
        self.senses = SenseEmbeddingModel(config.sense_config)
        self.sentence_head = make_sentence_head(config.sentence_head)
        self.post_init()

    @classmethod
    def from_teacher(
        cls,
        teacher: str | os.PathLike[str] | nn.Module | Teacher,
        senses: SenseEmbeddingModel,
        num_hidden_layers: int | Sequence[int] = 2,
        **config: Any,
    ) -> "SKDStudentModel":
        """Make a student from some layers of its teacher.

        Args:
            teacher: The model that the dictionary was built from: a name, a path, a loaded model or a
                :class:`Teacher`.
            senses: The sense dictionary, which is copied into the student.
            num_hidden_layers: How many of the teacher's layers to keep, the first ones and the last, or the indices of
                the layers to keep. 0 makes a student without layers: a :class:`LayerFreeModel` that starts with the
                teacher's mean vector of each token.
            config: Other fields of :class:`SKDStudentConfig`, such as `assignment` or `residual`. For a student
                without layers also the sizes in :class:`LayerFreeConfig`, such as `text_hidden_size`; it keeps the
                dictionary only with `assignment="hard"` or `"soft"`.

        Returns:
            A student in float32, on the device of the teacher, ready to encode (`eval()`).

        Raises:
            ValueError: The dictionary does not fit this teacher, the teacher has no such layers, its weights
                cannot be copied, or `config` names an unknown field.

        Example:
            >>> from sensedict_hf import SKDStudentModel
            >>> student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=[0, 5], assignment="hard")
            >>> student.config.num_hidden_layers, student.config.teacher_layers
            (2, [0, 5])
        """
        # Check that dictionary, teacher and layers belong together.
        check_dictionary(senses)
        senses.config.check_takes_teacher_tokens()
        teacher = load_teacher(teacher)
        check_teacher(senses, teacher)
        if not isinstance(num_hidden_layers, Iterable) and check_integer("num_hidden_layers", num_hidden_layers) == 0:
            return cls._without_layers(teacher, TokenStatistics.of_senses(senses), senses, config)
        check_weights(teacher)
        layers = choose_layers(num_hidden_layers, teacher, senses.config.layer)
        # Make an empty student, and fill it with the layers and the dictionary.
        settings = encoding_settings(teacher) | {"teacher_layers": layers} | config
        weights = keep_layer_weights(teacher.model, layers)
        student = cls(student_config(keep_layers(teacher.model.config, layers), senses.config, settings))
        load_weights(student.backbone, weights, teacher.model)
        student.senses.load_state_dict(senses.state_dict())
        student._follow(teacher)
        return student

    @classmethod
    def from_vectors(
        cls, teacher: str | os.PathLike[str] | nn.Module | Teacher, vectors: StoredVectors, **config: Any
    ) -> "SKDStudentModel":
        """Make a student without layers from its teacher's vectors of texts. The teacher reads them only once.

        Args:
            teacher: The teacher: a name, a path, a loaded model or a :class:`Teacher`.
            vectors: What :func:`encode_vectors` has returned, or a :class:`TeacherVectors`.
            config: Other fields of :class:`SKDStudentConfig`, and the sizes in :class:`LayerFreeConfig`.

        Returns:
            A student in float32, on the device of the teacher, ready to encode (`eval()`).

        Raises:
            ValueError: The vectors are not of this teacher, or `config` names an unknown field or asks for senses.

        Example:
            >>> from sensedict_hf import SKDStudentModel, encode_vectors
            >>> student = SKDStudentModel.from_vectors(teacher, encode_vectors(teacher, texts[:8], "vectors"))
            >>> student.encode(texts[:2]).shape
            torch.Size([2, 384])
        """
        if (assignment := config.get("assignment")) not in (None, "none"):
            raise ValueError(f"assignment={assignment!r}: vectors hold no senses; leave it out, or use from_teacher")
        teacher = load_teacher(teacher)
        return cls._without_layers(teacher, *read_statistics(teacher, vectors), config)

    @classmethod
    def _without_layers(
        cls, teacher: Teacher, statistics: TokenStatistics, senses: SenseEmbeddingModel, config: dict[str, Any]
    ) -> "SKDStudentModel":
        """Make a student without layers. It keeps the senses if it returns them."""
        settings = encoding_settings(teacher) | {"teacher_layers": [], "pooling": LEARNED} | config
        settings["assignment"] = settings.get("assignment") or "none"
        sizes = {name: settings.pop(name) for name in SIZES if name in settings}
        backbone = make_layer_free(teacher, statistics, senses.config.layer, sizes)
        kept = empty_dictionary(senses) if settings["assignment"] == "none" else senses
        student = cls(student_config(backbone.config, kept.config, settings))
        student.backbone.load_state_dict(backbone.state_dict())
        student.senses.load_state_dict(kept.state_dict())
        student._follow(teacher)
        return student

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike[str] | PreTrainedModel | Teacher, senses: SenseEmbeddingModel, **config: Any
    ) -> "SKDStudentModel":
        """Make a student from another, smaller model.

        If the model is not as wide as the senses, a linear projection is added. It is random until
        :class:`SKDTrainer` begins. The student takes the pooling and the length limit of the model, and the prompt of
        the senses. Named prompts and dense layers of the teacher are not copied; `distill_student` copies them.

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
        check_dictionary(senses)
        if isinstance(backbone, PreTrainedModel) and not backbone.name_or_path:
            backbone = load_teacher(backbone, tokenizer=senses.tokenizer)
        backbone = load_teacher(backbone)
        check_weights(backbone)
        senses.config.check_tokenizer(backbone.tokenizer)
        check_backbone(senses, backbone)
        # Make an empty student, and fill it with the backbone and the dictionary.
        # What the backbone does with its own texts and vectors is not what its teacher does, whose senses it learns.
        settings = {"pooling": backbone.pooling, "max_seq_length": backbone.max_seq_length}
        settings["prompt"] = senses.config.prompt
        if isinstance(backbone.model, LayerFreeModel):
            settings["pooling"] = LEARNED
        student = cls(student_config(backbone.model.config, senses.config, settings | config))
        load_weights(student.backbone, backbone.model.state_dict(), backbone.model)
        student.senses.load_state_dict(senses.state_dict())
        student._follow(replace(backbone, sentence_head=None))
        return student

    def _follow(self, source: Teacher) -> None:
        """Take over the tokenizer, the device and the attention pattern of the model that the weights come from.

        Args:
            source: The teacher or the backbone.

        Raises:
            ValueError: No attention implementation makes the student's tokens attend as in the source.
        """
        self.tokenizer = complete_tokenizer(source.tokenizer, self.backbone)
        if self.sentence_head is not None and source.sentence_head is not None:
            self.sentence_head.load_state_dict(source.sentence_head.state_dict())
        self.to(source.device)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
        self.eval()
        attends = self.config.pooling != LEARNED and source.attention is not None
        if not attends or probe_attention(self.backbone) == source.attention:
            return
        # Some architectures are bidirectional with eager attention only.
        self.config.attention_implementation = "eager"
        self.set_attn_implementation("eager")
        if (found := probe_attention(self.backbone)) != source.attention:
            raise ValueError(
                f"the student's attention is {found}, that of {source.name} is {source.attention}: pass the model "
                "loaded with another attn_implementation"
            )

    def replace_senses(self, senses: SenseEmbeddingModel) -> None:
        """Replace the dictionary by another one of the same teacher.

        For example by a smaller one, made with :func:`merge_sense_dictionaries`, or by one of another dtype. The new
        dictionary takes over `assignment`, `assignment_temperature`, `residual`, `learn_senses` and `sense_device`.

        Args:
            senses: The new dictionary, which is copied into the student.

        Raises:
            ValueError: The dictionary is of another teacher, layer or tokenizer.

        Example:
            >>> from sensedict_hf import SKDStudentModel
            >>> student = SKDStudentModel.from_teacher(teacher, senses)
            >>> student.replace_senses(student.senses.to_dtype("int8"))
            >>> student.senses.config.senses_dtype
            'int8'
        """
        check_dictionary(senses)
        (own := self.config.sense_config).check_same_vectors(senses.config)
        config = copy.deepcopy(senses.config)
        for name in ("assignment", "assignment_temperature", "residual", "learn_senses", "sense_device"):
            setattr(config, name, getattr(own, name))
        replacement = SenseEmbeddingModel(config)
        replacement.load_state_dict(senses.state_dict())
        replacement.tokenizer = self.tokenizer
        replacement.to(self.senses.device)  # type: ignore[arg-type]  # as in _follow
        self.senses = replacement.train(self.training)
        self.config.sense_config = config

    def _write_other_files(self, folder: str | os.PathLike[str]) -> None:
        write_student_files(folder, self.config, self.sentence_head, self._tokenizer)

    def _finish_loading(self, source: str, options: dict[str, Any]) -> None:
        head = read_student_head(source, options, self.config, self.sentence_head)
        self.sentence_head = None if head is None else head.to(self.device)

    def senses_in(self, text: str) -> list[TokenSense]:
        """Return the sense of each token of a text, special tokens left out.

        Example:
            >>> [(token.text, token.sense_id >= 0) for token in student.senses_in("the bank")]
            [('the', True), ('bank', True)]
        """
        return senses_in(self, text)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the backbone.

        Example:
            >>> student.get_input_embeddings()
            Embedding(30522, 384, padding_idx=0)
        """
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse new token embeddings with a ValueError: the dictionary has senses for the old tokens."""
        raise ValueError(FIXED_TOKENS)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        assignment: str | None = None,
        **kwargs: Any,
    ) -> SKDStudentOutput:
        """Compute contextual vectors and replace them by senses.

        Args:
            input_ids: `[batch, positions]`, token ids.
            attention_mask: `[batch, positions]`, 0 for padding. None: there is no padding.
            token_type_ids: `[batch, positions]`, segment ids, for backbones that have them.
            assignment: `hard`, `soft` or `none`, see :class:`SKDStudentConfig`. None: the assignment of the config.
            kwargs: Other arguments of the backbone, and `return_dict`.

        Returns:
            A :class:`SKDStudentOutput`, or a tuple with `return_dict=False`.

        Raises:
            ValueError: A token id is outside the vocabulary, or the assignment is unknown.

        Example:
            >>> batch = student.tokenizer(texts[:2], padding=True, return_tensors="pt")
            >>> output = student(**batch, assignment="hard")
            >>> output.sense_ids.shape == batch["input_ids"].shape
            True
        """
        # The student's own vectors, in the teacher's width.
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        own = outputs.last_hidden_state if self.projection is None else self.projection(outputs.last_hidden_state)
        # The senses that take their place.
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
            pooler_output=outputs.get("pooler_output") if self.config.pooling == LEARNED else None,
        )

    def _batch_encoder(self, prompt_name: str | None, batch_size: int, assignment: str | None) -> BatchEncoder:
        if assignment is not None:
            check_assignment(assignment)
        self.eval()
        prompt = None if self.config.prompt is None else Prompt(**self.config.prompt)
        settings: dict[str, Any] = {
            "forward": lambda ids, mask: self(ids, mask, assignment=assignment, return_dict=True).last_hidden_state,
            "tokenizer": self.tokenizer,
            "pad_token_id": padding_id(self.tokenizer, self),
            "max_length": self.config.max_seq_length,
            "device": self.device,
            "batch_size": batch_size,
            "pooling": self.config.pooling,
            "prompt": choose_prompt(prompt_name, prompt, self.config.prompts or {}, self.config.include_prompt),
            "hidden_size": self.config.hidden_size,
        }
        if (has_assignment := assignment in ("hard", "soft")) and not self.senses.config.num_senses:
            raise ValueError(f"assignment={assignment!r}: this student has no senses; leave it out")
        if self.config.pooling != LEARNED:
            return BatchEncoder(**settings)
        backbone = cast(LayerFreeModel, self.backbone)
        return RaggedEncoder(
            **settings,
            encode_ragged=lambda ids, lengths: backbone.encode_ragged(ids, lengths)[1],
            special_token_ids=backbone.config.special_token_ids,
            has_assignment=has_assignment,
        )
