"""A `Trainer` of transformers that distils a student."""

import os
from typing import Any, NoReturn, cast

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data import Texts, dataset_names, with_datasets
from ..models.matching import check_teacher
from ..models.model_card import model_card
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_base import SKDStudentPreTrainedModel
from ..models.modeling_skd_causal_lm import load_language_model
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from . import checks
from .batches import length_groups
from .generation import (
    GenerationCounts,
    check_generative,
    generation_loss,
    generation_means,
    is_generative,
    teacher_tokenizer,
)
from .layer_free import check_layer_free, default_epochs, is_layer_free, layer_free_loss
from .losses import IGNORED, Counts, Errors, mean_errors, means, sense_labels, skd_loss
from .modes import added_callback, every_text_once, sparse_gradients, without_dropout
from .optimizer import make_optimizer
from .projection import fit_projection
from .texts import encode_texts, make_collator
from .training_args import SKDTrainingArguments
from .uploading import push_student
from .vectors import TeacherVectors, Variances


class SKDTrainer(Trainer):
    """Distils a student from texts by sense-based knowledge distillation (SKD).

    With the objective `sense`, or `args.cache_vectors`, the teacher runs once over all texts, before training, and is
    freed. With other objectives, and with streamed texts, it runs at every step; for a student without layers once.

    What is logged, next to the loss: `coverage`, the share of positions whose token has senses; `sense_accuracy`, the
    share of positions at which the student picks the teacher's sense; `quantization_error`, the mean squared distance
    from the student's vectors to the senses it picks, in units of the dictionary's distortion. The last two are logged
    in evaluation, and with the objective `sense` also in training. For a student without layers it is `token_error`
    and `sentence_error` instead: mean squared distances to the teacher's vectors, in units of their variance. For a
    student that generates text it is `perplexity` and `token_accuracy`, and with a dictionary `sense_accuracy`.

    Args:
        model: The student, also with adapters of PEFT. Of a task model the student inside is trained and saved in
            checkpoints; save the task model with its own `save_pretrained`.
        args: Settings of the training. Some of its defaults depend on the student.
        teacher: A name, a folder, a model or a :class:`Teacher`. Not needed if the datasets come from
            :func:`encode_senses` and the objective is `sense`.
        train_dataset: Texts: a list, an iterable or a dataset with a text column; or a dataset from
            :func:`encode_senses` (for a student without layers from :func:`encode_vectors`). The teacher's work is
            kept in `args.output_dir/_encoded`: after an interruption the same call continues with it. A streamed
            dataset (`datasets.IterableDataset`) is encoded as it comes and needs `args.max_steps`.
        eval_dataset: Texts to evaluate on, as above, or a dictionary of several.
        text_column: Name of the text column.
        senses: Only for students that generate text: the teacher's dictionary. It guides training and is not saved.
        kwargs: Further arguments of `Trainer`, such as `callbacks` or `optimizers`.

    Raises:
        ValueError: The model is not a student, the dictionary does not fit the teacher, a teacher is needed and
            missing, or an argument of `Trainer` does not work in distillation.

    Example:
        >>> from sensedict_hf import SKDStudentModel, SKDTrainer, SKDTrainingArguments
        >>> student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=2)
        >>> args = SKDTrainingArguments("skd", max_steps=2, save_strategy="no", report_to="none", disable_tqdm=True)
        >>> trainer = SKDTrainer(student, args, teacher=teacher, train_dataset=texts[:8])
        >>> _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> student.config.objective
        'sense+mse+sentence'
    """

    args: SKDTrainingArguments
    student: SKDStudentModel
    senses: SenseEmbeddingModel
    teacher: Teacher | None
    _variances: Variances | None = None  # of the teacher's vectors of the training texts

    def __init__(
        self,
        model: PreTrainedModel,
        args: SKDTrainingArguments,
        teacher: str | os.PathLike[str] | nn.Module | Teacher | None = None,
        train_dataset: Texts | TeacherVectors | None = None,
        eval_dataset: Texts | TeacherVectors | dict[str, Texts] | None = None,
        text_column: str = "text",
        senses: SenseEmbeddingModel | None = None,
        **kwargs: Any,
    ):
        # Check everything before the teacher is loaded and runs.
        if not isinstance(args, SKDTrainingArguments):
            raise ValueError(f"args is {type(args).__name__}: pass SKDTrainingArguments")
        checks.check_arguments(text_column, senses, kwargs)
        self._language_head: nn.Module | None = None  # the teacher's, for a student that generates text
        self.is_generative = is_generative(model)
        is_whole = self.is_generative or isinstance(model, SKDStudentModel)
        has_head = isinstance(model, SKDStudentPreTrainedModel) and not is_whole
        model = cast(PreTrainedModel, model.student) if has_head else model
        self.student = checks.find_student(model)
        tokenizer = kwargs.pop("processing_class", None)
        if tokenizer is not None:
            self.student.config.sense_config.check_tokenizer(tokenizer)
        tokenizer = self.student.tokenizer if tokenizer is None else tokenizer
        self.senses = self.student.senses if senses is None else senses.to(args.device)  # type: ignore[arg-type]
        self.is_layer_free = is_layer_free(self.student)
        if self.is_layer_free:
            args = args.for_layer_free()
            check_layer_free(self.student, args)
        if self.is_generative:
            args = args.for_generation(has_senses=senses is not None)
        check_generative(model, senses, args)
        checks.warn_of_unused(args)
        if train_dataset is not None:
            checks.check_dtypes(model)  # before the teacher runs
        checks.check_datasets(args, train_dataset, eval_dataset)
        self.text_column = text_column
        if self.is_generative and teacher is not None:
            own = teacher_tokenizer(teacher, cast(Any, self.student))
            self.teacher, self._language_head, _ = load_language_model(cast(Any, teacher), own, args.device)
        else:
            self.teacher = None if teacher is None else load_teacher(teacher, device=args.device)
        if self.teacher is not None:
            check_teacher(self.senses, self.teacher)
            if not has_head and not self.is_layer_free:
                checks.check_poolings(self.student, self.teacher)
        self._has_prompt = bool(self.student.config.prompt or (self.teacher and self.teacher.prompt))

        # Turn texts into token ids and, with the objective `sense`, into the teacher's senses.
        encoded_train = None if train_dataset is None else self._encode(train_dataset, args, "train")
        encoded_eval: Any = eval_dataset
        if isinstance(eval_dataset, dict):
            encoded_eval = {name: self._encode(texts, args, f"eval-{name}") for name, texts in eval_dataset.items()}
        elif eval_dataset is not None:
            encoded_eval = self._encode(eval_dataset, args, "eval")
        if any(isinstance(data, IterableDataset) for data in (encoded_train, *checks.each(encoded_eval))):
            # Each process pads its own batches, so they cannot be cut out of one large batch.
            cast(AcceleratorConfig, args.accelerator_config).dispatch_batches = False
        elif self.is_layer_free or not args.needs_vectors or args.keeps_vectors or args.terms == ("lm",):
            # Free the teacher's memory. Its head still makes logits, of states that were kept.
            self.teacher, self._language_head = None, self._language_head if "kl" in args.terms else None

        if self.is_layer_free and encoded_train is not None:
            args = default_epochs(args, len(encoded_train))
        kind = {"is_generative": self.is_generative, "has_teacher": self.teacher is not None}
        super().__init__(
            model,
            args,
            train_dataset=encoded_train,
            eval_dataset=encoded_eval,
            data_collator=make_collator(args, self.student, self.senses, tokenizer, **kind),
            processing_class=tokenizer,
            **kwargs,
        )
        # The loss is a sum over positions. Trainer counts the labels of all accumulated batches and processes.
        self.model_accepts_loss_kwargs = not self.is_layer_free
        self._loss_shifts_labels = False  # for text that is generated the collator shifts them
        self.label_names = ["labels"]
        self._sums = self._no_sums()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the student as `Trainer.train` does, without dropout.

        The student's config keeps the objective and the settings. A projection is fitted to the teacher first, unless
        the student was distilled before or it is frozen. With `args.push_to_hub` the student is uploaded.

        Args:
            args: As in `Trainer.train`.
            kwargs: As in `Trainer.train`, such as `resume_from_checkpoint=True`.

        Raises:
            ValueError: The checkpoint to resume from belongs to a student with another dictionary, or there are too
                few texts for a step.
        """
        checks.check_adapters(cast(nn.Module, self.model), self.student)
        checks.check_dtypes(cast(nn.Module, self.model))
        checks.check_batches(self.args, self.train_dataset)
        resumed = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        checks.check_checkpoint(resumed, str(self.args.output_dir))
        is_fresh = self.student.config.objective is None and not resumed
        self._sums = self._no_sums()
        is_sparse = self.is_layer_free and not self.args.max_grad_norm  # clipping needs dense gradients
        callback = added_callback(self, checks.SameSenses(self.senses))
        with callback, without_dropout(self.student), sparse_gradients(self.student, is_on=is_sparse):
            if is_fresh:
                fit_projection(self.student, self, self._teacher_vectors)
            self.student.config.objective = self.args.objective
            self.student.config.distillation = self.args.remembered
            result = super().train(*args, **kwargs)
        checks.check_trained(result.global_step)
        if self.args.push_to_hub:
            self.push_to_hub()
        return result

    def push_to_hub(self, commit_message: str | None = "End of training", **kwargs: Any) -> Any:  # type: ignore[override]
        """Upload the student with its card, see :func:`push_student`."""
        return push_student(self, commit_message, **kwargs)

    def _encode(self, texts: Any, args: SKDTrainingArguments, name: str) -> Any:
        """Encode texts in the folder `_encoded/name`, see :func:`encode_texts`."""
        if name == "train":
            config = self.student.config.sense_config
            config.card_data = with_datasets(config.card_data, dataset_names(texts))
        data = encode_texts(texts, args, name, self.student, self.senses, self.teacher, self.text_column)
        if self.is_layer_free and name == "train":
            self._variances = data.variances()
        return data

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Compute the loss, summed over the positions of a batch; add to the sums for the log.

        The loss of a student without layers is a mean.
        """
        compute = self._sense_loss
        if self.is_layer_free:
            compute = self._layer_free_loss
        elif self.is_generative:
            compute = self._generation_loss
        loss, sums = compute(model, inputs)
        checks.check_step(self.state.global_step, loss=loss)
        self._sums += torch.stack([value.detach().float() for value in sums])
        return loss

    def _layer_free_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        seed = (self.args.seed, self.state.global_step) if model.training else None
        variances = cast(Variances, self._variances)
        return layer_free_loss(self.student.backbone, inputs, variances, self.args.loss_weights, seed)

    def _sense_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        args, ids, mask = self.args, inputs["input_ids"], inputs["attention_mask"]
        student = model(input_ids=ids, attention_mask=mask, assignment="none").student_hidden_state
        teacher = self._teacher_vectors(inputs)
        checks.check_step(self.state.global_step, mask, teacher=teacher, student=student)
        labels = None
        if "sense" in args.terms or not model.training:  # evaluation tells the accuracy of any objective
            labels = sense_labels(inputs, self.senses, teacher, args.label_top_k, args.label_temperature)
        return skd_loss(
            student,
            inputs,
            self.senses,
            args.loss_weights,
            labels=labels,
            temperature=args.temperature,
            teacher=teacher,
            pooling=self.student.config.pooling,
            has_prompt=self._has_prompt,
        )

    def _generation_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        teacher = self._teacher_vectors(inputs)
        student, senses = output.hidden_states[-1], self.senses if len(self.senses.table) else None
        checks.check_step(self.state.global_step, mask, teacher=teacher, student=student)
        return generation_loss(
            output.logits, student, inputs, self.args, teacher=teacher, head=self._language_head, senses=senses
        )

    def _teacher_vectors(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Run the teacher over a batch, `[batch, positions, hidden]`, or take the vectors that were kept, if any."""
        if self.teacher is None:
            return inputs.get("vectors")
        input_ids, mask = (inputs[name].to(self.teacher.device) for name in ("input_ids", "attention_mask"))
        vectors = self.teacher.hidden_states(input_ids, mask, self.senses.config.layer)
        return vectors.to(self.args.device).clone()  # autograd refuses tensors made in inference mode

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data = self.train_dataset if train_dataset is None else train_dataset
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        groups = length_groups(data, size, self.args, lambda: int(self.state.epoch or 0))
        return super()._get_train_sampler(data) if groups is None else groups

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        groups = length_groups(eval_dataset, self.args.eval_batch_size, self.args, lambda: 0)
        return super()._get_eval_sampler(eval_dataset) if groups is None else groups

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of `Trainer`, or the own one of students without layers."""
        if self.is_layer_free and self.optimizer is None:
            self.optimizer = make_optimizer(self.student, self.args)
        return super().create_optimizer(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self.is_layer_free:
            return None  # there is no function for the norm of sparse gradients
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the mean loss over the counted positions, as `Trainer.compute_loss`."""
        loss = self._loss(model, inputs)
        if self.is_layer_free:
            return (loss, {}) if return_outputs else loss
        counted = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(counted, device=loss.device).clamp_min(1)  # 0 for a batch without senses
        if num_items_in_batch is not None and self.args.average_tokens_across_devices and self.args.world_size > 1:
            loss = loss * self.args.world_size  # DDP averages gradients, which are divided by all positions already
        return (loss, {}) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Texts | str | None = None) -> DataLoader:
        """Return the batches to evaluate on. Texts are encoded first, and each of them is in one batch.

        Args:
            eval_dataset: Texts as for the trainer, or a key of its `eval_dataset`. None: its `eval_dataset`.
        """
        data: Any = eval_dataset
        is_own = data is None or isinstance(data, str)
        if not is_own and not any(data is known for known in checks.each(self.eval_dataset)):
            data = self._encode(data, self.args, "evaluated")
        with every_text_once(self.accelerator.dataloader_config, self.args, keeps_workers=is_own):
            return super().get_eval_dataloader(data)

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise a ValueError: distillation has no classes to predict."""
        raise ValueError(
            "there are no predictions in distillation: evaluate(texts) measures the student, student.encode(texts) "
            "uses it"
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Add a batch to the sums of an evaluation. Nothing is gathered: processes may have unequal numbers."""
        with torch.no_grad(), self.compute_loss_context_manager():
            self._loss(model, self._prepare_inputs(inputs))
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as `Trainer.evaluation_loop` does, with means over the positions of all batches and processes.

        Raises:
            ValueError: There are no positions to evaluate on.
        """
        training, self._sums = (self._sums, self._variances), self._no_sums()
        if self.is_layer_free and self._variances is None:  # there are no training texts, whose variances are the unit
            self._variances = cast(TeacherVectors, dataloader.dataset).variances()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            measured = {f"{metric_key_prefix}_{name}": value for name, value in self._means(is_needed=True).items()}
            return output._replace(metrics={**(output.metrics or {}), **measured})
        finally:
            self._sums, self._variances = training

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer.log` does; with a training loss also the means since the last log."""
        if "loss" in logs and self._sums.any():
            logs |= {name: round(value, 4) for name, value in self._means().items() if name != "loss"}
            self._sums = self._no_sums()
        super().log(logs, *args, **kwargs)

    def _no_sums(self) -> Tensor:
        kind = Errors if self.is_layer_free else GenerationCounts if self.is_generative else Counts
        return torch.zeros(len(kind._fields), device=self.args.device)

    def _means(self, is_needed: bool = False) -> dict[str, float]:
        """Compute the means over all processes. If they are needed, there must be a position that is counted."""
        sums = cast(Tensor, self.accelerator.reduce(self._sums, reduction="sum"))
        if is_needed:
            checks.check_counted(sums[1])
        if self.is_layer_free:
            return mean_errors(sums, self.args.loss_weights)
        return generation_means(sums) if self.is_generative else means(sums)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the student's own card instead of that of `Trainer`."""
        if self.is_world_process_zero():
            model_card(self.student.config).save(os.path.join(str(self.args.output_dir), "README.md"))
