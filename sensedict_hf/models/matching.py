"""Whether a dictionary and a model belong together."""

from dataclasses import asdict

from transformers.utils import logging

from .arguments import check_kind
from .attention import probe_attention
from .configuration_sense_embedding import SenseEmbeddingConfig
from .loading import check_dictionary
from .modeling_sense_embedding import SenseEmbeddingModel
from .teachers import Teacher
from .tokenization import check_max_length, count_embeddings

logger = logging.get_logger(__name__)


def check_name(senses: SenseEmbeddingConfig, name: str) -> None:
    """Warn if a dictionary was built from a model of another name.

    Args:
        senses: Config of the dictionary.
        name: Name of the model.
    """
    if senses.base_model_name_or_path != name:
        logger.warning_once(
            f"the dictionary was built from {senses.base_model_name_or_path}, the teacher is {name}: if they are not "
            "the same model, the senses are meaningless"
        )


def check_teacher(senses: SenseEmbeddingModel, teacher: Teacher) -> None:
    """Check that a dictionary may have been built from a teacher. Other weights and prompts give only a warning.

    Args:
        senses: The dictionary.
        teacher: The teacher.

    Raises:
        ValueError: Width, number of layers, attention or tokenizer of the teacher do not fit the dictionary.
    """
    check_dictionary(senses)
    check_kind("teacher", teacher, Teacher, "a Teacher, such as load_teacher(name)")
    width, depth = teacher.model.config.hidden_size, teacher.model.config.num_hidden_layers
    own = senses.config.hidden_size
    if own != width and senses.config.num_senses:
        raise ValueError(
            f"the senses are {own} wide, {teacher.name} is {width}: the dictionary was built from "
            f"{senses.config.base_model_name_or_path}; build one from this teacher"
        )
    if own != width:
        raise ValueError(f"the student is {own} wide, {teacher.name} is {width}: make a student from this teacher")
    if not -depth - 1 <= senses.config.layer <= depth:
        raise ValueError(
            f"the senses are of layer {senses.config.layer}, {teacher.name} has only {depth} layers: build a "
            "dictionary from this teacher"
        )
    # A copy of the teacher may have another name. Another model may have the same one, as of a folder only the last
    # part of its path counts.
    fingerprint, has_other_name = teacher.fingerprint(), senses.config.base_model_name_or_path != teacher.name
    if has_other_name and senses.config.base_model_fingerprint != fingerprint:
        check_name(senses.config, teacher.name)
    elif not has_other_name and has_other_weights(senses.config, fingerprint):
        logger.warning_once(
            f"the dictionary was built from {teacher.name} with other weights or in another dtype: if the teacher is "
            "not the same model, its senses mean nothing: build a dictionary from it"
        )
    senses.config.check_attention(teacher.name, teacher.attention)
    before, now = senses.config.prompt, teacher.prompt and asdict(teacher.prompt)
    if before != now:
        logger.warning_once(
            f"the dictionary was built with prompt={before}, the teacher has prompt={now}: the senses may fit its "
            "vectors less well"
        )
    senses.config.check_teacher_tokenizer(teacher.tokenizer)


def has_other_weights(senses: SenseEmbeddingConfig, fingerprint: str) -> bool:
    """Return whether a dictionary is known to be of other weights than a teacher has.

    Args:
        senses: Config of the dictionary.
        fingerprint: That of the teacher. Its last part is of the weights.
    """
    own = senses.base_model_fingerprint
    return own is not None and own.rpartition("-")[2] != fingerprint.rpartition("-")[2]


def window_length(senses: SenseEmbeddingModel, longest: int) -> int:
    """Return the length in tokens of the windows in which texts are read for a dictionary.

    It is that of the build, so that a token has the same context, as far as the model takes it.

    Args:
        senses: The dictionary.
        longest: The longest input of the model in tokens.
    """
    return min(senses.config.window_length or check_max_length(None, longest), longest)


def check_predicts(model: Teacher) -> None:
    """Check that the states of a model can belong to the next token, as `key="next"` has it.

    Args:
        model: A teacher, or the backbone of a student.

    Raises:
        ValueError: Its states may have seen the next token, because it is not causal.
    """
    attention = model.attention or probe_attention(model.model)
    if attention != "causal":
        raise ValueError(
            f"key='next' with {model.name}, whose attention is {attention}: its states have seen the next token; load "
            "a decoder with bidirectional=False (load_teacher), or choose key='input'"
        )


def check_backbone(senses: SenseEmbeddingModel, backbone: Teacher) -> None:
    """Check that a backbone has an embedding for every token that has senses, and is causal if states predict.

    Args:
        senses: The sense dictionary.
        backbone: The model that is to read the dictionary's tokens.

    Raises:
        ValueError: A token with senses has no embedding, or the senses are of the next token and the backbone is not
            causal.
    """
    if senses.config.key == "next":
        check_predicts(backbone)
    count = count_embeddings(backbone.model)
    if (senses.offsets[count:].diff() > 0).any():
        raise ValueError(
            f"{backbone.name} has embeddings for {count} tokens, but the dictionary has senses of others: give the "
            "model its own tokenizer, or resize its embeddings to this one"
        )
