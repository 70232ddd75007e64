"""Uploading the student of a training."""

from typing import Any, cast

from huggingface_hub import CommitInfo
from transformers import Trainer

from ..models.modeling_skd_student import SKDStudentPreTrainedModel


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
    kwargs.setdefault("revision", getattr(trainer.args, "hub_revision", None))
    model = cast(SKDStudentPreTrainedModel, trainer.accelerator.unwrap_model(trainer.model))
    name = cast(str, trainer.hub_model_id)
    return model.push_to_hub(name, commit_message=commit_message, private=private, token=token, **kwargs)
