"""Commands on rehearsed hosts, with a time limit."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from showo_launch.rehearsal import Cluster

LIMIT_S = 900.0  # for a busy machine; an idle one takes a twentieth


def on_first(
    cluster: Cluster,
    words: list[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> int:
    """Run a command on the first host until it ends; its output goes to ``log``."""
    with started(cluster, words, log, environment) as process:
        return process.wait(limit_s)


@contextmanager
def started(
    cluster: Cluster, words: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command on the first host while the context is open."""
    with log.open("w") as file:
        process = cluster.start(cluster.names[0], words, environment, file)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(what: str, found: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Wait until ``found()`` is true; fails with the name ``what`` after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < deadline, f"not in {limit_s:g} s: {what}"
        time.sleep(0.05)
