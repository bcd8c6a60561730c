"""Doctor finds each fault of rehearsed hosts, names the host, and finds nothing else."""

import importlib.metadata
import re
import shutil
from pathlib import Path

import pytest

from showo_launch import exit_codes
from showo_launch.rehearsal.cluster import SHARED
from showo_launch.rehearsal.network import Link
from tests.doctor.conftest import CheckedHosts

pytestmark = pytest.mark.cluster

FINDING = re.compile(r"^(host\S+): ([^:]+): (.*)$", re.MULTILINE)


def findings(hosts: CheckedHosts, *options: str) -> list[tuple[str, str, str]]:
    """(host, check, problem) of every finding; the exit code is 0 exactly if there is none."""
    done = hosts.doctor(*options)
    print(done.stdout)
    assert not done.stderr, done.stderr[-3000:]
    found = FINDING.findall(done.stdout)
    assert done.returncode == (1 if found else 0), done.stdout
    return found


def only(found: list[tuple[str, str, str]]) -> tuple[str, str, str]:
    """The only finding."""
    assert len(found) == 1, found
    return found[0]


def on_host(hosts: CheckedHosts, name: str, *words: str) -> str:
    return hosts.cluster.hosts[name].call(*words)


def test_nothing_is_wrong(hosts: CheckedHosts) -> None:
    assert findings(hosts) == []


def test_host_down(hosts: CheckedHosts) -> None:
    hosts.cluster.kill("host2")
    host, check, _ = only(findings(hosts, "--quick"))
    assert (host, check) == ("host2", "reachable")


def test_wrong_package_version(hosts: CheckedHosts) -> None:
    metadata = next(
        Path(str(file.locate()))
        for file in importlib.metadata.files("transformers") or []
        if file.name == "METADATA"
    )
    version = importlib.metadata.version("transformers")
    other = hosts.cluster.shared / "METADATA"
    other.write_text(metadata.read_text().replace(f"Version: {version}", "Version: 0.0.1"))
    on_host(hosts, "host3", "mount", "--bind", f"{SHARED}/METADATA", str(metadata))
    assert only(findings(hosts, "--quick")) == (
        "host3",
        "transformers",
        f"0.0.1; others: {version}",
    )


def test_changed_source_file(hosts: CheckedHosts) -> None:
    source = Path(exit_codes.__file__)
    (hosts.cluster.shared / "changed.py").write_text(source.read_text() + "# changed\n")
    on_host(hosts, "host3", "mount", "--bind", f"{SHARED}/changed.py", str(source))
    host, check, _ = only(findings(hosts, "--quick"))
    assert (host, check) == ("host3", "source files")


def test_hostfile_with_users_from_another_system(hosts: CheckedHosts) -> None:
    """A byte-order mark, CRLF and users; the port is reached by the names alone."""
    text = "".join(f"root@host{number} slots=1\r\n" for number in (1, 2, 3))
    (hosts.cluster.shared / "windows").write_bytes(f"\ufeff{text}".encode())
    assert findings(hosts, "--hostfile", f"{SHARED}/windows", "--quick") == []


def test_unshared_path(hosts: CheckedHosts) -> None:
    on_host(hosts, "host2", "mkdir", "/run/own")
    (hosts.cluster.shared / "data").mkdir()
    on_host(hosts, "host2", "mount", "--bind", "/run/own", f"{SHARED}/data")
    host, check, problem = only(findings(hosts, "--quick", "--shared", f"{SHARED}/data"))
    assert (host, check) == ("host2", "shared")
    assert f"{SHARED}/data" in problem


def test_full_disk(hosts: CheckedHosts) -> None:
    for name, size in (("host1", "64m"), ("host2", "1m"), ("host3", "64m")):
        on_host(hosts, name, "mkdir", "/run/scratch")
        on_host(hosts, name, "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/run/scratch")
    host, check, problem = only(
        findings(hosts, "--quick", "--scratch", "/run/scratch", "--free-gb", "0.01")
    )
    assert (host, check) == ("host2", "disk")
    assert "/run/scratch" in problem


def test_skewed_clock(hosts: CheckedHosts, wrong_clock: Path) -> None:
    shutil.copy(wrong_clock, hosts.cluster.shared / "clock.so")
    on_host(hosts, "host3", "cp", f"{SHARED}/clock.so", "/run/clock.so")
    host, check, problem = only(findings(hosts, "--quick", "--skew-s", "30"))
    assert (host, check) == ("host3", "clock")
    assert re.match(r"\+3(599|600|601)", problem), problem


def test_port_that_is_taken(hosts: CheckedHosts) -> None:
    serve = "import socket, time; s = socket.create_server(('', 29500)); time.sleep(600)"
    taker = hosts.cluster.start("host1", [f"{SHARED}/python", "-c", serve])
    try:
        host, check, problem = only(findings(hosts, "--quick"))
    finally:
        taker.kill()
        taker.wait()
    assert (host, check) == ("host1", "port")
    assert "29500" in problem


def test_port_that_is_filtered(hosts: CheckedHosts) -> None:
    rule = ["ip", "rule", "add", "ipproto", "tcp", "dport", "29500", "prohibit"]
    on_host(hosts, "host2", *rule)
    host, check, problem = only(findings(hosts, "--quick"))
    assert (host, check) == ("host2", "port")
    assert "cannot reach host1:29500" in problem


@pytest.mark.parametrize("hosts", [{"host3": Link(rate="20mbit")}], indirect=True)
def test_slow_link(hosts: CheckedHosts) -> None:
    host, check, _ = only(findings(hosts))
    assert (host, check) == ("host3", "link")


def test_link_below_what_is_wanted(hosts: CheckedHosts) -> None:
    found = findings(hosts, "--gbit", "100000")
    assert {host for host, _, _ in found} == {"host1", "host2", "host3"}
    assert {check for _, check, _ in found} == {"link"}


def test_faults_inside_a_slurm_allocation(allocation: CheckedHosts, wrong_clock: Path) -> None:
    """The same checks through srun: first a slow link, then also a clock and a folder."""
    host, check, _ = only(findings(allocation))
    assert (host, check) == ("host3", "link")
    shutil.copy(wrong_clock, allocation.cluster.shared / "clock.so")
    on_host(allocation, "host3", "cp", f"{SHARED}/clock.so", "/run/clock.so")
    (allocation.cluster.shared / "data").mkdir()
    on_host(allocation, "host2", "mkdir", "/run/own")
    on_host(allocation, "host2", "mount", "--bind", "/run/own", f"{SHARED}/data")
    found = findings(allocation, "--quick", "--shared", f"{SHARED}/data")
    assert [(host, check) for host, check, _ in found] == [("host3", "clock"), ("host2", "shared")]
