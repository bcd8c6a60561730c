"""The probe that doctor starts on each host: answers questions, one JSON object per line, until stdin ends.

``python -m showo_launch.doctor.probe``. Only the questions that need torch import it: that may take minutes
from a shared disk, and ``doctor --quick`` does without.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "webdataset", "torchdata", "safetensors", "numpy")
_OUR_PACKAGES = ("showo_dist", "showo_kernels", "showo_data", "showo_launch")
_SOURCE_SUFFIXES = (".py", ".cpp", ".h")
_TOKEN = ".showo-doctor-{}"
_CONNECT_S = 5.0
_SMALL_CALLS, _LARGE_CALLS = 20, 3
_listening: dict[int, socket.socket] = {}


def facts(folders: list[str]) -> dict[str, Any]:
    """Versions, source digest and GPUs of this host; free bytes of folders, or of their nearest parents."""
    return {
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code_digest(source_folders()),
        "commit": _output_of(
            "git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"
        )
        or "no git",
        "gpus": _gpus(),
        "free": {folder: shutil.disk_usage(_existing(folder)).free for folder in folders},
        "interfaces": [name for _, name in socket.if_nameindex()],
    }


def _existing(folder: str | Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = Path(folder).absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def source_folders() -> list[Path]:
    """The folders of our packages, found without importing them."""
    specs = [find_spec(package) for package in _OUR_PACKAGES]
    return [Path(folder) for s in specs if s for folder in s.submodule_search_locations or ()]


def code_digest(folders: Iterable[Path]) -> str:
    """Twelve hex digits that change with the name or content of any source file."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix in _SOURCE_SUFFIXES:
                digest.update(f"{folder.name}/{file.relative_to(folder)}".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU."""
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return _output_of("nvidia-smi", *query).splitlines()


def _output_of(*words: str) -> str:
    """What a program prints; empty when it is absent or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def now() -> float:
    """This host's clock, in seconds."""
    return time.time()


def write_token(folder: str) -> str:
    """Create a file of random name in a folder (or its nearest parent); returns its path."""
    path = _existing(folder) / _TOKEN.format(secrets.token_hex(8))
    path.touch(exist_ok=False)
    return str(path)


def sees(path: str) -> bool:
    """Whether this host sees the file. Listing its folder bypasses the cache of a network file system."""
    folder, name = os.path.split(path)
    return os.path.isdir(folder) and name in os.listdir(folder)


def remove(path: str) -> None:
    """Remove the file of :func:`write_token`."""
    Path(path).unlink(missing_ok=True)


def listen(address: str, port: int) -> str | None:
    """Open a port for the address family of ``address`` until :func:`close`; None, or why it failed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        _listening[port] = socket.create_server(("", port), family=family)
    except OSError as error:
        return str(error.strerror)
    return None


def close(port: int) -> None:
    """Close the port that :func:`listen` opened."""
    _listening.pop(port).close()


def connect(address: str, port: int) -> str | None:
    """None when the port of that address can be reached, else why not."""
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def load_torch() -> str | None:
    """Import torch; None when it can use this host's GPUs or there are none, else why it cannot."""
    import torch

    if torch.cuda.is_available() or not _gpus():
        return None
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    return f"torch {torch.__version__}, built for {built}, cannot use them: {', '.join(_gpus())}"


def all_reduce(
    rank: int, address: str, port: int, megabytes: float, timeout_s: float
) -> dict[str, float]:
    """All-reduce between two hosts, one process each, by NCCL where there are GPUs, else gloo.

    Args:
        rank: 0 or 1; rank 0 is at ``address``.
        address, port: of the rendezvous.
        megabytes: size of the large all-reduce.
        timeout_s: of the rendezvous and of each collective.

    Returns:
        ``gbit``: Gb/s that each host sent, ``latency_ms``: of an all-reduce of one number.
    """
    import torch
    import torch.distributed as dist

    def fastest_s(tensor: torch.Tensor, calls: int) -> float:
        """Of several all-reduces: a slower one was held up by something else."""
        best = float("inf")
        for _ in range(calls):
            dist.barrier(device_ids=[0] if tensor.is_cuda else None)
            start = time.perf_counter()
            dist.all_reduce(tensor)
            if tensor.is_cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    host = f"[{address}]" if ":" in address else address
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        small_s = fastest_s(torch.ones(1, device=device), _SMALL_CALLS)
        size = int(megabytes * 1e6) // 4
        large_s = fastest_s(torch.ones(size, device=device), _LARGE_CALLS)
    finally:
        dist.destroy_process_group()
    # In a ring of two, each rank sends as many bytes as the tensor has.
    return {"gbit": size * 4 * 8 / 1e9 / large_s, "latency_ms": 1000 * small_s}


ANSWERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(facts, now, write_token, sees, remove),
        *(listen, close, connect, load_torch, all_reduce),
    )
}


def _answer(line: str) -> dict[str, Any]:
    try:
        question = json.loads(line)
        return {"answer": ANSWERS[question["ask"]](**question["with"])}
    except Exception as error:  # the side that asked reports it
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serve until stdin ends. What libraries print on stdout goes to stderr instead of among the answers."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(_answer(line)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
