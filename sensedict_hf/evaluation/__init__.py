"""Scores of frozen embeddings and of language models, and the tasks that are scored."""
