"""The sense index against other ways to search."""
