"""Memory and speed of a student of Llama-3-8B: `python -m benchmarks.llama_footprint`."""
