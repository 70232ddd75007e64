"""Sense distillation under `transformers.Trainer`."""

import os
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalPrediction, TrainOutput

from .corpus import Texts, check_max_length, model_max_length
from .encoding import pad_batch, padding_id
from .labeling import IGNORED, encode_senses
from .losses import hidden_mse
from .model_card import model_card
from .modeling_skd_student import SKDStudentModel, check_teacher
from .teachers import Teacher, load_teacher
from .training_args import SKDTrainingArguments


class SKDTrainer(Trainer):
    """Distils a student: text in, trained student out.

    For the objective `sense` the teacher runs once over all texts, before training, and is let go; with a regression it runs beside the
    student.

    Args:
        model: the student; its dictionary decides what the teacher's senses are.
        teacher: a name, a path, a model or a [`Teacher`]. May be None if the data sets come from [`encode_senses`] and the objective
            is `sense`.
        train_dataset, eval_dataset: a list or iterable of texts, a data set with a text column, or what [`encode_senses`] returns;
            to evaluate on, also a dict of those.
        text_column: where the texts are.

    Raises:
        ValueError: the dictionary does not fit the teacher, or a teacher is needed and not given.
    """

    args: SKDTrainingArguments

    def __init__(
        self,
        model: SKDStudentModel,
        args: SKDTrainingArguments,
        teacher: str | os.PathLike | PreTrainedModel | Teacher | None = None,
        train_dataset: Texts | None = None,
        eval_dataset: Texts | dict[str, Texts] | None = None,
        text_column: str = "text",
        **kwargs: Any,
    ):
        self.teacher = None if teacher is None else load_teacher(teacher, device=args.device)
        self.text_column = text_column
        if self.teacher is not None:
            check_teacher(model.senses, self.teacher)
        if train_dataset is not None:
            train_dataset = self._encode(train_dataset, model, args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._encode(texts, model, args) for name, texts in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._encode(eval_dataset, model, args)
        if args.objective == "sense":
            self.teacher = None
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=kwargs.pop("data_collator", self._collate),
            processing_class=kwargs.pop("processing_class", model.tokenizer),
            compute_metrics=kwargs.pop("compute_metrics", sense_accuracy),
            **kwargs,
        )
        # The loss is a sum over positions, divided by the number of counted positions of all accumulated batches and processes.
        self.model_accepts_loss_kwargs = True
        self.label_names = ["labels"]
        self._correct = self._counted = 0

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; the student remembers how it was distilled."""
        config = self.accelerator.unwrap_model(self.model).config
        names = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "temperature", "mse_weight", "seed")
        config.objective = self.args.objective
        config.distillation = {name: getattr(self.args, name) for name in names}
        return super().train(*args, **kwargs)

    def _encode(self, texts: Texts, model: SKDStudentModel, args: SKDTrainingArguments) -> Dataset:
        if isinstance(texts, Dataset) and {"input_ids", "labels"} <= set(texts.column_names):
            if self.teacher is None and args.objective != "sense":
                raise ValueError(f"objective={args.objective!r} needs the teacher's vectors: pass teacher=")
            return texts
        if self.teacher is None:
            raise ValueError(
                "texts need a teacher to tell their senses: pass teacher= (for objective sense it is let go once the first texts are "
                "encoded), or data sets made by encode_senses"
            )
        longest = min(self.teacher.max_window, model_max_length(self.teacher.tokenizer, model.config.text_config))
        return encode_senses(
            self.teacher,
            model.senses.to(self.teacher.device),
            texts,
            text_column=self.text_column,
            max_length=check_max_length(args.max_length, longest),
            batch_size=args.per_device_eval_batch_size,
            only_tokens=args.objective != "sense",
        )

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids, mask = pad_batch([row["input_ids"] for row in rows], padding_id(self.processing_class, self.model))
        labels = torch.full_like(input_ids, IGNORED)
        labels[mask.bool()] = torch.from_numpy(np.concatenate([row["labels"] for row in rows])).long()
        if self.args.objective == "sense":
            labels[labels < 0] = IGNORED  # nothing can be learned where the token has no senses
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    def _loss_and_choices(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the student's senses and the teacher's, both `[batch, positions]` (-1: unknown, as all are without their loss)."""
        input_ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        senses = self.accelerator.unwrap_model(model).senses
        hidden = model(input_ids=input_ids, attention_mask=mask, assignment="none").student_hidden_state
        counted = labels != IGNORED
        loss, choices = hidden.new_zeros(()), torch.full_like(labels, -1)
        if self.args.objective != "sense":
            there = self.teacher.device
            target = self.teacher.hidden_states(input_ids.to(there), mask.to(there), senses.config.layer).to(hidden.device).clone()
            weight = 1.0 if self.args.objective == "mse" else self.args.mse_weight
            own, unit = hidden, senses.score_temperature(1.0)
            if senses.config.similarity == "cosine":  # the distortion is one between unit vectors
                own, target = F.normalize(own.float(), dim=-1), F.normalize(target.float(), dim=-1)
            loss = loss + weight * hidden_mse(own, target, counted, unit)
            if self.args.objective == "sense+mse":
                chosen = senses(input_ids, target, mask, "hard").sense_ids
                labels = torch.where(counted, chosen, labels)
        if self.args.objective == "mse":
            labels = choices
        else:
            sense_loss, choices = senses.cross_entropy(input_ids, hidden, labels, self.args.temperature)
            loss = loss + sense_loss
        positions = counted.sum() if num_items_in_batch is None else num_items_in_batch
        return loss / positions, choices, labels

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, choices, labels = self._loss_and_choices(model, inputs, num_items_in_batch)
        known = labels >= 0
        self._correct += (choices == labels)[known].sum()
        self._counted += known.sum()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices and self.args.world_size > 1:
            loss = loss * self.args.world_size  # DDP takes the mean of gradients that are already divided by all positions
        return (loss, {"choices": choices}) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Texts | str | None = None) -> DataLoader:
        """As in transformers; texts are encoded first."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._encode(eval_dataset, self.accelerator.unwrap_model(self.model), self.args)
        return super().get_eval_dataloader(eval_dataset)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Evaluation keeps sense ids instead of vectors."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, choices, labels = self._loss_and_choices(model, inputs, None)
        return (loss, None, None) if prediction_loss_only else (loss, choices, labels)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._counted:
            logs["sense_accuracy"] = round(float(self._correct) / float(self._counted), 4)
            self._correct = self._counted = 0
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the student's own card."""
        if self.is_world_process_zero():
            model_card(self.accelerator.unwrap_model(self.model).config).save(os.path.join(self.args.output_dir, "README.md"))


def sense_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the positions with a known sense at which the student picks the teacher's."""
    known = prediction.label_ids >= 0
    if not known.any():
        return {}
    return {"sense_accuracy": float((prediction.predictions == prediction.label_ids)[known].mean())}
