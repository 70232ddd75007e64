"""Settings of distillation."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..models.arguments import check_flag, check_folder, check_integer, check_number, check_string

OBJECTIVES = ("sense", "mse", "sentence", "lm", "kl")
# Settings that a student's config keeps, so that its model card tells how it was distilled.
REMEMBERED = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "temperature",
    "label_top_k",
    "label_temperature",
    "sense_weight",
    "mse_weight",
    "sentence_weight",
    "seed",
)
LANGUAGE_SETTINGS = ("lm_weight", "kl_weight")
# The most senses in a label. Beyond that, labels take more room than the teacher's vectors.
MOST_SENSES = 1000
SENSE_SETTINGS = ("temperature", "label_top_k", "label_temperature", "sense_weight")
# Defaults that depend on the student.
WITH_LAYERS: dict[str, str | float] = {
    "objective": "sense+mse+sentence",
    "mse_weight": 3.0,
    "sentence_weight": 9.0,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 32,
    "num_train_epochs": 2.0,
    "max_grad_norm": 1.0,
    "train_sampling_strategy": "group_by_length",
}
LAYER_FREE: dict[str, str | float] = {
    "objective": "mse+sentence",
    "mse_weight": 1.0,
    "sentence_weight": 3.0,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 256,
    "num_train_epochs": 3.0,
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "random",
}
GENERATIVE: dict[str, str | float] = WITH_LAYERS | {
    "objective": "lm+kl+sense",
    "mse_weight": 1.0,
    "per_device_train_batch_size": 8,
}
# Steps of a student without layers if there are few texts and neither epochs nor steps are given.
LEAST_STEPS = 200


@dataclass
class SKDTrainingArguments(TrainingArguments):
    """`TrainingArguments` of transformers, with the settings of distillation and with defaults that suit it.

    Some defaults depend on the student. A student without layers (`num_hidden_layers=0`) has a cheap step, and learns
    from vectors of the teacher that are computed once. What you give here is never replaced:

    - `objective`: `sense+mse+sentence`; without layers `mse+sentence`; for a student that generates text
      `lm+kl+sense`, or `lm+kl` without a dictionary.
    - `mse_weight` and `sentence_weight`: 3 and 9; without layers 1 and 3; `mse_weight` 1 for one that generates text.
    - `learning_rate`: 1e-3; without layers 3e-3.
    - `per_device_train_batch_size`: 32; without layers 256; 8 for one that generates text, whose logits are large.
    - `num_train_epochs`: 2; without layers 3, with few texts enough for 200 steps, but at most 10.
    - `max_grad_norm`: 1; without layers 0, which is no clipping.
    - `train_sampling_strategy`: `group_by_length`, batches of texts of similar length, so that little is padding;
      without layers, where nothing is padded, `random`.

    Args:
        objective: The loss, or several losses joined by `+`. `sense` is the cross-entropy between the senses that
            teacher and student pick; not for students without layers. `mse` is the squared distance between their
            hidden states, the usual baseline. `sentence` is the squared distance between their sentence vectors. With
            `sense` alone the teacher runs once, before training; with the others it runs at every step, unless
            `cache_vectors` is set. For students without layers it runs once in any case. For students that generate
            text there are also `lm`, the cross-entropy of the next token, and `kl`, the Kullback-Leibler divergence
            from the teacher's distribution of the next token; their `mse` is in units of the squared length of the
            teacher's state.
        temperature: Divides the scores of the senses in the `sense` loss. Its unit is the dictionary's mean squared
            distortion, so that one value suits all teachers.
        label_top_k: Number of senses in the label of a position. 1 keeps the teacher's best sense (hard labels). More
            keeps the most probable senses and their probabilities (soft labels).
        label_temperature: Temperature of the probabilities in soft labels, in the same unit as `temperature`.
        sense_weight: Weight of `sense` in a sum of losses.
        mse_weight: Weight of `mse` in a sum of losses.
        sentence_weight: Weight of `sentence` in a sum of losses.
        lm_weight: Weight of `lm` in a sum of losses.
        kl_weight: Weight of `kl` in a sum of losses.
        table_learning_rate: Learning rate of the tables of a student without layers, which hold one row for each
            token. `learning_rate` is that of its other weights. The weights are in units of the teacher's vectors.
        cache_vectors: Whether the teacher runs once, before training, and its vectors are kept on disk in half
            precision: `2 * hidden` bytes a token. It pays from two epochs on, and with a large teacher. For `kl` the
            teacher's head stays in memory and makes its logits from them. Not for streamed texts.
        max_length: Longest input in tokens. Longer texts are cut into overlapping windows. Default: what student and
            teacher take, at most 512.

    Raises:
        ValueError: The objective is unknown, a number is out of range, or a setting of `TrainingArguments` does not
            work in distillation.

    Example:
        >>> from sensedict_hf import SKDTrainingArguments
        >>> args = SKDTrainingArguments("skd-minilm", objective="sense+mse", mse_weight=2.0)
        >>> args.loss_weights
        {'sense': 1.0, 'mse': 2.0}
        >>> args.learning_rate
        0.001
    """

    # None: the default depends on the student, see above.
    objective: str = None  # type: ignore[assignment]
    temperature: float = 0.15
    label_top_k: int = 1
    label_temperature: float = 0.15
    sense_weight: float = 1.0
    mse_weight: float = None  # type: ignore[assignment]
    sentence_weight: float = None  # type: ignore[assignment]
    lm_weight: float = 1.0
    kl_weight: float = 1.0
    table_learning_rate: float = 2e-2
    cache_vectors: bool = False
    max_length: int | None = None
    # Settings of `TrainingArguments` that have defaults of their own here.
    learning_rate: float = None  # type: ignore[assignment]
    per_device_train_batch_size: int = None  # type: ignore[assignment]
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = None  # type: ignore[assignment]
    max_grad_norm: float = None  # type: ignore[assignment]
    train_sampling_strategy: str = None  # type: ignore[assignment]
    warmup_steps: float = 0.1
    # Soft labels are columns that the student's forward does not take; the collator needs them.
    remove_unused_columns: bool = False
    # The first process may tokenize for a long time while the others wait.
    ddp_timeout: int = field(default=86_400, metadata={"help": "seconds that processes wait for each other"})

    def __post_init__(self) -> None:
        # Settings that were not given have the defaults for students with layers, until the student is known.
        self._unset = [name for name in WITH_LAYERS if getattr(self, name) is None]
        self._is_layer_free = self._is_generative = False
        self.least_steps = 0  # the number of epochs is given, or does not depend on the texts
        for name in self._unset:
            setattr(self, name, WITH_LAYERS[name])
        self._check_numbers()
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith(("_error", "perplexity")):
            self.greater_is_better = False
        super().__post_init__()
        strategy = HubStrategy(self.hub_strategy)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={strategy.value!r} would upload unfinished students: leave it out, the "
                "student is uploaded when its training is finished"
            )
        self.hub_strategy = HubStrategy.END  # also instead of the default, every_save
        if self.device.type == "cpu":
            # Without an accelerator there is nothing to pin memory for, and every data loader would warn.
            self.dataloader_pin_memory = False

        # The objective.
        unknown = [term for term in self.terms if term not in OBJECTIVES]
        if unknown:
            raise ValueError(
                f"unknown objective {unknown[0]!r}: choose {', '.join(OBJECTIVES)}, or several joined by +"
            )
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(f"objective={self.objective!r} names a loss twice: name it once, and give it a weight")

        # Settings of transformers that do not work here.
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove the columns of soft labels: leave it off")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} has no effect in distillation: for soft labels "
                "set label_top_k"
            )

    def _check_numbers(self) -> None:
        """Check the numbers by name, type and range. Numbers of numpy become numbers of Python."""
        check_folder("output_dir", self.output_dir)
        check_string("objective", self.objective)
        check_flag("cache_vectors", self.cache_vectors)
        rates = ("learning_rate", "table_learning_rate", "temperature", "label_temperature", "num_train_epochs")
        for name in (*rates, "sense_weight", "mse_weight", "sentence_weight", *LANGUAGE_SETTINGS):
            setattr(self, name, check_number(name, getattr(self, name), above=0))
        for name in ("max_grad_norm", "weight_decay", "warmup_steps"):
            setattr(self, name, check_number(name, getattr(self, name), least=0))
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            setattr(self, name, check_integer(name, getattr(self, name), 1))
        self.label_top_k = check_integer("label_top_k", self.label_top_k, 1, MOST_SENSES + 1)
        self.seed = check_integer("seed", self.seed, 0, 2**32)
        self.max_steps = check_integer("max_steps", self.max_steps, -1)
        if self.max_steps == 0:
            raise ValueError("max_steps=0: give at least 1, or leave it out to train for whole epochs")
        if self.max_length is not None:
            self.max_length = check_integer("max_length", self.max_length, 1)

    def for_layer_free(self) -> "SKDTrainingArguments":
        """Return the settings with the defaults for students without layers; what was given stays.

        Example:
            >>> from sensedict_hf import SKDTrainingArguments
            >>> args = SKDTrainingArguments("zero-minilm", learning_rate=1e-3).for_layer_free()
            >>> args.objective, args.per_device_train_batch_size, args.learning_rate
            ('mse+sentence', 256, 0.001)
        """
        if self._is_layer_free:
            return self
        args = self._with_defaults(LAYER_FREE)
        args._is_layer_free = True
        if "num_train_epochs" in self._unset and self.max_steps <= 0:
            args.least_steps = LEAST_STEPS
        return args

    def for_generation(self, *, has_senses: bool) -> "SKDTrainingArguments":
        """Return the settings with the defaults for students that generate text; what was given stays.

        Args:
            has_senses: Whether there is a dictionary to guide them.

        Example:
            >>> from sensedict_hf import SKDTrainingArguments
            >>> SKDTrainingArguments("skd-llama").for_generation(has_senses=False).loss_weights
            {'lm': 1.0, 'kl': 1.0}
        """
        if self._is_generative:
            return self
        args = self._with_defaults(GENERATIVE if has_senses else GENERATIVE | {"objective": "lm+kl"})
        args._is_generative = True
        return args

    def _with_defaults(self, defaults: Mapping[str, str | float]) -> "SKDTrainingArguments":
        args = copy.copy(self)
        for name in self._unset:
            if getattr(self, name) == WITH_LAYERS[name]:  # not set meanwhile
                setattr(args, name, defaults[name])
        return args

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses in the objective."""
        return tuple(self.objective.split("+"))

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss in the objective by its name. A loss alone has weight 1."""
        if len(self.terms) == 1:
            return {self.objective: 1.0}
        return {term: getattr(self, f"{term}_weight") for term in self.terms}

    @property
    def needs_vectors(self) -> bool:
        """Whether the loss needs the teacher's vectors, and not only the senses that it picks."""
        return self.terms != ("sense",)

    @property
    def keeps_vectors(self) -> bool:
        """Whether the teacher's vectors are read from disk."""
        return self.cache_vectors and self.needs_vectors

    @property
    def unused(self) -> list[str]:
        """Names of the settings that were given, and change nothing with this objective or this student."""
        used = {f"{term}_weight" for term in self.terms} if len(self.terms) > 1 else set()
        used |= {"temperature", "label_top_k", "label_temperature"} if "sense" in self.terms else set()
        used |= {"cache_vectors"} if self.needs_vectors and not self._is_layer_free else set()
        used |= {"table_learning_rate"} if self._is_layer_free else set()
        names = {f"{term}_weight" for term in OBJECTIVES} | {*SENSE_SETTINGS, "cache_vectors", "table_learning_rate"}
        defaults = {one.name: WITH_LAYERS.get(one.name, one.default) for one in fields(self) if one.name in names}
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        return [name for name in given if name not in used and name not in self._unset]

    @property
    def remembered(self) -> dict[str, float]:
        """The settings that the config of a student keeps as `distillation`."""
        names = [*REMEMBERED, "table_learning_rate", *LANGUAGE_SETTINGS]
        unused: tuple[str, ...] = SENSE_SETTINGS if self._is_layer_free else ("table_learning_rate",)
        unused += ("sentence_weight",) if self._is_generative else LANGUAGE_SETTINGS
        return {name: getattr(self, name) for name in names if name not in unused}
