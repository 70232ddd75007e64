"""The configuration of students: what they consist of and how they were distilled."""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .arguments import check_dtype, check_flag, check_integer, check_kind, check_number, check_string
from .configuration_layer_free import LayerFreeConfig
from .configuration_sense_embedding import SenseEmbeddingConfig, check_assignment, check_residual
from .encoding import LEARNED, check_pooling
from .prompts import Prompt

HALF = 0.5  # better than 0 and 1, for teachers and for students, in the benchmarks of distillation


class SKDStudentConfig(PreTrainedConfig):
    """Configuration of a :class:`SKDStudentModel` and of its task models.

    Args:
        text_config: Config of the backbone, any model of transformers that takes `input_ids`. Default: a BERT.
        sense_config: Config of the sense dictionary. Default: a dictionary without senses, of the backbone's sizes.
        assignment: What the student returns for a token: `hard` its best sense, `soft` the mean of its senses,
            weighted by their probabilities, `none` the student's own vector. Default: `none` after distillation by
            regression alone, otherwise the assignment of the dictionary.
        residual: Weight of the student's own vector, from 0 to 1; the sense has the rest. Default: 0.5 after
            distillation with a regression loss, which makes the student's vectors similar to the teacher's; otherwise
            the residual of the dictionary. A dictionary with similarity `cosine` keeps its residual in any case,
            because only the directions of the vectors are learned.
        pooling: How a text gets one vector, in `encode` and before a classifier: `mean`, `weighted_mean`, `cls`,
            `last` or `max`. A backbone without layers computes the vector itself: `learned`.
        max_seq_length: Length in tokens at which `encode` truncates a text.
        prompt: What `encode` puts around every text, as the fields of a :class:`Prompt`. The model reads it, but it is
            not pooled, unless the prompt says so.
        prompts: Named prompts, as in sentence-transformers, such as `{"query": "query: "}`. Saved only if there are
            any.
        include_prompt: Whether the tokens of a named prompt are pooled with the text. Saved only if they are not.
        sentence_head: What `encode` does with a pooled vector, as in sentence-transformers: a list of steps such as
            `{"kind": "normalize"}`, see :func:`make_sentence_head`. Saved only if there are any.
        similarity_fn_name: How sentence-transformers compares vectors, such as `cosine`. Saved only if it is known.
        teacher_layers: Indices of the teacher's layers that the student was made from. None: it has another backbone.
        objective: Losses that the student was distilled with, joined by `+`, such as `sense+mse`. None before
            distillation.
        distillation: Settings of the distillation.
        classifier_activation: Activation of the dense layer between the pooled vector and the text classifier. None:
            the classifier has no dense layer.
        classifier_dropout: Dropout probability before the classifier.
        freeze_head: Whether the classifier is left out of training. True for a head that was copied from the teacher.
        attention_implementation: Attention implementation that the backbone must use, such as `eager`. None: any.
        kwargs: Other fields of every config of transformers, such as `num_labels`.

    Raises:
        ValueError: A field has a value that is not allowed.

    Example:
        >>> from sensedict_hf import SKDStudentConfig
        >>> config = SKDStudentConfig(objective="sense+mse", assignment="hard")
        >>> config.default_assignment, config.default_residual
        ('hard', 0.5)
    """

    model_type = "skd_student"
    sub_configs = {"text_config": AutoConfig, "sense_config": SenseEmbeddingConfig}

    # Dictionaries, as in config.json, become configs; so does None.
    text_config: PreTrainedConfig = None  # type: ignore[assignment]
    sense_config: SenseEmbeddingConfig = None  # type: ignore[assignment]
    assignment: str | None = None
    residual: float | None = None
    pooling: str = "mean"
    max_seq_length: int = 512
    prompt: dict[str, Any] | None = None
    prompts: dict[str, str] | None = None
    include_prompt: bool = True
    sentence_head: list[dict[str, Any]] | None = None
    similarity_fn_name: str | None = None
    teacher_layers: list[int] | None = None
    objective: str | None = None
    distillation: dict[str, Any] | None = None
    classifier_activation: str | None = None
    classifier_dropout: float = 0.1
    freeze_head: bool = False
    attention_implementation: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers reads its own field for this, but does not save it.
        if self.attention_implementation is not None:
            given = kwargs.setdefault("attn_implementation", self.attention_implementation)
            if given not in (None, self.attention_implementation):
                raise ValueError(
                    f"attn_implementation={given!r}: the backbone attends as its teacher only with "
                    f"{self.attention_implementation!r}; leave it out"
                )
        backbone: Any = self.text_config
        if backbone is None:
            backbone = CONFIG_MAPPING["bert"]()
        if isinstance(backbone, dict):
            kind = str(backbone.get("model_type"))
            if kind not in CONFIG_MAPPING and kind != LayerFreeConfig.model_type:
                raise ValueError(f"unknown model_type {kind!r} of the backbone: upgrade transformers")
            # Where the code of a saved folder runs, only the classes of transformers are registered.
            config_class = LayerFreeConfig if kind == LayerFreeConfig.model_type else CONFIG_MAPPING[kind]
            backbone = config_class(**backbone)
        check_kind("text_config", backbone, PreTrainedConfig, "a config of transformers")
        senses: Any = self.sense_config
        if senses is None:
            senses = {name: getattr(backbone, name) for name in ("vocab_size", "hidden_size")}
        if isinstance(senses, dict):
            senses = SenseEmbeddingConfig(**senses)
        check_kind("sense_config", senses, SenseEmbeddingConfig, "a SenseEmbeddingConfig")
        # config.json would show paths of this machine. The caller's config of the backbone stays as it is.
        self.text_config, self.sense_config = copy.deepcopy(backbone), senses
        self.text_config.name_or_path = self.sense_config.name_or_path = ""
        if getattr(self.text_config, "use_cache", False):
            self.text_config.use_cache = False  # a student encodes whole texts
        self.check()
        check_dtype("dtype", self.dtype)
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would save its own choice of code files, see `save_pretrained` of the model."""

    def check(self) -> None:
        """Check the fields that `from_pretrained` may set after the config was made.

        Raises:
            ValueError: A field has a value that is not allowed.

        Example:
            >>> from sensedict_hf import SKDStudentConfig
            >>> config = SKDStudentConfig()
            >>> config.residual = 0.25
            >>> config.check()
        """
        for name in ("prompt", "prompts"):
            if not isinstance(getattr(self, name), (dict, type(None))):
                raise ValueError(f"{name}={getattr(self, name)!r:.60}: give a dictionary, see SKDStudentConfig")
        for name, prompt in (self.prompts or {}).items():
            if not isinstance(prompt, (str, type(None))):
                raise ValueError(f"prompts[{name!r}]={prompt!r:.60}: give the string that goes before the text")
        if self.objective is not None:
            check_string("objective", self.objective)
        if self.assignment is not None:
            check_assignment(self.assignment)
        if self.residual is not None:
            check_residual(self.residual)
        self.max_seq_length = check_integer("max_seq_length", self.max_seq_length, 1)
        check_number("classifier_dropout", self.classifier_dropout, least=0, most=1)
        for name in ("include_prompt", "freeze_head"):
            check_flag(name, getattr(self, name))
        if self.prompt is not None:
            try:
                Prompt(**self.prompt)
            except TypeError as error:
                raise ValueError(f"prompt={self.prompt!r:.80}: give the fields of a Prompt, or None") from error
        is_layer_free = self.text_config.model_type == "layer_free"
        if is_layer_free != (self.pooling == LEARNED):
            raise ValueError(
                f"pooling={self.pooling!r} with a {self.text_config.model_type} backbone: choose {LEARNED!r} for a "
                "backbone without layers, which computes the vectors of texts itself, and only for that"
            )
        if not is_layer_free:
            check_pooling(self.pooling)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they are saved. What sentence-transformers alone has is left out if not set.

        Returns:
            The fields, with the configs inside as dictionaries.

        Example:
            >>> student.config.to_dict()["sense_config"]["hidden_size"]
            384
        """
        fields: dict[str, Any] = super().to_dict()
        fields["sense_config"].pop("auto_map", None)  # the code that is loaded is the student's
        for name in ("prompts", "sentence_head", "similarity_fn_name"):
            if not fields.get(name):
                fields.pop(name, None)
        if fields.get("include_prompt"):
            del fields["include_prompt"]
        return fields

    @property
    def hidden_size(self) -> int:
        """Width of the vectors that the student returns, which is the teacher's width."""
        return self.sense_config.hidden_size

    @property
    def default_assignment(self) -> str:
        """The assignment that is used unless a call names another one."""
        if self.assignment is not None:
            return self.assignment
        by_regression_alone = self._objectives and "sense" not in self._objectives
        return "none" if by_regression_alone else self.sense_config.assignment

    @property
    def default_residual(self) -> float:
        """Weight of the student's own vectors, from 0 to 1."""
        if self.residual is not None:
            return self.residual
        learns_vectors = self.sense_config.similarity != "cosine" and set(self._objectives) - {"sense"}
        return HALF if learns_vectors else self.sense_config.residual

    @property
    def _objectives(self) -> list[str]:
        return self.objective.split("+") if self.objective else []

    @property
    def learn_senses(self) -> bool:
        """Whether the senses are a parameter, see :class:`SenseEmbeddingConfig`."""
        return self.sense_config.learn_senses

    @learn_senses.setter
    def learn_senses(self, value: bool) -> None:
        self.sense_config.learn_senses = value  # set by from_pretrained(..., learn_senses=True)

    @property
    def sense_device(self) -> str | None:
        """Device of the sense table, see :class:`SenseEmbeddingConfig`."""
        return self.sense_config.sense_device

    @sense_device.setter
    def sense_device(self, value: str | None) -> None:
        self.sense_config.sense_device = value  # set by from_pretrained(..., sense_device="cpu")

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the backbone."""
        return int(self.text_config.vocab_size)

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.text_config.vocab_size = value  # given to from_pretrained, which then says that the weights do not fit

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers of the backbone."""
        return int(self.text_config.num_hidden_layers)
