"""Runs the command line as `python -m sensedict_hf` or `accelerate launch -m sensedict_hf`."""

from sensedict_cli import main

raise SystemExit(main())
