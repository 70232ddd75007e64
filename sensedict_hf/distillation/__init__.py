"""Distilling a student from a teacher, a sense dictionary and texts."""
