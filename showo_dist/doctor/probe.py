"""What runs on each host: answers questions, one JSON object per line, until its input ends.

``python -m showo_dist.doctor.probe``
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from showo_dist.doctor.facts import existing, facts

_TOKEN = ".showo-doctor-{}"
_CONNECT_S = 5.0
_listening: dict[int, socket.socket] = {}


def now() -> float:
    """This host's clock, in seconds."""
    return time.time()


def write_token(folder: str) -> str:
    """Put a file of random name into a folder (or the one above that exists); returns its path."""
    path = existing(folder) / _TOKEN.format(secrets.token_hex(8))
    path.touch(exist_ok=False)
    return str(path)


def sees(path: str) -> bool:
    """Whether this host sees the file. Its folder is listed anew, past what a network disk remembers."""
    folder, name = os.path.split(path)
    return os.path.isdir(folder) and name in os.listdir(folder)


def remove(path: str) -> None:
    """Take a token away."""
    Path(path).unlink(missing_ok=True)


def listen(port: int) -> str | None:
    """Open a port until ``close``; None, or why not."""
    try:
        _listening[port] = socket.create_server(("", port))
    except OSError as error:
        return str(error.strerror)
    return None


def close(port: int) -> None:
    """End ``listen``."""
    _listening.pop(port).close()


def connect(address: str, port: int) -> str | None:
    """None when the port of that address can be reached, or why not."""
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def load_torch() -> str:
    """Its version; may take a while from a shared disk."""
    import torch

    return str(torch.__version__)


def all_reduce(
    rank: int, address: str, port: int, megabytes: float, timeout_s: float
) -> dict[str, float]:
    """Bandwidth and latency of an all-reduce of two hosts."""
    from showo_dist.doctor.links import measure

    return measure(rank, address, port, megabytes, timeout_s)


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
    except Exception as error:  # reported by the side that asked
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serve until the input ends. What libraries print goes to stderr, not among the answers."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(_answer(line)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
