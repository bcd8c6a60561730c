"""Refuse shards whose encodings fit in size only: by other networks, or made for another flow."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from showo_data.shards.names import braces
from showo_dist.config import TrainConfig, active_flows
from showo_dist.config.flows import FlowSettings
from showo_dist.models.encoders import RECORD, ClipTower, encoder_digest
from showo_dist.models.magvitv2 import MAGVITv2

# What a run needs of a setting of ``encode``, and the key that decides it.
Needs = dict[str, tuple[Any, str]]


def check_encoded(config: TrainConfig, vq: MAGVITv2, clip: ClipTower | None) -> None:
    """Compare the record of ``showo-dist encode`` beside local shards with what the run would compute.

    Shards without a record, and remote ones, are not compared.

    Args:
        config: of the run.
        vq, clip: as they were loaded, before any change of dtype, which decides their digests.

    Raises:
        ValueError: one line that names the key, the folder and the setting.
    """
    tokenizer = cache(lambda: encoder_digest(vq.encoder))
    tower = cache(lambda: encoder_digest(clip) if clip else None)
    for name, flow in active_flows(config).items():
        for folder, stored in _records(flow):
            needs = _needs(config, name, stored)
            if "resize" in needs and stored["tokenizer"] != tokenizer():
                raise ValueError(_line(flow, folder, "another --tokenizer than model.vq_model's"))
            if "clip_sees" in needs and stored["clip"] != tower():
                raise ValueError(_line(flow, folder, "another --clip than model.clip_model_name"))
            for setting, (wanted, key) in needs.items():
                if stored[setting] != wanted:
                    option = f"--{setting.replace('_', '-')} {stored[setting]}"
                    needed = f"{option}, but {key} needs {wanted}"
                    raise ValueError(_line(flow, folder, needed))


def _needs(config: TrainConfig, flow: str, stored: dict[str, Any]) -> Needs:
    """What a flow needs of those settings that decide what it reads."""
    reads_features = config.model.showo.w_clip_vit and (
        flow == "recon" or (flow == "mmu" and config.dataset.und_type != "captioning")
    )
    needs: Needs = {}
    if stored["tokenizer"] and (flow == "recon" or not reads_features):
        squash = flow == "recon" and config.dataset.recon_type == "mid"
        key = "dataset.recon_type (journeydb is the same for square images)" if squash else flow
        needs["resize"] = ("squash" if squash else "short", key)
    if stored["clip"] and reads_features:
        needs["clip_sees"] = ("tokenized" if flow == "recon" else "processed", flow)
    if stored["condition_scale"] and flow == "recon" and not reads_features:
        needs["condition_scale"] = (config.training.down_scale, "training.down_scale")
        needs["resize_back"] = (config.training.resize_back, "training.resize_back")
    return needs


def _records(flow: FlowSettings) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of a flow's local shards that have a record, and the record."""
    local = [path for path in (*flow.paths, *flow.validation_paths) if "://" not in path]
    shards = [name for path in local for name in braces(path, flow.path_key)]
    for folder in sorted({Path(shard).parent for shard in shards}):
        if (record := folder / RECORD).is_file():
            yield folder, json.loads(record.read_text())


def _line(flow: FlowSettings, folder: Path, difference: str) -> str:
    return (
        f"{flow.path_key}: the shards in {folder} were encoded with {difference}; encode them to another "
        "folder, or read the images"
    )
