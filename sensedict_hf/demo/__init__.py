"""The demo: a dictionary, a student and their evaluation, on a thousand sentences inside the package.

Importing this module needs nothing beyond the package's own requirements. :func:`run_demo` needs the extra `demo`.
"""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["read_demo_corpus", "run_demo"]


def read_demo_corpus() -> list[dict[str, Any]]:
    """Read the sentences of the demo. Each uses one of forty ambiguous words in a known sense.

    Returns:
        One dict per sentence, with the keys `text`, `word` (the ambiguous word, as in a lexicon), `start` and `end`
        (its place in the text), `sense`, `topic` and `split` (`train` or `test`).

    Example:
        >>> from sensedict_hf.demo import read_demo_corpus
        >>> row = read_demo_corpus()[0]
        >>> row["word"], row["text"][row["start"] : row["end"]]
        ('bank', 'bank')
    """
    lines = files(__package__).joinpath("corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run_demo(output: str | os.PathLike[str], seed: int = 0) -> dict[str, dict[str, float]]:
    """Build a dictionary, distil students, compare them, and print what happens.

    It takes about five minutes on two CPU cores.

    Args:
        output: Folder for `results.json`, the dictionary, the student and a picture.
        seed: Seed of all random numbers.

    Returns:
        For `teacher`, `quantized` (the teacher with senses instead of its vectors), `skd` (the student) and `mse` (a
        student without senses): `accuracy`, `parameters` and `texts_per_second`. For `senses`: `v_measure`,
        `adjusted_rand` and `megabytes`.

    Raises:
        ImportError: The extra `demo` is not installed.
    """
    try:
        from .run import run
    except ImportError as error:
        raise ImportError(
            f"the demo needs more packages ({error.name} is missing): pip install 'sensedict_hf[demo]'"
        ) from error
    return run(Path(output), seed)
