"""The doctor finds what is wrong with rehearsed hosts, names the host, and finds nothing else."""

import importlib.metadata
import re
import shutil
from pathlib import Path

import pytest

from showo_launch.rehearsal.cluster import SHARED
from showo_launch.rehearsal.network import Link
from tests.doctor.conftest import Hospital

pytestmark = pytest.mark.cluster

FINDING = re.compile(r"^(host\S+): ([^:]+): (.*)$", re.MULTILINE)


def findings(hospital: Hospital, *options: str) -> list[tuple[str, str, str]]:
    """(host, check, problem) of every finding; none goes with exit code 0 alone."""
    done = hospital.doctor(*options)
    print(done.stdout)
    assert not done.stderr, done.stderr[-3000:]
    found = FINDING.findall(done.stdout)
    assert done.returncode == (1 if found else 0), done.stdout
    return found


def only(found: list[tuple[str, str, str]]) -> tuple[str, str, str]:
    """The finding when there is exactly one."""
    assert len(found) == 1, found
    return found[0]


def on_host(hospital: Hospital, name: str, *words: str) -> str:
    return hospital.cluster.hosts[name].call(*words)


def test_nothing_is_wrong(hospital: Hospital) -> None:
    assert findings(hospital) == []


def test_host_down(hospital: Hospital) -> None:
    hospital.cluster.kill("host2")
    host, check, _ = only(findings(hospital, "--quick"))
    assert (host, check) == ("host2", "reachable")


def test_wrong_package_version(hospital: Hospital) -> None:
    metadata = next(
        Path(str(file.locate()))
        for file in importlib.metadata.files("transformers") or []
        if file.name == "METADATA"
    )
    version = importlib.metadata.version("transformers")
    other = hospital.cluster.shared / "METADATA"
    other.write_text(metadata.read_text().replace(f"Version: {version}", "Version: 0.0.1"))
    on_host(hospital, "host3", "mount", "--bind", f"{SHARED}/METADATA", str(metadata))
    assert only(findings(hospital, "--quick")) == (
        "host3",
        "transformers",
        f"0.0.1; others: {version}",
    )


def test_unshared_path(hospital: Hospital) -> None:
    on_host(hospital, "host2", "mkdir", "/run/own")
    (hospital.cluster.shared / "data").mkdir()
    on_host(hospital, "host2", "mount", "--bind", "/run/own", f"{SHARED}/data")
    host, check, problem = only(findings(hospital, "--quick", "--shared", f"{SHARED}/data"))
    assert (host, check) == ("host2", "shared")
    assert f"{SHARED}/data" in problem


def test_full_disk(hospital: Hospital) -> None:
    for name, size in (("host1", "64m"), ("host2", "1m"), ("host3", "64m")):
        on_host(hospital, name, "mkdir", "/run/scratch")
        on_host(
            hospital, name, "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/run/scratch"
        )
    host, check, problem = only(
        findings(hospital, "--quick", "--scratch", "/run/scratch", "--free-gb", "0.01")
    )
    assert (host, check) == ("host2", "disk")
    assert "/run/scratch" in problem


def test_skewed_clock(hospital: Hospital, wrong_clock: Path) -> None:
    shutil.copy(wrong_clock, hospital.cluster.shared / "clock.so")
    on_host(hospital, "host3", "cp", f"{SHARED}/clock.so", "/run/clock.so")
    host, check, problem = only(findings(hospital, "--quick", "--skew-s", "30"))
    assert (host, check) == ("host3", "clock")
    assert re.match(r"\+3(599|600|601)", problem), problem


def test_port_that_is_taken(hospital: Hospital) -> None:
    serve = "import socket, time; s = socket.create_server(('', 29500)); time.sleep(600)"
    taker = hospital.cluster.start("host1", [f"{SHARED}/python", "-c", serve])
    try:
        host, check, problem = only(findings(hospital, "--quick"))
    finally:
        taker.kill()
        taker.wait()
    assert (host, check) == ("host1", "port")
    assert "29500" in problem


def test_port_that_is_filtered(hospital: Hospital) -> None:
    rule = ["ip", "rule", "add", "ipproto", "tcp", "dport", "29500", "prohibit"]
    on_host(hospital, "host2", *rule)
    host, check, problem = only(findings(hospital, "--quick"))
    assert (host, check) == ("host2", "port")
    assert "cannot reach host1:29500" in problem


@pytest.mark.parametrize("hospital", [{"host3": Link(rate="20mbit")}], indirect=True)
def test_slow_link(hospital: Hospital) -> None:
    host, check, _ = only(findings(hospital))
    assert (host, check) == ("host3", "link")


def test_link_below_what_is_wanted(hospital: Hospital) -> None:
    found = findings(hospital, "--gbit", "100000")
    assert {host for host, _, _ in found} == {"host1", "host2", "host3"}
    assert {check for _, check, _ in found} == {"link"}


def test_what_is_wrong_inside_a_slurm_allocation(allocation: Hospital, wrong_clock: Path) -> None:
    """The same checks through srun: first a slow link alone, then a clock and a folder too."""
    host, check, _ = only(findings(allocation))
    assert (host, check) == ("host3", "link")
    shutil.copy(wrong_clock, allocation.cluster.shared / "clock.so")
    on_host(allocation, "host3", "cp", f"{SHARED}/clock.so", "/run/clock.so")
    (allocation.cluster.shared / "data").mkdir()
    on_host(allocation, "host2", "mkdir", "/run/own")
    on_host(allocation, "host2", "mount", "--bind", "/run/own", f"{SHARED}/data")
    found = findings(allocation, "--quick", "--shared", f"{SHARED}/data")
    assert [(host, check) for host, check, _ in found] == [("host3", "clock"), ("host2", "shared")]
