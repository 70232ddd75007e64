"""The `sensedict` command: it reads the command line, and calls the function that runs a subcommand.

It is not part of the package `sensedict_hf`, because importing any part of that imports torch. Help, version and shell
completion need only what is here. The code of a subcommand is imported when it runs.
"""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from .options import make_parser

# The module in sensedict_hf.cli that has the function of a subcommand.
MODULES = {"card": "card", "distill": "distill", "evaluate": "evaluate", "export": "export", "index": "index"}
MODULES |= dict.fromkeys(("build", "convert", "info", "inspect", "merge", "verify"), "dictionaries")

# Other accepted names of options, which help does not show: those in transformers and in its other tools.
OTHER_NAMES = {
    ("distill", "--num-train-epochs"): "--epochs",
    ("distill", "--output-dir"): "--output",
    ("distill", "--per-device-train-batch-size"): "--batch-size",
}
# --name or --name=value. A longer text that starts with -- is a value.
OPTION = re.compile(r"--[a-zA-Z][\w-]*(?==|\Z)")

# What a wrong input, or a machine without room, raises. The others are of libraries that are not imported here.
INPUT_ERRORS = (ValueError, OSError, ImportError, MemoryError, OverflowError)
FOREIGN_ERRORS = (
    "SafetensorError",
    "OutOfMemoryError",
    "DatasetGenerationError",
    "ConnectError",
    "ConnectTimeout",
    "MilvusException",
)
# Options that name a model or a dictionary: a folder, or a name on the Hub.
SOURCES = ("teacher", "model", "senses", "tokenizer", "backbone", "update", "student")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `sensedict` command.

    Args:
        arguments: The command line without the program's name. Default: `sys.argv[1:]`.

    Returns:
        The exit status: 0; 2 after an error in the input, which is printed in one line; 130 after Ctrl-C; 1 after a
        fault of the program, with a traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = argparse.Namespace()
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that cannot show a character gets its escape, not an error
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sensedict_hf").setLevel(logging.INFO)
    try:
        if given[:1] == ["distill"] and Path(*given[1:2]).suffix in (".yaml", ".yml", ".json"):
            from sensedict_hf.cli.distill import read_argument_file

            given[1:2] = read_argument_file(given[1])
        parser = make_parser()
        options, others = parser.parse_known_args(rename_options(given))
        if options.command == "distill":
            options.trainer_arguments = others  # parsed by transformers when the command runs
        elif others:
            help_command = f"'sensedict {options.command} --help'"
            parser.error(f"unrecognized arguments: {' '.join(others)}; {help_command} lists the options")
        run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as for programs that the signal SIGPIPE ends
    except KeyboardInterrupt:
        print(f"sensedict {given[0]}: interrupted; the same command goes on where it can", file=sys.stderr)
        return 130
    except Exception as error:
        if lost_another_process(error):
            print(f"sensedict {given[0]}: another process of this launch has ended, see what it said", file=sys.stderr)
            return 2
        if isinstance(error, INPUT_ERRORS) or type(error).__name__ in FOREIGN_ERRORS:
            print(f"sensedict {given[0]}: {describe_error(error, options)}", file=sys.stderr)
            return 2
        traceback.print_exc()
        print(
            f"sensedict {given[0]}: this is a fault of the program, not of your input: please report it, with the "
            "lines above, the command and the output of 'sensedict --version'",
            file=sys.stderr,
        )
        return 1
    return 0


def lost_another_process(error: Exception) -> bool:
    """Return whether an error says that another process of a distributed run has died."""
    kind, message = type(error).__name__, str(error)
    return kind in ("DistBackendError", "DistNetworkError") or kind == "RuntimeError" and "by peer" in message


def describe_error(error: Exception, options: argparse.Namespace) -> str:
    """Put the message of an error in one line, and name the models that are no folders if transformers found none."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno is None:  # errors of the system have a number
        given = [getattr(options, name, None) or [] for name in SOURCES]
        names = [name for value in given for name in ([value] if isinstance(value, str) else value)]
        missing = [name for name in names if not Path(name).exists()]
        if missing:
            message += f" (there is no folder {' or '.join(missing)} here)"
    return message


def run(options: argparse.Namespace) -> None:
    """Import the code of the chosen subcommand and call it."""
    if "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ:  # one switch for the bars of all libraries
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", os.environ["HF_HUB_DISABLE_PROGRESS_BARS"])
    if options.quiet:
        silence()
    if options.command == "demo":
        from sensedict_hf.demo import run_demo

        run_demo(Path(options.output), seed=options.seed)
    else:
        module = import_module(f"sensedict_hf.cli.{MODULES[options.command]}")
        getattr(module, options.command)(options)


def silence() -> None:
    """Show warnings, but neither progress nor bars."""
    from datasets import disable_progress_bars
    from huggingface_hub.utils import disable_progress_bars as disable_hub_bars
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("sensedict_hf").setLevel(logging.WARNING)
    for disable in (disable_progress_bars, disable_hub_bars, disable_progress_bar):
        disable()


def rename_options(arguments: Sequence[str]) -> list[str]:
    """Spell options with hyphens instead of underscores, and replace other names by the ones that help shows."""
    renamed = list(arguments)
    options_end = renamed.index("--") if "--" in renamed else len(renamed)
    for place, argument in enumerate(renamed[:options_end]):
        found = OPTION.match(argument)
        if found:
            name = found[0].replace("_", "-")
            renamed[place] = OTHER_NAMES.get((renamed[0], name), name) + argument[found.end() :]
    return renamed
