"""Checkpoints: written aside by all ranks, checked, then made visible by one rename.

A checkpoint is a folder ``checkpoint-STEP`` that is at the same time a released-format model folder
(``config.json``, sharded ``model-*.safetensors`` with its index) beside ``optimizer-*.safetensors``,
``state.json``, ``config.yaml`` and ``manifest.json``, which names every file with size and SHA-256.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from showo_dist.training import engine_state

MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
MODEL_INDEX = "model.safetensors.index.json"
OPTIMIZER_INDEX = "optimizer.safetensors.index.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunState:
    """What besides tensors a run needs to go on exactly.

    Attributes:
        step: optimizer steps done.
        positions: next position of each flow's stream.
        schedule: state of the learning-rate schedule.
        optimizer_steps: AdamW's own count.
        wandb_id: run to go on with.
        versions: of the libraries that wrote it.
    """

    step: int
    positions: dict[str, int]
    schedule: dict[str, Any]
    optimizer_steps: int
    wandb_id: str | None
    versions: dict[str, str]


def folder_of(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:06d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """Visible checkpoints of a run, oldest first. Unfinished ones have another name."""
    found = [(int(m[1]), p) for p in run.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointWriter:
    """Writes the checkpoints of one run.

    Args:
        run: the run's folder.
        keep_last: checkpoints to keep, 0 for all.
        describe: writes ``config.json`` and ``config.yaml`` (rank 0) into the folder it is given.
    """

    def __init__(self, run: Path, keep_last: int, describe: Callable[[Path], None]) -> None:
        self.run, self.keep_last, self.describe = run, keep_last, describe
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def save(self, engine: Any, state: RunState) -> Path:
        """Write one checkpoint; collective. Returns its folder."""
        target = folder_of(self.run, state.step)
        aside = target.with_name(f".{target.name}.partial")
        if self.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            self.describe(aside)
            (aside / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
        dist.barrier()
        entries: list[dict[str, dict]] = [{} for _ in range(self.world)]
        dist.all_gather_object(entries, self._write_shards(engine, aside))
        if self.rank == 0:
            self._finish(aside, target, entries)
        dist.barrier()
        return target

    def _write_shards(self, engine: Any, aside: Path) -> dict[str, dict]:
        """This rank's share of the tensors. Every rank gathers each tensor, its owner alone keeps it."""
        shards: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for number, (kind, name, gather) in enumerate(engine_state.tensors(engine)):
            full = gather()
            if number % self.world != self.rank:
                continue
            own = full.to("cpu", copy=True).contiguous()
            if kind == "weight":
                shards["model"][name] = own
            else:
                shards["optimizer"][f"{kind}/{name}"] = own
        written = {}
        for part, tensors in shards.items():
            path = aside / f"{part}-{self.rank + 1:05d}-of-{self.world:05d}.safetensors"
            save_file(tensors, path, metadata={"format": "pt"})
            _sync(path)
            written[path.name] = {"names": list(tensors), "sha256": _hash(path)}
        return written

    def _finish(self, aside: Path, target: Path, entries: list[dict[str, dict]]) -> None:
        files = {name: entry for per_rank in entries for name, entry in per_rank.items()}
        for part, index in (("model", MODEL_INDEX), ("optimizer", OPTIMIZER_INDEX)):
            weight_map = {
                tensor: name
                for name, entry in files.items()
                if name.startswith(part)
                for tensor in entry["names"]
            }
            text = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1)
            (aside / index).write_text(text + "\n")
        hashes = {name: entry["sha256"] for name, entry in files.items()}
        _write_manifest(aside, hashes)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        _sync(self.run)
        self._prune()

    def _prune(self) -> None:
        if self.keep_last:
            for old in complete_checkpoints(self.run)[: -self.keep_last]:
                shutil.rmtree(old)


def _write_manifest(folder: Path, hashes: dict[str, str]) -> None:
    manifest = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashes.get(path.name) or _hash(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


class CheckpointReader:
    """Reads a checkpoint, tensor by tensor.

    Args:
        folder: ``checkpoint-STEP``.

    Raises:
        ValueError: it is not a complete checkpoint, or a file of it has changed; the file is named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verify()
        self.state = RunState(**json.loads((folder / STATE).read_text()))
        self._maps = {
            "weight": json.loads((folder / MODEL_INDEX).read_text())["weight_map"],
            "moment": json.loads((folder / OPTIMIZER_INDEX).read_text())["weight_map"],
        }

    def _verify(self) -> None:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{self.folder}: not a checkpoint ({MANIFEST} is missing)")
        try:
            manifest = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"{path}: not JSON, the checkpoint is damaged") from None
        for name, entry in manifest.items():
            file = self.folder / name
            if not file.is_file():
                raise ValueError(f"{file}: missing, the checkpoint is damaged")
            if file.stat().st_size != entry["bytes"] or _hash(file) != entry["sha256"]:
                raise ValueError(
                    f"{file}: size or checksum is not the manifest's, the checkpoint is damaged"
                )

    def read(self, kind: str, name: str) -> Tensor:
        """One whole tensor on the CPU.

        Raises:
            ValueError: the checkpoint has no such tensor.
        """
        key = name if kind == "weight" else f"{kind}/{name}"
        files = self._maps["weight" if kind == "weight" else "moment"]
        if key not in files:
            raise ValueError(f"{self.folder}: has no {kind} of {name}")
        path = self.folder / files[key]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None


def find_resume(run: Path, choice: bool | str | None) -> Path | None:
    """The checkpoint to go on from.

    Args:
        run: the run's folder.
        choice: ``experiment.resume_from_checkpoint``: ``latest``, a path, or false for none.

    Raises:
        ValueError: the path that was asked for does not exist.
    """
    if not choice:
        return None
    if choice in (True, "latest"):
        found = complete_checkpoints(run)
        return found[-1] if found else None
    path = Path(str(choice))
    if not path.is_dir():
        raise ValueError(f"experiment.resume_from_checkpoint = {choice}: no such folder")
    return path


def versions() -> dict[str, str]:
    """Versions that a checkpoint records."""
    import deepspeed
    import transformers

    return {
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
