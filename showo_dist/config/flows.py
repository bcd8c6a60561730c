"""The four flows of a training step, as a config describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from showo_dist.config.mixtures import WeightedPaths, as_mixture, as_paths

if TYPE_CHECKING:
    from showo_dist.config.schema import TrainConfig

FLOWS = ("t2i", "lm", "mmu", "recon")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """One flow: how much of it, weighted how, from where."""

    name: str
    coefficient: float
    """Weight of its loss."""
    batch_size: int
    """Samples per rank and micro-step; -1: off."""
    path_key: str
    """Config key that names its data."""
    paths: tuple[str, ...]
    """Paths, URLs or brace patterns of its data, of all sources; empty: not filled in."""
    mixture: tuple[WeightedPaths, ...]
    """The same as weighted sources, where the config gives weights."""

    @property
    def active(self) -> bool:
        """Whether the flow takes part in training."""
        return self.coefficient > 0 and self.batch_size > 0


def flow_settings(config: TrainConfig, flow: str) -> FlowSettings:
    """What the config says about one flow of ``FLOWS``, active or not."""
    name = f"train_{flow}_shards_path_or_url"
    data = getattr(config.dataset.params, name)
    if flow == "recon" and not as_paths(data) and config.dataset.recon_type == "journeydb":
        data = config.dataset.params.train_t2i_shards_path_or_url
    return FlowSettings(
        name=flow,
        coefficient=getattr(config.training, f"{flow}_coeff"),
        batch_size=getattr(config.training, f"batch_size_{flow}"),
        path_key=f"dataset.params.{name}",
        paths=as_paths(data),
        mixture=as_mixture(data),
    )


def active_flows(config: TrainConfig) -> dict[str, FlowSettings]:
    """Flows with a positive coefficient and batch size, in the order of ``FLOWS``."""
    flows = (flow_settings(config, name) for name in FLOWS)
    return {flow.name: flow for flow in flows if flow.active}
