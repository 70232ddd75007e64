"""Builds sense dictionaries from text."""
