"""From text to a sense dictionary."""
