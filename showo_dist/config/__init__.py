"""Configs: a dataclass schema over YAML files with the published keys, checked before use."""

from showo_dist.config.flows import FLOWS, FlowSettings, active_flows, flow_settings
from showo_dist.config.loader import load, load_file, to_yaml
from showo_dist.config.schema import TrainConfig

__all__ = [
    "FLOWS",
    "FlowSettings",
    "TrainConfig",
    "active_flows",
    "flow_settings",
    "load",
    "load_file",
    "to_yaml",
]
