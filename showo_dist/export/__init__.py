"""Checkpoints to model folders and back, and what is inside of either."""
