"""Checks of the hosts of a run before it starts: reachable, alike, sharing their folders, well connected."""

from showo_launch.doctor.cli import main

__all__ = ["main"]
