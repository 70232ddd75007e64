"""How the modules of a student work while it is distilled."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import DataLoaderConfiguration
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Turn a model's dropout off, as distillation has labels enough. Adapters of PEFT keep theirs."""
    # Dropout is a module, or a number that a module passes on to its attention.
    places: list[tuple[nn.Module, str]] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in path:
            places.append((module, "p"))
        places += [
            (module, name) for name, rate in vars(module).items() if "dropout" in name and isinstance(rate, float)
        ]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, 0.0)
        yield
    finally:
        for (module, name), rate in zip(places, before):
            setattr(module, name, rate)


@contextmanager
def sparse_gradients(model: nn.Module, *, is_on: bool) -> Iterator[None]:
    """Let the embeddings of a model have sparse gradients, of the rows that a batch uses.

    Args:
        model: The model.
        is_on: False: nothing is changed.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)] if is_on else []
    tables = [table for table in embeddings if table.weight.requires_grad]  # others may be inside adapters
    before = [table.sparse for table in tables]
    try:
        for table in tables:
            table.sparse = True
        yield
    finally:
        for table, sparse in zip(tables, before):
            table.sparse = sparse


@contextmanager
def added_callback(trainer: Trainer, callback: TrainerCallback) -> Iterator[None]:
    """Let a trainer have one callback more."""
    trainer.add_callback(callback)
    try:
        yield
    finally:
        trainer.remove_callback(callback)


@contextmanager
def every_text_once(
    config: DataLoaderConfiguration, args: TrainingArguments, *, keeps_workers: bool
) -> Iterator[None]:
    """Make data loaders that have each text once, and leave none out.

    Args:
        config: Settings of accelerate.
        args: Settings of the trainer.
        keeps_workers: Whether the processes of a loader may stay for the next one. They would read the same texts.
    """
    before = config.even_batches, args.dataloader_drop_last, args.dataloader_persistent_workers
    config.even_batches = args.dataloader_drop_last = False
    args.dataloader_persistent_workers &= keeps_workers
    try:
        yield
    finally:
        config.even_batches, args.dataloader_drop_last, args.dataloader_persistent_workers = before
