"""The log of a run: metrics, events and images in files, progress on the screen, wandb."""

from showo_dist.logging.records import read_metrics
from showo_dist.logging.run import RunLogger

__all__ = ["RunLogger", "read_metrics"]
