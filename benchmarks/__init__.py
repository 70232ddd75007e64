"""Benchmarks of the package. Run one as `python -m benchmarks.NAME` from the root of the repository."""
