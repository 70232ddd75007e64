"""The code of the `sensedict` subcommands. Their options are declared in the top-level module `sensedict_cli`."""

from sensedict_cli import main

__all__ = ["main"]
