"""The `sensedict` command."""
