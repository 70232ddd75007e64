"""What `argparse` lacks: a version that costs nothing, help of another library, and arguments in any order."""

import argparse
from importlib.metadata import version
from typing import Any


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
