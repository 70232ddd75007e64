"""Texts become what a student learns from: token ids with the teacher's senses, or the teacher's vectors."""

import os
from collections.abc import Callable
from typing import Any

from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase

from ..models.encoding import padding_id
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher
from ..models.tokenization import check_max_length, model_max_length
from .batches import Collator, stream_windows
from .checks import check_prompt, is_encoded
from .generation import GenerationCollator
from .labels import encode_senses
from .layer_free import collate_ragged, encode_for, is_layer_free
from .training_args import SKDTrainingArguments


def encode_texts(
    texts: Any,
    args: SKDTrainingArguments,
    name: str,
    student: SKDStudentModel,
    senses: SenseEmbeddingModel,
    teacher: Teacher | None,
    text_column: str,
) -> Any:
    """Encode texts to token ids and senses, or to the teacher's vectors, in the folder `_encoded/name`.

    Args:
        texts: Texts, or a dataset that is encoded already, which stays as it is.
        args: The settings.
        name: Name of the folder, in `args.output_dir`.
        student: The student.
        senses: The dictionary.
        teacher: The teacher. None: the texts must be encoded.
        text_column: Name of the text column.

    Returns:
        The rows.

    Raises:
        ValueError: A teacher is missing, or the texts do not suit the objective.
    """
    # The teacher can run next to the student only if both read the same tokens.
    is_streamed = isinstance(texts, IterableDataset)
    is_keyed = senses.config.teacher_tokenizer_fingerprint is not None
    if is_keyed and (args.needs_vectors or is_streamed):
        raise ValueError(
            f"objective={args.objective!r}{' on a stream' * is_streamed}: the teacher cannot read the student's "
            "tokens, as the dictionary is for another tokenizer; choose objective='sense' and texts that are not "
            "streamed"
        )
    longest = model_max_length(student.tokenizer, student.config.text_config)
    if teacher is not None and not is_keyed:
        longest = min(longest, teacher.max_window)
    max_length = check_max_length(args.max_length, longest)

    in_folder: dict[str, Any] = {
        "output_dir": os.path.join(str(args.output_dir), "_encoded", name),
        "text_column": text_column,
        "max_length": max_length,
        "batch_size": args.per_device_eval_batch_size,
    }
    if is_layer_free(student):
        return encode_for(student, teacher, texts, **in_folder)

    # Texts, unless they are encoded already.
    has_teacher, longest_row = teacher is not None, args.max_length or longest
    prompt = student.config.prompt
    if is_encoded(texts, senses, args, longest_row, text_column, has_teacher=has_teacher, prompt=prompt):
        return texts
    if teacher is None:
        raise ValueError(
            f"objective={args.objective!r}: texts need a teacher, pass teacher= or datasets from encode_senses (a "
            "teacher that is not needed at every step is freed once the texts of the trainer are encoded)"
        )
    check_prompt(teacher, prompt)
    if is_streamed:
        if args.keeps_vectors:
            raise ValueError("cache_vectors=True on a stream, whose texts are read as they come: leave it out")
        source = teacher.tokenizer, max_length, text_column, teacher.prompt
        return stream_windows(texts, *source, is_endless=name == "train")
    return encode_senses(
        teacher,
        senses.to(teacher.device),  # type: ignore[arg-type]
        texts,
        **in_folder,
        overwrite=True,
        top_k=args.label_top_k,
        temperature=args.label_temperature,
        only_tokens=args.needs_vectors,
        keep_vectors=args.keeps_vectors,
    )


def make_collator(
    args: SKDTrainingArguments,
    student: SKDStudentModel,
    senses: SenseEmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_generative: bool,
    has_teacher: bool,
) -> Callable[[Any], Any]:
    """Return what makes batches of the rows that :func:`encode_texts` returns.

    Args:
        args: The settings.
        student: The student.
        senses: The dictionary.
        tokenizer: The tokenizer of the student.
        is_generative: Whether the student generates text.
        has_teacher: Whether the teacher runs at every step.
    """
    if is_layer_free(student):
        return collate_ragged
    if is_generative:
        return GenerationCollator(padding_id(tokenizer, student))
    # Without the teacher's vectors only positions whose token has senses teach something.
    has_senses = (senses.offsets.diff() > 0).cpu() if args.terms == ("sense",) else None
    is_labelled = not has_teacher and not args.needs_vectors
    return Collator(padding_id(tokenizer, student), senses.config, has_senses, is_labelled)
