"""Refuse shards whose encodings fit in size only: by other networks, or made for another flow."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from showo_data.shards.names import braces
from showo_dist.config import TrainConfig, active_flows
from showo_dist.config.flows import FlowSettings
from showo_dist.models.encoders import RECORD, ClipTower, encoder_digest
from showo_dist.models.magvitv2 import MAGVITv2

# What a flow needs of a setting of ``encode``, and the key, or the flow, that decides it.
Needs = dict[str, tuple[Any, str]]


def check_encoded(config: TrainConfig, vq: MAGVITv2, clip: ClipTower | None) -> None:
    """Compare the record of ``showo-dist encode`` beside local shards with what the run would compute.

    Shards without a record, and remote ones, are not compared.

    Args:
        config: of the run.
        vq, clip: as they were loaded, before any change of dtype, which decides their digests.

    Raises:
        ValueError: one line that names the key, the record and the setting.
    """

    @cache
    def digest(name: str) -> str:
        return encoder_digest(vq.encoder if name == "tokenizer" or clip is None else clip)

    for name, flow in active_flows(config).items():
        for record, stored in _records(flow):
            for setting, (wanted, key) in _needs(config, name, stored, digest).items():
                if (found := stored.get(setting, wanted)) != wanted:
                    raise ValueError(
                        f"{flow.path_key}: the shards were encoded with {setting} = {_shown(found)} "
                        f"({record}), but {key} needs {_shown(wanted)}; encode them to another folder, or "
                        "read the images"
                    )


def _needs(
    config: TrainConfig, flow: str, stored: dict[str, Any], digest: Callable[[str], str]
) -> Needs:
    """What a flow needs of those settings that decide what it reads."""
    reads_features = config.model.showo.w_clip_vit and (
        flow == "recon" or (flow == "mmu" and config.dataset.und_type != "captioning")
    )
    needs: Needs = {}
    if stored.get("tokenizer") and (flow == "recon" or not reads_features):
        squash = flow == "recon" and config.dataset.recon_type == "mid"
        key = "dataset.recon_type (journeydb is the same for square images)" if squash else flow
        needs["tokenizer"] = (digest("tokenizer"), "model.vq_model")
        needs["resize"] = ("squash" if squash else "short", key)
    if stored.get("clip") and reads_features:
        needs["clip"] = (digest("clip"), "model.clip_model_name")
        needs["clip_sees"] = ("tokenized" if flow == "recon" else "processed", flow)
    if stored.get("condition_scale") and flow == "recon" and not reads_features:
        needs["condition_scale"] = (config.training.down_scale, "training.down_scale")
        needs["resize_back"] = (config.training.resize_back, "training.resize_back")
    return needs


def _records(flow: FlowSettings) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The records beside a flow's local shards: file and settings."""
    local = [path for path in (*flow.paths, *flow.validation_paths) if "://" not in path]
    shards = [name for path in local for name in braces(path, flow.path_key)]
    for folder in sorted({Path(shard).parent for shard in shards}):
        if (record := folder / RECORD).is_file():
            yield record, json.loads(record.read_text())


def _shown(value: Any) -> str:
    """A setting in a message; a digest by its first digits."""
    return str(value)[:12]
