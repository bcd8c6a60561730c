"""What a checkpoint can do, measured: pictures painted from prompts and scored, questions answered."""

from showo_dist.evaluation.cli import main

__all__ = ["main"]
