"""What a checkpoint can do, measured: images generated from prompts and scored, questions answered."""

from showo_dist.evaluation.cli import main

__all__ = ["main"]
