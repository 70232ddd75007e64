"""Ways to distil a teacher, compared at equal cost on nine tasks: `python -m benchmarks.distillation`."""
