"""Stages that run one after the other, each in processes of its own, and can go on where they were."""

from showo_dist.recipe.stages import Stage, StageRunner, launched, tool

__all__ = ["Stage", "StageRunner", "launched", "tool"]
