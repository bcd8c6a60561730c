"""Weights of a model folder by name, LoRA adapters merged into what they adapt."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from showo_dist.checkpoint import CheckpointReader, is_checkpoint
from showo_dist.checkpoint.slices import WEIGHT
from showo_dist.models.weights.folder import (
    CONFIG_NAME,
    FolderWeights,
    inner_folder,
    local_folder,
    read_json,
)

PROJECTOR = "mm_projector."
LORA_KEY = "lora"  # of config.json, in folders that hold adapters
A_SUFFIX, B_SUFFIX = ".lora_A.default.weight", ".lora_B.default.weight"


class Weights(Protocol):
    """Named tensors that are read one at a time.

    Attributes:
        folder: where they come from, for messages.
        meta: shape and dtype of each, on the meta device.
    """

    folder: Path
    meta: dict[str, Tensor]

    def read(self, name: str) -> Tensor:
        """One whole tensor on the CPU."""


BASE_HEADING = "{name} {shape} "  # of the digest of the weights that LoRA adapters belong to


def weights_digest(tensors: Iterable[tuple[str, Tensor]], heading: str) -> str:
    """SHA-256 of named tensors in the given order, each as a heading and its bytes.

    Args:
        tensors: names and values, on any device.
        heading: format of ``{name}``, ``{shape}`` and ``{dtype}``. Digests are stored and compared later, so
            each use must keep its heading.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        text = heading.format(name=name, shape=list(tensor.shape), dtype=tensor.dtype)
        digest.update(text.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class CheckpointWeights:
    """The fp32 weights of a training checkpoint, put together from the parts of its ranks.

    Args:
        folder: of the checkpoint.
        check: compare the files with their checksums first.
        kind: ``weight``, or ``ema`` for the averaged weights.

    Raises:
        ValueError: a file of it has changed, which is named; or it has no averaged weights.
    """

    def __init__(self, folder: Path, check: bool = True, kind: str = WEIGHT) -> None:
        self.folder, self._kind = folder, kind
        self._reader = CheckpointReader(folder, check=check, only=kind)
        names = self._reader.names(kind)
        if kind != WEIGHT and not names:
            raise ValueError(
                f"{folder}: has no averaged weights; its run had no training.ema.decay"
            )
        self.meta = {
            name: torch.empty(self._reader.shape(kind, name), device="meta") for name in names
        }

    def read(self, name: str) -> Tensor:
        """One whole fp32 weight."""
        return self._reader.read(self._kind, name)


class MergedWeights:
    """Frozen weights with adapters added: ``W + alpha/rank · B A``, in fp32.

    Args:
        base: what the adapters were trained over.
        adapters: a folder of adapters and of weights that were trained whole, which replace the base's.
        record: the adapters' entry of ``config.json``.
        left_out: prefixes of weights of the base that the adapted model does not have.

    Raises:
        ValueError: the base is not the one that they were trained over.
    """

    def __init__(
        self,
        base: Weights,
        adapters: Weights,
        record: dict[str, Any],
        left_out: tuple[str, ...] = (),
    ) -> None:
        self.folder = adapters.folder
        self._base, self._adapters = base, adapters
        self._scale = record["alpha"] / record["rank"]
        # Weights that were trained whole are stored beside the adapters and replace the base's.
        whole = {n: t for n, t in adapters.meta.items() if not n.endswith((A_SUFFIX, B_SUFFIX))}
        kept = {n: t for n, t in base.meta.items() if not n.startswith(left_out)}
        frozen = {name: tensor for name, tensor in kept.items() if name not in whole}
        values = ((name, base.read(name).float()) for name in sorted(frozen))
        check_base(record, weights_digest(values, BASE_HEADING), adapters.folder)
        merged = {n: torch.empty_like(t, dtype=torch.float32) for n, t in frozen.items()}
        self.meta = merged | whole

    def read(self, name: str) -> Tensor:
        """One merged tensor."""
        if name in self._adapters.meta:
            return self._adapters.read(name)
        weight = self._base.read(name).float()
        stem = name.removesuffix(".weight")
        if stem + A_SUFFIX not in self._adapters.meta:
            return weight
        a_RI, b_OR = (self._adapters.read(stem + s).float() for s in (A_SUFFIX, B_SUFFIX))
        # fp32, whatever the base's dtype: rounding the product to bf16 would lose small updates.
        return weight + (b_OR @ a_RI) * self._scale


def check_base(record: dict[str, Any], found: str, folder: Path) -> None:
    """Whether frozen weights are those that adapters were trained over.

    Raises:
        ValueError: they are not.
    """
    if found != record["base_sha256"]:
        raise ValueError(
            f"{folder}: its adapters were trained over other weights than those that are now at "
            f"{record['base']}"
        )


def adapter_record(folder: Path) -> dict[str, Any] | None:
    """Read the entry of a folder's ``config.json`` about adapters; None for a folder of whole weights.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or it or the entry is malformed.
    """
    path = inner_folder(folder) / CONFIG_NAME
    record = read_json(path).get(LORA_KEY)
    if record is None:
        return None
    entry = record if isinstance(record, dict) else {}
    numbers = type(entry.get("rank")) is int and type(entry.get("alpha")) in (int, float)
    texts = all(isinstance(entry.get(key), str) for key in ("base", "base_sha256"))
    if not (numbers and texts and entry["rank"] > 0):
        raise ValueError(
            f"{path}: {LORA_KEY} = {record!r:.80}: expected the rank, alpha, base and base_sha256 of adapters"
        )
    return entry


def open_weights(folder: Path, check: bool = True, kind: str = WEIGHT) -> Weights:
    """The weights of a checkpoint or model folder; adapters are merged into what they were trained over.

    Args:
        folder: with ``config.json``.
        check: compare a checkpoint's files with their checksums first.
        kind: ``weight``, or ``ema`` for the averaged weights of a checkpoint.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be read, the adapters' base has changed, or
            there are no averaged weights.
    """
    record = adapter_record(folder)
    own = own_weights(folder, check, kind)
    if record is None:
        return own
    try:
        base = open_weights(local_folder(record["base"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: what its adapters belong to: {error}") from None
    with_clip = read_json(inner_folder(folder) / CONFIG_NAME).get("w_clip_vit", True)
    return MergedWeights(base, own, record, () if with_clip else (PROJECTOR,))


def own_weights(folder: Path, check: bool = True, kind: str = WEIGHT) -> Weights:
    """What a folder itself holds: of a LoRA run, adapters and what was trained whole.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_weights`.
    """
    if is_checkpoint(folder):
        return CheckpointWeights(folder, check, kind)
    if kind != WEIGHT:
        raise ValueError(f"{folder}: has no averaged weights; it is not a training checkpoint")
    return FolderWeights(folder)
