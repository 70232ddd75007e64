"""The options for loading a model, which several subcommands share."""

import argparse
import json
from typing import Any

# Options of :func:`load_teacher` that `sensedict_cli` declares, under their names there.
LOADING = (
    "bidirectional",
    "adapters",
    "pooling",
    "instruction",
    "template",
    "teacher_dtype",
    "device_map",
    "quantization_config",
)


def is_plain(options: argparse.Namespace) -> bool:
    """Return whether a model is loaded as it was trained; `trust_remote_code` does not count."""
    return all(getattr(options, name) is None for name in LOADING)


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :func:`load_teacher` that the options of a subcommand give.

    Raises:
        ValueError: The quantization settings are not JSON.
    """
    given = {name: getattr(options, name) for name in (*LOADING, "trust_remote_code")}
    given["dtype"] = given.pop("teacher_dtype")
    if given["template"]:
        given["template"] = given["template"].replace("\\n", "\n")  # a new line is hard to type in a shell
    if text := given["quantization_config"]:
        try:
            given["quantization_config"] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"quantization_config={text!r} is not JSON ({error}): write it as in "
                """'{"quant_method": "bitsandbytes", "load_in_4bit": true}'"""
            ) from error
    return given
