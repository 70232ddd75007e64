"""`python -m sensedict_hf`, and `accelerate launch -m sensedict_hf`."""

from .cli.main import main

raise SystemExit(main())
