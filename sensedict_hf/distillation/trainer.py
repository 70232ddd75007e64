"""Sense distillation under `transformers.Trainer`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset, IterableDataset, LargeList, List
from pyarrow import compute
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from ..data import Texts
from ..models.encoding import padding_id, pool
from ..models.hub import model_card
from ..models.modeling_skd_student import SKDStudentModel, SKDStudentPreTrainedModel
from ..models.teachers import Teacher, check_teacher, load_teacher
from ..models.tokenizers import check_max_length, model_max_length
from .labels import IGNORED, Collator, encode_senses, label_settings, stream_windows
from .losses import hidden_mse, sentence_mse
from .training_args import SKDTrainingArguments

logger = logging.get_logger(__name__)
# What is summed over batches, for the means that are logged.
SUMS = ("loss", "counted", "owned", "covered", "known", "right", "error")


class SKDTrainer(Trainer):
    """Distils a student: text in, trained student out.

    For the objective `sense` the teacher runs once over all texts, before training, and is let go; for other objectives, and for texts
    that are streamed, it runs beside the student. Logged beside the loss: `sense_accuracy`, the share of the positions at which
    the student picks the teacher's sense; `quantization_error`, the mean squared distance from the student's vectors to the senses it
    picks, in units of the dictionary's distortion (both without the objective `sense` in evaluation alone); `coverage`, the share of the
    positions whose token has senses.

    Args:
        model: the student, also under an adapter of PEFT, or a task model, of which the student inside is distilled, and is what
            checkpoints and `save_model` hold (save the task model itself with its `save_pretrained`). Its dictionary decides what the
            teacher's senses are.
        teacher: a name, a path, a model or a [`Teacher`]. May be None if the data sets come from [`encode_senses`] and the objective
            is `sense`.
        train_dataset, eval_dataset: a list or iterable of texts, a data set with a text column, or what [`encode_senses`] returns;
            to evaluate on, also a dict of those. What the teacher has encoded stays in `args.output_dir/_encoded`, so that the same
            call goes on with it if it is interrupted. A streamed data set (`datasets.IterableDataset`) is encoded as it comes, and
            needs `max_steps`.
        text_column: where the texts are.

    Raises:
        ValueError: the dictionary does not fit the teacher, a teacher is needed and not given, or the model is not a student.
    """

    args: SKDTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: SKDTrainingArguments,
        teacher: str | os.PathLike | PreTrainedModel | Teacher | None = None,
        train_dataset: Texts | None = None,
        eval_dataset: Texts | dict[str, Texts] | None = None,
        text_column: str = "text",
        **kwargs: Any,
    ):
        if not isinstance(args, SKDTrainingArguments):
            raise ValueError(f"args is {type(args).__name__}: pass SKDTrainingArguments, which say how to distil")
        has_head = isinstance(model, SKDStudentPreTrainedModel) and not isinstance(model, SKDStudentModel)
        if has_head:
            model = model.student  # the head has no part in this
        elif isinstance(getattr(model, "student", None), SKDStudentModel):  # PEFT passes attributes on
            raise ValueError("adapters over a task model: put them on its student, model.student, and distil that")
        self.student = next((module for module in model.modules() if isinstance(module, SKDStudentModel)), None)
        if self.student is None:
            raise ValueError(f"{type(model).__name__} is not a student: make one with SKDStudentModel.from_teacher")
        self.senses = self.student.senses
        if self.senses.config.learn_senses:
            raise ValueError(
                "distillation keeps the senses as they are: load the student with learn_senses=False; Trainer can learn them"
            )
        if args.eval_strategy != "no" and eval_dataset is None:
            raise ValueError(f"eval_strategy={args.eval_strategy.value!r} needs an eval_dataset")
        if kwargs.pop("model_init", None) is not None:
            raise ValueError("model_init has no part in distillation: make the student and pass it as model")
        for name in ("compute_metrics", "compute_loss_func", "data_collator"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    f"{name} has no part in distillation: its loss is args.objective, its metrics are those that are logged, its batches "
                    "are of what encode_senses returns"
                )
        half = [
            parameter.dtype
            for parameter in model.parameters()
            if parameter.requires_grad and parameter.dtype != torch.float32
        ]
        if half and train_dataset is not None:
            raise ValueError(
                f"weights to be trained are {half[0]}: load the student with dtype=torch.float32; args.bf16 computes in half"
            )
        given = [*eval_dataset.values()] if isinstance(eval_dataset, dict) else [eval_dataset]
        if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
            raise ValueError(f"max_steps={args.max_steps}: a stream has no length, say how many steps to train")
        if args.world_size > 1 and any(isinstance(texts, IterableDataset) for texts in given):
            raise ValueError(
                "an eval_dataset that is streamed cannot be shared out to several processes: pass a data set with a length"
            )
        self.teacher = None if teacher is None else load_teacher(teacher, device=args.device)
        self.text_column = text_column
        if self.teacher is not None:
            check_teacher(self.senses, self.teacher)
            if not has_head and self.teacher.pooling != self.student.config.pooling:
                logger.warning(
                    f"the student's pooling is {self.student.config.pooling}, the teacher's {self.teacher.pooling}: vectors of texts are "
                    "learned and made by the student's; pooling= of from_teacher and from_backbone chooses it"
                )
        if train_dataset is not None:
            train_dataset = self._encode(train_dataset, args, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._encode(texts, args, f"eval-{name}") for name, texts in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._encode(eval_dataset, args, "eval")
        data = [train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])]
        if any(isinstance(texts, IterableDataset) for texts in data):
            args.accelerator_config.dispatch_batches = (
                False  # batches of processes are padded differently, and cannot be cut out of one
            )
        elif not args.needs_vectors:
            self.teacher = None
        tokenizer = kwargs.pop("processing_class", None) or self.student.tokenizer
        self._has_senses = (self.senses.offsets.diff() > 0).cpu()
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=Collator(
                padding_id(tokenizer, self.student),
                self._has_senses if args.terms == ("sense",) else None,
                self.teacher is None,
            ),
            processing_class=tokenizer,
            **kwargs,
        )
        # The loss is a sum over positions, divided by the number of counted positions of all accumulated batches and processes.
        self.model_accepts_loss_kwargs = True
        self.label_names = ["labels"]
        self._sums = self._no_sums()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; the student's config remembers how it was distilled."""
        if hasattr(self.model, "peft_config"):
            logger.warning(
                "a folder of adapters does not hold the student's config, which decides what is returned after distillation: merge the "
                "adapters into the student before it is saved, or save its config into the folder of the student that they are for"
            )
        self.student.config.objective = self.args.objective
        self.student.config.distillation = self.args.remembered
        self._sums = self._no_sums()
        with without_dropout(self.student):
            return super().train(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        senses = self.senses.fingerprint()
        super()._load_from_checkpoint(*args, **kwargs)
        if self.senses.fingerprint() != senses:
            raise ValueError(
                "the checkpoint is of a student with another dictionary: make the student with that one, or begin anew"
            )

    def _encode(self, texts: Texts, args: SKDTrainingArguments, name: str) -> Dataset | IterableDataset:
        """Token ids and senses of texts; a data set that has them is left as it is."""
        is_streamed, is_keyed = (
            isinstance(texts, IterableDataset),
            self.senses.config.teacher_tokenizer_fingerprint is not None,
        )
        if is_keyed and (args.needs_vectors or is_streamed):
            raise ValueError(
                f"objective={args.objective!r}{' on a stream' * is_streamed}: the teacher cannot read the student's tokens beside it, as "
                "the dictionary is for another tokenizer; choose objective='sense' and texts that are not streamed"
            )
        longest = model_max_length(self.student.tokenizer, self.student.config.text_config)
        if self.teacher is not None and not is_keyed:
            longest = min(longest, self.teacher.max_window)
        max_length = check_max_length(args.max_length, longest)
        if (
            isinstance(texts, Dataset)
            and isinstance(texts.features.get("labels"), (List, LargeList))
            and "input_ids" in texts.features
        ):
            if made_with := label_settings(texts):
                self._check_encoded(texts, made_with, args, args.max_length or longest)
                return texts
            if self.text_column not in texts.features:
                raise ValueError(
                    f"the data set has labels but not what they were made with, and no column {self.text_column!r}: pass texts, or what "
                    "encode_senses returned (save_to_disk keeps what it was made with, other formats and data sets of several do not)"
                )
        if self.teacher is None:
            raise ValueError(
                "texts need a teacher to tell their senses: pass teacher= (for objective sense it is let go once the first texts are "
                "encoded), or data sets made by encode_senses"
            )
        tokenizer = self.senses.tokenizer if is_keyed else self.teacher.tokenizer
        if is_streamed:
            return stream_windows(
                texts, tokenizer, max_length, self.text_column, self.teacher.prompt, is_shared=args.world_size > 1
            )
        return encode_senses(
            self.teacher,
            self.senses.to(self.teacher.device),
            texts,
            output_dir=os.path.join(args.output_dir, "_encoded", name),
            overwrite=True,
            text_column=self.text_column,
            max_length=max_length,
            batch_size=args.per_device_eval_batch_size,
            top_k=args.label_top_k,
            temperature=args.label_temperature,
            only_tokens=args.needs_vectors,
        )

    def _check_encoded(
        self, dataset: Dataset, made_with: dict[str, Any], args: SKDTrainingArguments, max_length: int
    ) -> None:
        """Raises a ValueError if a data set of [`encode_senses`] is not for this run, or has longer rows."""
        if args.needs_vectors and self.teacher is None:
            raise ValueError(
                f"objective={args.objective!r} needs the teacher's vectors: pass teacher=, or choose objective='sense'"
            )
        wanted = {"tokenizer": self.senses.config.tokenizer_fingerprint}
        if not args.needs_vectors:  # else labels are made beside
            wanted |= {"senses": self.senses.fingerprint(), "top_k": args.label_top_k, "only_tokens": False}
            wanted |= {"temperature": args.label_temperature} if args.label_top_k > 1 else {}
        for name, value in wanted.items():
            if made_with[name] != value:
                raise ValueError(
                    f"the data set was encoded with {name}={made_with[name]}, here it is {value}: encode the texts again"
                )
        parts = dataset.with_format("arrow").iter(10_000)
        longest = max((compute.max(compute.list_value_length(part["input_ids"])).as_py() for part in parts), default=0)
        if longest > max_length:
            raise ValueError(
                f"the data set has rows of {longest} tokens, above the {max_length} that student, teacher and args.max_length allow: "
                f"encode the texts again with max_length={max_length}"
            )

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The loss summed over the positions of a batch; adds to what is logged."""
        args, senses, unit = self.args, self.senses, self.senses.score_temperature(1.0)
        input_ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        hidden = model(input_ids=input_ids, attention_mask=mask, assignment="none").student_hidden_state
        counted = labels != IGNORED
        weights = counted.float()
        loss = hidden.new_zeros((), dtype=torch.float32)
        target = None if self.teacher is None else self._teacher_vectors(inputs)
        if "sense" in args.terms or not model.training:  # evaluation tells the accuracy of regression too
            sense_ids, probabilities = inputs.get("sense_ids", labels[..., None]), inputs.get("probabilities")
            if target is not None:
                sense_ids, probabilities = senses.posterior(
                    input_ids, target, counted, args.label_temperature, args.label_top_k
                )
            sense_ids = sense_ids.masked_fill(~counted[..., None], -1)
            probabilities = weights[..., None] * (
                torch.ones_like(weights)[..., None] if probabilities is None else probabilities
            )
            sense_loss, choices = senses.cross_entropy(input_ids, hidden, sense_ids, args.temperature, probabilities)
            if "sense" in args.terms:
                loss = loss + sense_loss
            known = choices >= 0
            self._sums["known"] += known.sum()
            self._sums["right"] += (choices == sense_ids[..., 0])[known].sum()
            with torch.no_grad():
                distances = self._comparable(hidden[known]) - self._comparable(
                    senses.look_up(input_ids[known], choices[known])
                )
                self._sums["error"] += distances.square().sum() / unit
        if args.needs_vectors:
            alone = len(args.terms) == 1
            if "mse" in args.terms:
                regression = hidden_mse(self._comparable(hidden), self._comparable(target), weights)
                loss = loss + (1 if alone else args.mse_weight) / unit * regression
            if "sentence" in args.terms:
                pooled = None
                if (
                    self.student.config.prompt or self.teacher.prompt
                ):  # positions of a prompt are not owned; an empty text is nothing else
                    owned = inputs["owned"]
                    pooled = torch.where(owned.any(1, keepdim=True), owned, mask.bool())
                own, theirs = (
                    self._comparable(pool(vectors, mask, self.student.config.pooling, pooled))
                    for vectors in (hidden, target)
                )
                loss = loss + (1 if alone else args.sentence_weight) / unit * sentence_mse(own, theirs, weights)
        self._sums["loss"] += loss.detach()
        self._sums["counted"] += counted.sum()
        self._sums["owned"] += inputs["owned"].sum()
        self._sums["covered"] += (inputs["owned"] & self._has_senses.to(input_ids.device)[input_ids]).sum()
        return loss

    def _teacher_vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the teacher makes of a batch, `[batch, positions, hidden]`."""
        there = self.teacher.device
        vectors = self.teacher.hidden_states(
            inputs["input_ids"].to(there), inputs["attention_mask"].to(there), self.senses.config.layer
        )
        return vectors.to(self.args.device).clone()  # a tensor of inference mode has no part in gradients

    def _comparable(self, vectors: Tensor) -> Tensor:
        """Vectors between which the dictionary's distortion is a squared distance: for cosine similarity unit vectors."""
        return F.normalize(vectors.float(), dim=-1) if self.senses.config.similarity == "cosine" else vectors.float()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss = self._loss(model, inputs)
        counted = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(counted, device=loss.device).clamp_min(
            1
        )  # of a batch without senses the loss is 0
        if num_items_in_batch is not None and self.args.average_tokens_across_devices and self.args.world_size > 1:
            loss = (
                loss * self.args.world_size
            )  # DDP takes the mean of gradients that are already divided by all positions
        return (loss, {}) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Texts | str | None = None) -> DataLoader:
        """As in transformers; texts are encoded first. No text is repeated to give all processes as many batches."""
        known = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        if (
            eval_dataset is not None
            and not isinstance(eval_dataset, str)
            and not any(eval_dataset is data for data in known)
        ):
            eval_dataset = self._encode(eval_dataset, self.args, "evaluated")
        config = self.accelerator.dataloader_config
        even_batches, config.even_batches = config.even_batches, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            config.even_batches = even_batches

    def predict(self, *args: Any, **kwargs: Any) -> None:
        """Raises a ValueError: texts of a distillation have no classes to predict."""
        raise ValueError(
            "there are no predictions in distillation: evaluate(texts) measures the student, student.encode(texts) uses it"
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Evaluation keeps sums, and nothing of single batches, which processes may have unequally many of."""
        with torch.no_grad(), self.compute_loss_context_manager():
            self._loss(model, self._prepare_inputs(inputs))
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As in transformers, with the means over positions of all batches and processes in the place of a mean of means."""
        training, self._sums = self._sums, self._no_sums()
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self._means().items()})
            return output
        finally:
            self._sums = training

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums["owned"] > 0:
            logs |= {name: round(value, 4) for name, value in self._means().items() if name != "loss"}
            self._sums = self._no_sums()
        super().log(logs, *args, **kwargs)

    def _no_sums(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=self.args.device) for name in SUMS}

    def _means(self) -> dict[str, float]:
        """What the sums of all processes come to."""
        sums = self.accelerator.reduce(torch.stack([self._sums[name] for name in SUMS]), reduction="sum")
        loss, counted, owned, covered, known, right, error = sums.tolist()
        means = {"loss": loss / max(counted, 1), "coverage": covered / max(owned, 1)}
        return means if not known else means | {"sense_accuracy": right / known, "quantization_error": error / known}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the student's own card."""
        if self.is_world_process_zero():
            model_card(self.student.config).save(os.path.join(self.args.output_dir, "README.md"))


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Turn a model's dropout off: distillation has labels enough, and dropout made students worse. Adapters of PEFT keep theirs."""
    # Dropout is a module, or a number that a module passes on to its attention.
    places: list[tuple[nn.Module, str]] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in path:
            places.append((module, "p"))
        places += [
            (module, name) for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)
        ]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, 0.0)
        yield
    finally:
        for (module, name), value in zip(places, before):
            setattr(module, name, value)
