"""The five flows of a training step: batch size, loss weight and data (one or several weighted sources)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from showo_dist.config.schema import TrainConfig

_EXPECTED = "expected a path, a list of paths, a list of {urls, weight}, or null"


@dataclass(frozen=True, slots=True)
class WeightedPaths:
    """One source of a mixture: its paths, URLs or brace patterns, and its relative weight."""

    paths: tuple[str, ...]
    weight: float


def as_paths(value: Any) -> tuple[str, ...]:
    """All paths of a config value as a tuple; empty texts (placeholders) and non-texts are left out."""
    values = value if isinstance(value, list) else [value]
    texts = [entry.get("urls") if isinstance(entry, dict) else entry for entry in values]
    flat = [path for text in texts for path in (text if isinstance(text, list) else [text])]
    return tuple(path for path in flat if isinstance(path, str) and path)


def as_mixture(value: Any) -> tuple[WeightedPaths, ...]:
    """The weighted sources of a config value; none where it names a single source."""
    if not isinstance(value, list):
        return ()
    entries = [entry for entry in value if isinstance(entry, dict)]
    return tuple(WeightedPaths(as_paths([e]), float(e.get("weight", 1.0))) for e in entries)


def problems(key: str, value: Any) -> Iterator[str]:
    """One line for everything that is wrong with a config value."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(entry, dict) for entry in values):
        wrong = [reason for entry in values if (reason := _wrong_source(entry))]
        if not isinstance(value, list):
            wrong = [_EXPECTED]
        elif not wrong and not any(source.weight for source in as_mixture(value)):
            wrong = ["expected a weight above 0"]
    else:
        texts = value is None or all(isinstance(entry, str) for entry in values)
        wrong = [] if texts else [_EXPECTED]
    for reason in wrong[:1]:
        yield f"{key} = {value!r}: {reason}"


def _wrong_source(entry: Any) -> str | None:
    """What is wrong with one source of a mixture."""
    if not isinstance(entry, dict):
        return f"{entry!r} stands beside weighted sources; write it as {{urls, weight}} too"
    unknown = set(entry) - {"urls", "weight"}
    urls = entry.get("urls")
    texts = all(isinstance(url, str) for url in (urls if isinstance(urls, list) else [urls]))
    if unknown or not texts or not as_paths([entry]):
        return f"{entry!r}: {_EXPECTED}"
    weight = entry.get("weight", 1.0)
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (number and 0 <= weight < float("inf")):
        return f"weight = {weight!r}: expected a number, 0 or more"
    return None


# The place of a flow is part of its samples' noise: add new ones at the end.
FLOWS = ("t2i", "lm", "mmu", "recon", "edit")


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
    validation_paths: tuple[str, ...]
    """Its held-out data; empty: none."""

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
        validation_paths=as_paths(
            getattr(config.dataset.params, f"validation_{flow}_shards_path_or_url")
        ),
    )


def wants_system_prompt(config: TrainConfig) -> bool:
    """Whether conversations have the system prompt: with CLIP features in the tuning phase, with image codes
    if the config adds it."""
    dataset = config.dataset
    if dataset.und_type == "captioning":
        return False
    clip = config.model.showo.w_clip_vit
    return dataset.und_type == "llava_tuning" if clip else dataset.add_system_prompt


def active_flows(config: TrainConfig) -> dict[str, FlowSettings]:
    """Flows with a positive coefficient and batch size, in the order of ``FLOWS``."""
    flows = (flow_settings(config, name) for name in FLOWS)
    return {flow.name: flow for flow in flows if flow.active}
