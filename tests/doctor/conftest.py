"""Rehearsed hosts that a test can break one way or another."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from showo_launch.rehearsal.cluster import HOSTFILE, SHARED, Cluster
from showo_launch.rehearsal.network import Link
from showo_launch.rehearsal.programs import what_is_missing

LIMIT_S = 900.0
DOCTOR = [sys.executable, "-m", "showo_dist.cli", "doctor"]
HOSTS = ("host1", "host2", "host3")
# Without a rate a link is as fast as the processors just then, and two may differ by more than doctor allows.
ALIKE = dict.fromkeys(HOSTS, Link(rate="200mbit"))
# Starts the real interpreter, under a wrong clock where a host has one. /run differs from host to host.
_INTERPRETER = """\
#!/bin/sh
if [ -e /run/clock.so ]; then export LD_PRELOAD=/run/clock.so; fi
exec {python} "$@"
"""


@dataclass
class Hospital:
    """Hosts, and the doctor who looks at them from the first one.

    Attributes:
        cluster: the hosts.
        call: what stands before the doctor's options.
    """

    cluster: Cluster
    call: list[str]

    def doctor(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the command on the first host."""
        command = [*self.call, "--python", f"{SHARED}/python"]
        command += ["--shared", SHARED, "--scratch", "/run"]
        command += ["--free-gb", "0.001", "--megabytes", "4"]
        command += ["--timeout-s", "500", *options]
        host = self.cluster.hosts[self.cluster.names[0]]
        return subprocess.run(
            [*host.entered(), "env", "--chdir", os.getcwd(), *command],
            env={**os.environ, **self.cluster.login(), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@contextmanager
def opened(call: list[str], links: dict[str, Link], slurm: bool = False) -> Iterator[Hospital]:
    """Three hosts while the context is open; skips the test where none can be made."""
    reason = what_is_missing(slurm)
    if reason:
        pytest.skip(reason)
    with Cluster(dict.fromkeys(HOSTS, 1), links, slurm) as cluster:
        interpreter = cluster.shared / "python"
        interpreter.write_text(_INTERPRETER.format(python=sys.executable))
        interpreter.chmod(0o755)
        yield Hospital(cluster, call)


@pytest.fixture
def hospital(request: pytest.FixtureRequest) -> Iterator[Hospital]:
    """Three hosts of a hostfile with links alike; the parameter, where there is one, gives others by host."""
    links: dict[str, Link] = ALIKE | getattr(request, "param", {})
    with opened([*DOCTOR, "--hostfile", HOSTFILE], links) as hosts:
        yield hosts


@pytest.fixture
def allocation() -> Iterator[Hospital]:
    """Three hosts that Slurm gives; the link of the last one is slow."""
    call = ["salloc", "--quiet", f"--nodes={len(HOSTS)}", *DOCTOR]
    with opened(call, ALIKE | {"host3": Link(rate="20mbit")}, slurm=True) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library under which a process sees a clock that is an hour ahead."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("clock")
    source = folder / "clock.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n"
        "int clock_gettime(clockid_t id, struct timespec *at) {\n"
        "  int done = syscall(SYS_clock_gettime, id, at);\n"
        "  if (id == CLOCK_REALTIME) at->tv_sec += 3600;\n"
        "  return done;\n}\n"
    )
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library
