"""What `argparse` lacks: defaults in help, a version that costs nothing, help of another library, any order."""

import argparse
from importlib.metadata import version
from typing import Any

import shtab

# What a shell completes, by the placeholder that help shows for a value.
COMPLETIONS = {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE, "MODEL": shtab.DIRECTORY, "STUDENT": shtab.DIRECTORY}


def add(container: argparse._ActionsContainer, name: str, metavar: str, help: str, **settings: Any) -> None:
    """Add an argument. Its help names the default, if there is one; a shell can complete files and folders."""
    if settings.get("default") is not None:
        help += " (default: %(default)s)"
        settings.setdefault("type", type(settings["default"]))
    action = container.add_argument(name, metavar=metavar or None, help=help, **settings)
    if metavar in COMPLETIONS:
        action.complete = COMPLETIONS[metavar]  # type: ignore[attr-defined]  # read by shtab


def add_flag(container: argparse._ActionsContainer, name: str, help: str) -> None:
    """Add an option that is off by default: `--name` or, as argument files write it, `--name=true`."""
    container.add_argument(name, metavar="true|false", help=help, type=boolean, nargs="?", const=True, default=False)


def boolean(text: str) -> bool:
    """Read `true` or `false`, or another spelling that transformers accepts."""
    word = text.lower()
    if word not in ("true", "t", "yes", "y", "1", "false", "f", "no", "n", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return word[0] in "ty1"


class Version(argparse.Action):
    """Prints the version of the installed package."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"sensedict {version('sensedict_hf')}")
        parser.exit()


class AnyOrder(argparse.ArgumentParser):
    """Takes an optional positional argument also after options, as in `search DIR --top-k 3 QUESTION`."""

    _is_inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_inside:  # called by the method below
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


class HelpAll(argparse.Action):
    """Prints the help of `distill` with the options that transformers adds, which needs torch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from sensedict_hf.cli.distill import trainer_help

        parser.print_help()
        print(f"\n{trainer_help()}")
        parser.exit()
