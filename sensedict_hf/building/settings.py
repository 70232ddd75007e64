"""What a build depends on: the settings of the caller, the teacher and the tokenizer, all of them frozen."""

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..models.arguments import check_choice, check_flag, check_integer
from ..models.configuration_sense_embedding import KEYS, SAMPLE_DTYPES, SENSES_DTYPES, SIMILARITIES
from ..models.fingerprints import tokenizer_fingerprint
from ..models.teachers import Teacher
from ..models.tokenization import check_offsets

METHODS = ("budget", "senses_per_token", "mcl")
# The result of a build may depend on the versions of these packages.
PACKAGES = ("sensedict_hf", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """The checked settings that the caller of :func:`build_sense_dictionary` chose.

    The order of the fields is their order in `settings.json` and `manifest.json`. Numpy's integers and booleans become
    Python's.

    Attributes:
        method: How the number of senses is set: `budget`, `senses_per_token` or `mcl`. None: `senses_per_token` if
            that is given, else `budget`.
        senses_per_token: Senses for every token.
        budget: Senses in all. None with the method `budget`: the default budget.
        max_samples_per_token: The most occurrences of a token that are sampled.
        batch_size: Windows of text in a forward pass of the teacher.
        similarity: `l2`, `cosine` or `dot`.
        layer: Index into the teacher's hidden states; -1 is the last.
        key: Which token a hidden state belongs to, `input` or `next`.
        seed: Seed of the sample.
        sample_dtype: How samples are stored while building: `float16` or `float32`.
        senses_dtype: How senses are stored in the dictionary: `float16`, `bfloat16`, `float32` or `int8`.
        keep_samples: Whether the samples stay in the folder.
        prompt_senses: Whether the tokens of the teacher's prompt get senses.

    Raises:
        ValueError: A number is no integer or out of range.
        ValueError: There is no such method, similarity, key or dtype.
        ValueError: A flag is no boolean.
        ValueError: The method does not go with the number that is given.
    """

    method: str | None = None
    senses_per_token: int | None = None
    budget: int | None = None
    max_samples_per_token: int = 1000
    batch_size: int = 32
    similarity: str = "l2"
    layer: int = -1
    key: str = "input"
    seed: int = 0
    sample_dtype: str = "float16"
    senses_dtype: str = "float16"
    keep_samples: bool = False
    prompt_senses: bool = False

    def __post_init__(self) -> None:
        # Check each field, and convert numpy's types.
        checked: dict[str, Any] = {"method": _method(self.method, self.senses_per_token, self.budget)}
        for name in ("senses_per_token", "budget"):
            if getattr(self, name) is not None:
                checked[name] = check_integer(name, getattr(self, name), 1, 1 << 63)
        for name in ("max_samples_per_token", "batch_size"):
            checked[name] = check_integer(name, getattr(self, name), 1, 1 << 63)
        checked["layer"] = check_integer("layer", self.layer)
        checked["seed"] = check_integer("seed", self.seed, 0, 2**32)
        for name, allowed in (
            ("similarity", SIMILARITIES),
            ("key", KEYS),
            ("sample_dtype", SAMPLE_DTYPES),
            ("senses_dtype", SENSES_DTYPES),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in ("keep_samples", "prompt_senses"):
            checked[name] = check_flag(name, getattr(self, name))

        # A frozen dataclass lets its own fields be set only this way.
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def record(self) -> dict[str, Any]:
        """Return the settings as they are written to `settings.json` and `manifest.json`: the key if it is `next`."""
        fields = asdict(self)
        if self.key == "input":
            del fields["key"]
        return fields


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A record of everything that the vectors of a text depend on: teacher, tokenizers, versions of libraries.

    It is written to `settings.json` and `manifest.json` of dictionaries and of datasets of sense ids, in the order of
    the fields.

    Attributes:
        prompt: Fields of the teacher's :class:`Prompt`, if it has one.
        tokenizer: Fingerprint of the tokenizer whose tokens get senses.
        teacher_tokenizer: Fingerprint of the teacher's tokenizer; None if it is the same one.
        max_length: Length of windows in tokens.
        truncation: Whether longer texts are cut off instead of cut into windows.
        teacher: Name of the teacher.
        teacher_revision: Its revision, if it came from a repository.
        teacher_fingerprint: Fingerprint of its weights and config. None in all processes but the first.
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
        """Return the fields as they are written to `settings.json` and `manifest.json`."""
        fields = asdict(self)
        versions = fields.pop("versions")
        return {**fields, **versions}


@dataclass(frozen=True)
class Source:
    """A teacher and the tokenizer whose tokens get senses, with the record of both.

    Attributes:
        teacher: The teacher.
        tokenizer: The tokenizer whose tokens get senses.
        origin: The record.
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
        """Make a source, with the record of its teacher and tokenizer.

        All processes of a launch must call it. Only the first one computes the teacher's fingerprint, for which it
        reads all weights.

        Args:
            teacher: The teacher.
            tokenizer: The tokenizer whose tokens get senses. Default: the teacher's.
            max_length: Length of windows in tokens, already checked.
            truncation: Whether longer texts are cut off instead of cut into windows.
            prompt_senses: Whether the tokens of the teacher's prompt get senses.

        Returns:
            The source. With `prompt_senses` all tokens of its teacher's prompt are pooled.

        Raises:
            ValueError: The tokenizers differ, and one of them does not report character offsets.
        """
        tokenizer = teacher.tokenizer if tokenizer is None else tokenizer
        own = tokenizer_fingerprint(tokenizer)
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
        if theirs == own:
            tokenizer = teacher.tokenizer
        else:
            check_offsets(tokenizer, teacher.tokenizer)  # tokens are aligned by the characters that they cover
        if prompt_senses and teacher.prompt is not None:
            teacher = replace(teacher, prompt=replace(teacher.prompt, pooled="all"))
        return cls(teacher, tokenizer, origin)

    @property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The teacher's tokenizer if it differs from `tokenizer`, else None."""
        return None if self.origin.teacher_tokenizer is None else self.teacher.tokenizer


def _method(method: str | None, senses_per_token: int | None, budget: int | None) -> str:
    """Return the given method, or else the method that the given number implies.

    Raises:
        ValueError: There is no such method, or it does not go with the number.
    """
    if senses_per_token is not None and budget is not None:
        raise ValueError(f"senses_per_token={senses_per_token} and budget={budget}: give one of them")
    implied = "budget" if senses_per_token is None else "senses_per_token"
    if method is not None:
        check_choice("method", method, METHODS)
        if method == "senses_per_token" and senses_per_token is None:
            raise ValueError("method='senses_per_token' needs a number: give senses_per_token=, or leave out method")
        if method != implied and (senses_per_token is not None or budget is not None):
            given = f"budget={budget}" if senses_per_token is None else f"senses_per_token={senses_per_token}"
            raise ValueError(f"method={method!r} with {given}: these do not belong together, leave out one of them")
    return method or implied
