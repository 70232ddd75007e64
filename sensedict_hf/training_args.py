"""Settings of distillation."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

OBJECTIVES = ("sense", "mse", "sense+mse")


@dataclass
class SKDTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the objective of distillation, and defaults that suit it.

    Args:
        objective: `sense`, cross-entropy over each token's senses against the one that the teacher picks; `mse`, regression of the
            teacher's hidden states, the usual baseline; or `sense+mse`, the first plus `mse_weight` times the second.
        temperature: divides the scores of the senses, in units of the dictionary's mean squared distortion.
        mse_weight: of the regression in `sense+mse`; its unit is the dictionary's distortion.
        max_length: longest input in tokens (default: the teacher's maximum); longer texts are cut into windows.
    """

    objective: str = field(default="sense", metadata={"help": "sense, mse or sense+mse"})
    temperature: float = field(default=0.15, metadata={"help": "of the sense scores, in units of the dictionary's distortion"})
    mse_weight: float = field(default=0.1, metadata={"help": "weight of the regression in sense+mse"})
    max_length: int | None = field(default=None, metadata={"help": "longest input in tokens; longer texts are cut into windows"})
    learning_rate: float = field(default=1e-3, metadata={"help": "initial learning rate"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "texts per device and step"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "texts per device in evaluation"})
    num_train_epochs: float = field(default=2.0, metadata={"help": "passes over the texts"})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps of linear warm-up; below 1: share of all steps"})
    # Every forward pass of DDP would send the whole dictionary, which never changes.
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "leave off: the dictionary is a buffer"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {self.objective!r}: choose one of {', '.join(OBJECTIVES)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: it must be above 0")
        if not self.mse_weight > 0:
            raise ValueError(f"mse_weight is {self.mse_weight}: it must be above 0; objective='sense' leaves the regression out")
