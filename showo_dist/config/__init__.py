"""Configs: a dataclass schema over YAML files with the published keys, checked before use."""

from typing import TYPE_CHECKING, Any

from showo_dist.config.flows import (
    FLOWS,
    FlowSettings,
    active_flows,
    flow_settings,
    wants_system_prompt,
)
from showo_dist.config.schema import TrainConfig

if TYPE_CHECKING:
    from showo_dist.config.loader import load, load_file, to_yaml

__all__ = [
    "FLOWS",
    "FlowSettings",
    "TrainConfig",
    "active_flows",
    "flow_settings",
    "load",
    "load_file",
    "to_yaml",
    "wants_system_prompt",
]


def __getattr__(name: str) -> Any:
    """Import the loader at its first use: it needs omegaconf, which models and their benchmarks do not."""
    if name not in ("load", "load_file", "to_yaml"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from showo_dist.config import loader

    return getattr(loader, name)
