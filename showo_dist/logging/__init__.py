"""What a run reports about itself: metrics and events in files, progress on screen, wandb."""

from showo_dist.logging.records import read_metrics
from showo_dist.logging.run import RunLogger

__all__ = ["RunLogger", "read_metrics"]
