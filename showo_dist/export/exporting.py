"""A checkpoint, of any ZeRO stage and number of ranks, as a model folder that others can load."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from showo_dist.export.writing import SafetensorsWriter, TorchWriter
from showo_dist.models.folder import (
    CONFIG_NAME,
    UNWRAPPED,
    check_fit,
    inner_folder,
    local_folder,
    read_json,
)
from showo_dist.models.pretrained import empty_model, read_config
from showo_dist.models.weights import LORA_KEY, adapter_record, open_weights

LAYOUTS = ("showo", "safetensors")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Track = Callable[[Iterable[str]], Iterable[str]]


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder aside that becomes ``out`` when all went well, and disappears when not.

    Raises:
        ValueError: ``out`` exists.
    """
    if out.exists():
        raise ValueError(f"--out {out}: exists already; remove it or name another folder")
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def export(
    source: str | Path,
    out: Path,
    *,
    layout: str = "safetensors",
    dtype: str | None = None,
    merge_lora: bool = False,
    shard_bytes: int = 2 * 10**9,
    track: Track = iter,
) -> None:
    """Write a model folder.

    Args:
        source: checkpoint, model folder or hub id.
        out: must not exist.
        layout: ``showo``: ``config.json`` and ``unwrapped_model/pytorch_model.bin``, as the published
            training code leaves it; ``safetensors``: ``config.json`` and ``model.safetensors``, or shards.
        dtype: of :data:`DTYPES`; None keeps what is there (fp32 in a checkpoint).
        merge_lora: add adapters to the weights that they were trained over.
        shard_bytes: largest safetensors shard, and what is in memory at most.
        track: wraps the names while they are written, to show progress.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read or is damaged, ``out`` exists, or there are
            adapters and ``merge_lora`` is false.
    """
    folder = local_folder(source)
    if adapter_record(folder) and not merge_lora:
        raise ValueError(f"{folder}: holds LoRA adapters; add --merge-lora to merge and export")
    expected = empty_model(read_config(folder)).state_dict()
    weights = open_weights(folder)
    check_fit(folder, expected, weights.meta)
    with fresh_folder(out) as aside:
        inner = aside / UNWRAPPED if layout == "showo" else aside
        inner.mkdir(exist_ok=True)
        for place in {aside, inner}:
            (place / CONFIG_NAME).write_text(_whole_config(folder))
        writer: SafetensorsWriter | TorchWriter
        writer = TorchWriter(inner) if layout == "showo" else SafetensorsWriter(inner, shard_bytes)
        for name in track(expected):
            tensor = weights.read(name)
            writer.add(name, tensor.to(DTYPES[dtype]) if dtype else tensor)
        writer.close()


def _whole_config(folder: Path) -> str:
    """``config.json`` of a model without adapters."""
    values = read_json(inner_folder(folder) / CONFIG_NAME)
    values.pop(LORA_KEY, None)
    return json.dumps(values, indent=2) + "\n"
