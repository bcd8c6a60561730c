"""Run stages one after the other, each in its own processes; a second call skips the finished ones."""

from showo_dist.recipe.stages import Stage, StageRunner, launched, tool

__all__ = ["Stage", "StageRunner", "launched", "tool"]
