"""The code of the `sensedict` subcommands. Their options are declared in the package `sensedict_cli`."""

from sensedict_cli import main

__all__ = ["main"]
