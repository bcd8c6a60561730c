"""What a host says about itself, with nothing imported that takes time."""

from __future__ import annotations

import hashlib
import platform
import shutil
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "webdataset", "torchdata", "safetensors", "numpy")
SOURCE = Path(__file__).resolve().parents[2]
_OUR_PACKAGES = ("showo_dist", "kernels", "data_pipelines")
_NOT_THERE = "not installed"


def facts(folders: list[str]) -> dict[str, Any]:
    """Versions, code, GPUs, and the free bytes of folders (or of what they will be made in)."""
    return {
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code_digest(SOURCE),
        "commit": _commit(SOURCE),
        "gpus": gpus(),
        "free": {folder: shutil.disk_usage(existing(folder)).free for folder in folders},
        "interfaces": [name for _, name in socket.if_nameindex()],
    }


def existing(folder: str | Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = Path(folder).absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _NOT_THERE


def code_digest(root: Path) -> str:
    """Twelve digits that change with any of our source files."""
    digest = hashlib.sha256()
    for package in _OUR_PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _commit(root: Path) -> str:
    return _said_by("git", "-C", str(root), "rev-parse", "--short=12", "HEAD") or "no git"


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU; empty without any."""
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return _said_by("nvidia-smi", *query).splitlines()


def _said_by(*words: str) -> str:
    """What a program prints; nothing when it is absent or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
