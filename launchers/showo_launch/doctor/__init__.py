"""Whether hosts are fit for a run: reachable, alike, sharing what they should, and well connected."""

from showo_launch.doctor.cli import main

__all__ = ["main"]
