"""From text to a student."""
