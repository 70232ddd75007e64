"""The sense index: documents kept as senses, and searched by late interaction."""
