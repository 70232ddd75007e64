"""`python -m sensedict_hf`, and `accelerate launch -m sensedict_hf`."""

from .cli import main

raise SystemExit(main())
