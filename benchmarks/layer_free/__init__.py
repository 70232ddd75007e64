"""Students without layers against their teacher and baselines: `python -m benchmarks.layer_free`."""
