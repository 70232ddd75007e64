"""What a student consists of and was distilled with."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_sense_embedding import SenseEmbeddingConfig, check_assignment, check_residual
from .encoding import check_pooling

HALF = 0.5  # better than 0 and 1 for teachers and students in benchmarks/distillation.py


class SKDStudentConfig(PreTrainedConfig):
    """Configuration of a [`SKDStudentModel`] and of its task models.

    Args:
        text_config: of the backbone, any model of transformers. sense_config: of the dictionary.
        assignment: what the student returns: `hard` the best sense of each token, `soft` the posterior mean of its senses, `none` its
            own vectors. Default: `none` after distillation by regression alone, else the dictionary's.
        residual: how much of its own vectors is kept beside the senses, see [`SenseEmbeddingConfig`]. Default: half after distillation
            with regression, which makes them like the teacher's (not with a dictionary for cosine similarity, for which only directions
            are learned), else the dictionary's.
        pooling: how one vector is made of a text, by `encode` and before a classifier: `mean`, `weighted_mean`, `cls`, `last` or
            `max`.
        max_seq_length: where `encode` truncates, in tokens.
        prompt: what `encode` puts around a text, the fields of a [`Prompt`]; a text's vector is made without it.
        teacher_layers: the layers of the teacher that the student started from, if it did.
        objective: what it was distilled with (None: not yet). distillation: the settings of that.
        classifier_activation: of the dense layer between the pooled vector and the classifier of texts (None: there is no such layer).
        attention_implementation: what the backbone needs, `eager` where others do not attend as its teacher did.
        classifier_dropout: before the classifier. freeze_head: whether the head stays as it is in training, as one does that was copied
            from the teacher.
    """

    model_type = "skd_student"
    sub_configs = {"text_config": AutoConfig, "sense_config": SenseEmbeddingConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        sense_config: SenseEmbeddingConfig | dict[str, Any] | None = None,
        assignment: str | None = None,
        residual: float | None = None,
        pooling: str = "mean",
        max_seq_length: int = 512,
        prompt: dict[str, Any] | None = None,
        teacher_layers: list[int] | None = None,
        objective: str | None = None,
        distillation: dict[str, Any] | None = None,
        classifier_activation: str | None = None,
        classifier_dropout: float = 0.1,
        freeze_head: bool = False,
        attention_implementation: str | None = None,
        **kwargs: Any,
    ):
        if (
            attention_implementation is not None
        ):  # transformers takes its own from a config, but does not keep it there
            kwargs.setdefault("attn_implementation", attention_implementation)
        if text_config is None:
            text_config = CONFIG_MAPPING["bert"]()
        if isinstance(text_config, dict):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        if sense_config is None:
            sense_config = SenseEmbeddingConfig(vocab_size=text_config.vocab_size, hidden_size=text_config.hidden_size)
        if isinstance(sense_config, dict):
            sense_config = SenseEmbeddingConfig(**sense_config)
        text_config._name_or_path = ""  # else the path of one machine would be saved
        if getattr(text_config, "use_cache", False):
            text_config.use_cache = False  # a student encodes whole texts
        self.text_config = text_config
        self.sense_config = sense_config
        self.assignment = assignment
        self.residual = residual
        self.pooling = pooling
        self.max_seq_length = max_seq_length
        self.prompt = prompt
        self.teacher_layers = teacher_layers
        self.objective = objective
        self.distillation = distillation
        self.classifier_activation = classifier_activation
        self.classifier_dropout = classifier_dropout
        self.freeze_head = freeze_head
        self.attention_implementation = attention_implementation
        self.check()
        super().__init__(**kwargs)

    def check(self) -> None:
        """Raises a ValueError if what `from_pretrained` may assign too is not possible."""
        if self.assignment is not None:
            check_assignment(self.assignment)
        if self.residual is not None:
            check_residual(self.residual)
        check_pooling(self.pooling)

    @property
    def hidden_size(self) -> int:
        """Width of what the student returns, the teacher's."""
        return self.sense_config.hidden_size

    @property
    def default_assignment(self) -> str:
        """What is assigned unless a call says otherwise."""
        return self.assignment or (
            "none" if self._objectives and "sense" not in self._objectives else self.sense_config.assignment
        )

    @property
    def default_residual(self) -> float:
        """How much of its own vectors is kept beside what is assigned."""
        if self.residual is None:
            alike = self.sense_config.similarity != "cosine" and set(self._objectives) - {"sense"}
            return HALF if alike else self.sense_config.residual
        return self.residual

    @property
    def _objectives(self) -> list[str]:
        return self.objective.split("+") if self.objective else []

    @property
    def learn_senses(self) -> bool:
        """Whether the senses are a parameter, see [`SenseEmbeddingConfig`]."""
        return self.sense_config.learn_senses

    @learn_senses.setter
    def learn_senses(self, value: bool) -> None:  # from_pretrained(..., learn_senses=True) assigns it
        self.sense_config.learn_senses = value

    @property
    def sense_device(self) -> str | None:
        """Where the table of senses lies, see [`SenseEmbeddingConfig`]."""
        return self.sense_config.sense_device

    @sense_device.setter
    def sense_device(self, value: str | None) -> None:  # from_pretrained(..., sense_device="cpu") assigns it
        self.sense_config.sense_device = value

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:  # the library assigns it when embeddings are resized
        self.text_config.vocab_size = value

    @property
    def num_hidden_layers(self) -> int:
        return self.text_config.num_hidden_layers
