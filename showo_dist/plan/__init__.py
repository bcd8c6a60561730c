"""Predict memory, traffic and time of a run without starting it."""
