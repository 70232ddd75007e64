"""Measurements, each with a baseline in the same run. From the root of the repository: `python -m benchmarks.NAME --help`."""
