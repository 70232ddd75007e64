"""The settings of a build: what the caller chose, and what the dictionary is made from. They never change once they are made."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from numbers import Integral
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..models.configuration_sense_embedding import METHODS, SAMPLE_DTYPES, SENSES_DTYPES, SIMILARITIES
from ..models.fingerprints import tokenizer_fingerprint
from ..models.teachers import Teacher
from ..models.tokenizers import check_offsets

# The result of a build may depend on the versions of these packages.
PACKAGES = ("sensedict_hf", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What the caller of :func:`build_sense_dictionary` chose, checked.

    The names and their order are those of `settings.json` and `manifest.json`. Numpy's integers and booleans become Python's.

    Attributes:
        method: How the number of senses is set: `budget`, `num_senses` or `mcl`. None: chosen by the number that is given.
        num_senses: Senses for every token.
        budget: Senses in all. None with the method `budget`: the default budget.
        max_samples_per_token: Largest number of occurrences of a token that are sampled.
        batch_size: Texts in a forward pass of the teacher.
        similarity: `l2`, `cosine` or `dot`.
        layer: Index into the teacher's hidden states; -1 is the last.
        seed: Seed of the sample.
        sample_dtype: How samples are stored while building.
        senses_dtype: How senses are stored in the finished dictionary.
        keep_samples: Whether the samples stay in the folder.
        prompt_senses: Whether the tokens of the teacher's prompt get senses.

    Raises:
        ValueError: A number is not an integer or out of range, a name is unknown, a flag is no boolean, or the method does not belong
            to the number that is given.
    """

    method: str | None = None
    num_senses: int | None = None
    budget: int | None = None
    max_samples_per_token: int = 1000
    batch_size: int = 32
    similarity: str = "l2"
    layer: int = -1
    seed: int = 0
    sample_dtype: str = "float16"
    senses_dtype: str = "float16"
    keep_samples: bool = False
    prompt_senses: bool = False

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"method": _method(self.method, self.num_senses, self.budget)}
        for name in ("num_senses", "budget"):
            if getattr(self, name) is not None:
                checked[name] = check_integer(name, getattr(self, name), 1)
        for name in ("max_samples_per_token", "batch_size"):
            checked[name] = check_integer(name, getattr(self, name), 1)
        checked["layer"] = check_integer("layer", self.layer)
        checked["seed"] = check_integer("seed", self.seed, 0, 2**32)
        for name, allowed in (
            ("similarity", SIMILARITIES),
            ("sample_dtype", SAMPLE_DTYPES),
            ("senses_dtype", SENSES_DTYPES),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in ("keep_samples", "prompt_senses"):
            checked[name] = check_flag(name, getattr(self, name))
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the only way to set a field of a frozen dataclass

    def record(self) -> dict[str, Any]:
        """The settings as they are written to `settings.json` and `manifest.json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What decides the vectors of a text, apart from the settings: the teacher, the tokenizers, the versions of the libraries.

    Dictionaries and data sets of sense ids record it. The names and their order are those of the files.

    Attributes:
        prompt: Fields of the teacher's :class:`Prompt`, if it has one.
        tokenizer: Fingerprint of the tokenizer whose tokens get senses.
        teacher_tokenizer: Fingerprint of the teacher's tokenizer; None if it is the same one.
        max_length: Length of windows in tokens.
        truncation: Whether longer texts are cut off instead of cut into windows.
        teacher: Name of the teacher.
        teacher_revision: Its revision, if it came from a repository.
        teacher_fingerprint: Fingerprint of its weights and config; only the first process computes it.
        device: Kind of device that the teacher runs on.
        earlier: SHA-256 of the samples of the dictionary that is updated, if any.
        generation: How many times the dictionary was updated.
        versions: Version of each package in `PACKAGES`.
    """

    prompt: dict[str, Any] | None
    tokenizer: str
    teacher_tokenizer: str | None
    max_length: int
    truncation: bool
    teacher: str
    teacher_revision: str | None
    teacher_fingerprint: str | None
    device: str
    earlier: str | None = None
    generation: int = 0
    versions: dict[str, str]

    def record(self) -> dict[str, Any]:
        """The fields as they are written to `settings.json` and `manifest.json`."""
        fields = asdict(self)
        versions = fields.pop("versions")
        return {**fields, **versions}


@dataclass(frozen=True)
class Source:
    """A teacher, the tokenizer whose tokens get senses, and the record of both.

    Attributes:
        teacher: The teacher.
        tokenizer: The tokenizer whose tokens get senses.
        origin: What is recorded about them.
    """

    teacher: Teacher
    tokenizer: PreTrainedTokenizerBase
    origin: Origin

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_length: int,
        truncation: bool = False,
        prompt_senses: bool = False,
    ) -> "Source":
        """Records a teacher and a tokenizer. All processes call it; only the first one computes the teacher's fingerprint.

        Args:
            teacher: The teacher.
            tokenizer: The tokenizer whose tokens get senses. Default: the teacher's.
            max_length: Length of windows in tokens, already checked.
            truncation: Whether longer texts are cut off instead of cut into windows.
            prompt_senses: Whether the tokens of the teacher's prompt get senses.

        Raises:
            ValueError: The tokenizers differ, and one of them does not report character offsets.
        """
        own = tokenizer_fingerprint(tokenizer or teacher.tokenizer)
        theirs = tokenizer_fingerprint(teacher.tokenizer)
        origin = Origin(
            prompt=None if teacher.prompt is None else asdict(teacher.prompt),
            tokenizer=own,
            teacher_tokenizer=None if theirs == own else theirs,
            max_length=max_length,
            truncation=truncation,
            teacher=teacher.name,
            teacher_revision=teacher.revision,
            teacher_fingerprint=teacher.fingerprint() if PartialState().is_main_process else None,
            device=teacher.device.type,
            versions={package: version(package) for package in PACKAGES},
        )
        if tokenizer is None or theirs == own:
            tokenizer = teacher.tokenizer
        else:
            check_offsets(tokenizer, teacher.tokenizer)
        if prompt_senses and teacher.prompt is not None:
            teacher = replace(teacher, prompt=replace(teacher.prompt, pooled="all"))
        return cls(teacher, tokenizer, origin)

    @property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The teacher's tokenizer if its tokens are others than those that get senses, else None."""
        return None if self.origin.teacher_tokenizer is None else self.teacher.tokenizer


def check_integer(name: str, value: Any, least: int | None = None, below: int | None = None) -> int:
    """Checks an integer and returns it as Python's `int`.

    Args:
        name: Name of the argument, for the message.
        value: An integer of Python or numpy. A boolean is none, nor is a float such as `10.0`.
        least: Smallest value that is allowed.
        below: Smallest value that is too large.

    Raises:
        ValueError: The value is no integer or out of range.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if is_integer and (least is None or value >= least) and (below is None or value < below):
        return int(value)
    bounds = "" if least is None else f" of at least {least}"
    bounds += "" if below is None else f" and below {below}"
    raise ValueError(f"{name}={value!r}: give an integer{bounds}, or leave it out for the default")


def check_flag(name: str, value: Any) -> bool:
    """Checks a boolean of Python or numpy and returns it as Python's `bool`.

    Raises:
        ValueError: The value is no boolean.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r}: give True or False, or leave it out for the default")
    return bool(value)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Checks that a name is one of those allowed.

    Raises:
        ValueError: It is not.
    """
    if value not in tuple(allowed):
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")


def _method(method: str | None, num_senses: int | None, budget: int | None) -> str:
    """The method as it is stored: the one named, or else the one that the given number implies.

    Raises:
        ValueError: There is no such method, or it does not belong to the number.
    """
    if num_senses is not None and budget is not None:
        raise ValueError(f"num_senses={num_senses} and budget={budget}: give one of them")
    implied = "budget" if num_senses is None else "num_senses"
    if method is None:
        return implied
    check_choice("method", method, METHODS)
    if method == "num_senses" and num_senses is None:
        raise ValueError("method='num_senses' needs a number: give num_senses=, or leave out method")
    if method != implied and (num_senses is not None or budget is not None):
        given = f"budget={budget}" if num_senses is None else f"num_senses={num_senses}"
        raise ValueError(f"method={method!r} with {given}: these do not belong together, leave out one of them")
    return method
