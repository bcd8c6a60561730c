"""Rehearsed hosts for doctor, which a test gives one fault or another."""

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
from showo_launch.rehearsal.programs import missing_requirement

LIMIT_S = 900.0
DOCTOR = [sys.executable, "-m", "showo_dist.cli", "doctor"]
HOSTS = ("host1", "host2", "host3")
# Without a rate, links are as fast as the busy processors allow, and may differ by more than doctor permits.
ALIKE = dict.fromkeys(HOSTS, Link(rate="200mbit"))
# Starts the real interpreter, with a wrong clock if the host has clock.so: /run is each host's own.
_INTERPRETER = """\
#!/bin/sh
if [ -e /run/clock.so ]; then export LD_PRELOAD=/run/clock.so; fi
exec {python} "$@"
"""


@dataclass
class CheckedHosts:
    """Hosts, and the doctor command that checks them from the first one.

    Attributes:
        cluster: the hosts.
        call: the words before doctor's options.
    """

    cluster: Cluster
    call: list[str]

    def doctor(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run doctor on the first host."""
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
def opened(call: list[str], links: dict[str, Link], slurm: bool = False) -> Iterator[CheckedHosts]:
    """Three hosts while the context is open; skips the test where hosts cannot be created."""
    reason = missing_requirement(slurm)
    if reason:
        pytest.skip(reason)
    with Cluster(dict.fromkeys(HOSTS, 1), links, slurm) as cluster:
        interpreter = cluster.shared / "python"
        interpreter.write_text(_INTERPRETER.format(python=sys.executable))
        interpreter.chmod(0o755)
        yield CheckedHosts(cluster, call)


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[CheckedHosts]:
    """Three hosts of a hostfile with equal links, except those in the test's parameter, by host."""
    links: dict[str, Link] = ALIKE | getattr(request, "param", {})
    with opened([*DOCTOR, "--hostfile", HOSTFILE], links) as opened_hosts:
        yield opened_hosts


@pytest.fixture
def allocation() -> Iterator[CheckedHosts]:
    """Three hosts of a Slurm allocation; the link of the last one is slow."""
    call = ["salloc", "--quiet", f"--nodes={len(HOSTS)}", *DOCTOR]
    with opened(call, ALIKE | {"host3": Link(rate="20mbit")}, slurm=True) as opened_hosts:
        yield opened_hosts


@pytest.fixture(scope="session")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that puts the clock of a process an hour ahead."""
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
