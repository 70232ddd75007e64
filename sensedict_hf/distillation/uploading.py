"""Uploading the student of a training."""

from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer, TrainingArguments

from ..models.modeling_skd_base import SKDStudentPreTrainedModel


def create_repository(args: TrainingArguments) -> str:
    """Create the repository of a training before its work begins, so that a wrong name or token is found out.

    Args:
        args: Settings of the training. Its `hub_model_id` is the name; None: that of the output folder.

    Returns:
        The name with its owner.
    """
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    created = HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True)
    return created.repo_id


def push_student(trainer: Trainer, commit_message: str | None, **kwargs: Any) -> CommitInfo | None:
    """Upload the student with its card, to the repository `hub_model_id` of the training.

    Args:
        trainer: The trainer.
        commit_message: Message of the commit.
        kwargs: Other arguments of `SKDStudentModel.push_to_hub`, such as `revision` or `tags`.

    Returns:
        The commit; None in processes that do not upload.
    """
    kwargs.pop("blocking", None)  # an argument of `Trainer.push_to_hub`
    private, token = kwargs.pop("private", None), kwargs.pop("token", None) or trainer.args.hub_token
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token)
    if not trainer.is_world_process_zero():
        return None
    kwargs.setdefault("revision", trainer.args.hub_revision)
    model = cast(SKDStudentPreTrainedModel, trainer.accelerator.unwrap_model(trainer.model))
    name = cast(str, trainer.hub_model_id)
    return model.push_to_hub(name, commit_message=commit_message, private=private, token=token, **kwargs)
