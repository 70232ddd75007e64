"""Settings of distillation."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

OBJECTIVES = ("sense", "mse", "sentence")


@dataclass
class SKDTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the objective of distillation, and defaults that suit it.

    Args:
        objective: one of these, or several joined by `+`, whose losses are added: `sense`, cross-entropy over each token's senses
            against what the teacher picks; `mse`, regression of the teacher's hidden states, the usual baseline; `sentence`,
            regression of the text's vector, by the student's pooling. The sum of all three is the best of what was compared at few
            steps (see the README); `sense` alone needs no teacher beside the student.
        temperature: divides the scores of the senses, in units of the dictionary's mean squared distortion.
        label_top_k: 1: the label of a position is the sense that the teacher picks (hard labels); more: the so many most probable
            senses of its posterior (soft labels). label_temperature: of that posterior, in the same units.
        mse_weight, sentence_weight: of these losses beside others; their unit is the dictionary's distortion.
        frequency_power: weighs a position by a power of how often its token stands in the dictionary's corpus, with the mean
            weight 1: 0 all alike, -1 all tokens alike.
        dropout: of the student while it is distilled, instead of what its config says for fine-tuning: there are labels enough.
        max_length: longest input in tokens (default: the teacher's maximum); longer texts are cut into windows.
    """

    objective: str = field(
        default="sense+mse+sentence", metadata={"help": "sense, mse or sentence, or several of them joined by +"}
    )
    temperature: float = field(
        default=0.15, metadata={"help": "of the sense scores, in units of the dictionary's distortion"}
    )
    label_top_k: int = field(
        default=1, metadata={"help": "senses of the teacher's posterior that make a label; 1: the best alone"}
    )
    label_temperature: float = field(
        default=0.15, metadata={"help": "of the teacher's posterior, in units of the distortion"}
    )
    mse_weight: float = field(
        default=3.0, metadata={"help": "weight of the regression of hidden states beside other losses"}
    )
    sentence_weight: float = field(
        default=9.0, metadata={"help": "weight of the regression of sentence vectors beside other losses"}
    )
    frequency_power: float = field(
        default=0.0, metadata={"help": "weighs positions by this power of their token's frequency"}
    )
    dropout: float = field(default=0.0, metadata={"help": "of the student while it is distilled"})
    max_length: int | None = field(
        default=None, metadata={"help": "longest input in tokens; longer texts are cut into windows"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "where the student is saved", "aliases": ["--output"]}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "initial learning rate"})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "texts per device and step", "aliases": ["--batch-size", "--batch_size"]}
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "texts per device in evaluation"})
    num_train_epochs: float = field(default=2.0, metadata={"help": "passes over the texts", "aliases": ["--epochs"]})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps of linear warm-up; below 1: share of all steps"})
    # Labels beyond `labels` are no arguments of the student; the trainer's collator takes what it needs.
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "leave off: soft labels would be removed"}
    )
    # The first process may tokenize for long while the others wait.
    ddp_timeout: int = field(default=86_400, metadata={"help": "seconds that processes wait for each other"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to pin it for, of which each data loader would warn
        unknown = [term for term in self.objective.split("+") if term not in OBJECTIVES]
        if unknown:
            raise ValueError(
                f"unknown objective {unknown[0]!r}: choose {', '.join(OBJECTIVES)}, or several joined by +"
            )
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(f"objective={self.objective!r} names a loss twice: give it a weight instead")
        for name in ("temperature", "label_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("mse_weight", "sentence_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be above 0; leave the term out of the objective instead"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove soft labels: leave it off")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} has no part in distillation: soft labels are made by label_top_k"
            )
        if self.label_top_k < 1:
            raise ValueError(f"label_top_k is {self.label_top_k}: it must be at least 1")

    @property
    def terms(self) -> tuple[str, ...]:
        """The losses that are added."""
        return tuple(self.objective.split("+"))

    @property
    def needs_vectors(self) -> bool:
        """Whether the teacher's vectors are needed, not only the senses that it picks."""
        return self.terms != ("sense",)
