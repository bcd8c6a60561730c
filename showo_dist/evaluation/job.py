"""One checkpoint under one framework: what every evaluation is given."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from showo_dist.evaluation.record import claim, weights_digest
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.runtime.ranks import Ranks


@dataclass(frozen=True)
class Job:
    """A checkpoint to evaluate.

    Attributes:
        pipeline: its models.
        arguments: the command line.
        checkpoint: as the command line has it.
        out: folder for everything it leaves.
        ranks: those that share the work.
    """

    pipeline: Pipeline
    arguments: argparse.Namespace
    checkpoint: str
    out: Path
    ranks: Ranks

    def options(self) -> SamplingOptions:
        """The checkpoint's own options where the command line names no others."""
        changes: dict[str, Any] = {
            "steps": self.arguments.steps,
            "guidance": self.arguments.guidance,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self.pipeline.options, **given)

    def _digest(self) -> str:
        networks = (self.pipeline.model, self.pipeline.vq, self.pipeline.clip)
        return weights_digest(*(network for network in networks if network is not None))

    def claim(self, settings: Mapping[str, object], owned: tuple[str, ...]) -> None:
        """Take the output folder for these settings; see :func:`showo_dist.evaluation.record.claim`.

        Raises:
            ValueError: it holds another evaluation.
        """
        made_with = {
            "framework": self.arguments.framework,
            "checkpoint": self.checkpoint,
            "weights": self._digest() if self.ranks.is_first else "",
            **settings,
        }
        claim(self.out, made_with, owned, self.arguments.replace, self.ranks)
