"""Rehearsed hosts are hosts: names, networks, processes, ssh, shaped links, and nothing that stays behind."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from showo_launch.rehearsal import Cluster, Link
from tests.cluster.commands import on_first, wait_for

NAMES = ["host1", "host2", "host3"]
MEGABYTES, SLOW_MBIT = 4, 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three hosts; the link of the last one is slow."""
    with Cluster(dict.fromkeys(NAMES, 2), {"host3": Link(rate=f"{SLOW_MBIT}mbit")}) as hosts:
        yield hosts


def _said(cluster: Cluster, words: list[str], log: Path, limit_s: float = 60) -> list[str]:
    """What a command on the first host prints, in sorted lines."""
    assert on_first(cluster, words, log, limit_s=limit_s) == 0, log.read_text()
    return sorted(log.read_text().splitlines())


def test_pdsh_reaches_every_host_by_name(cluster: Cluster, tmp_path: Path) -> None:
    said = _said(
        cluster, ["pdsh", "-S", "-w", ",".join(NAMES), "hostname; hostname -I"], tmp_path / "log"
    )
    expected = [f"{name}: {name}" for name in NAMES]
    expected += [f"{name}: 10.77.0.{number} " for number, name in enumerate(NAMES, start=1)]
    assert said == sorted(expected)


def test_hostfile_names_hosts_and_slots(cluster: Cluster, tmp_path: Path) -> None:
    assert _said(cluster, ["bash", "-c", "cat $HOSTFILE"], tmp_path / "log") == [
        f"{name} slots=2" for name in NAMES
    ]


def test_memory_and_processes_are_a_hosts_own(cluster: Cluster, tmp_path: Path) -> None:
    touch = (
        "touch /dev/shm/$(hostname) /run/$(hostname); ls /dev/shm; ls -d /run/host*; pgrep -c sshd"
    )
    said = _said(cluster, ["ssh", "host2", touch], tmp_path / "log")
    # One sshd that listens and one that serves this session; this machine's and the others' are not seen.
    assert said == ["/run/host2", "2", "host2"]


def test_a_link_is_as_slow_as_asked_for_each_way(cluster: Cluster, tmp_path: Path) -> None:
    send = f"head -c {MEGABYTES}000000 /dev/zero"
    least_s = 0.9 * MEGABYTES * 8 / SLOW_MBIT  # what fits into the queue does not wait
    for command in (f"{send} | ssh host3 'cat >/dev/null'", f"ssh host3 '{send}' >/dev/null"):
        begin = time.monotonic()
        _said(cluster, ["bash", "-c", command], tmp_path / "log")
        assert time.monotonic() - begin > least_s, command
    held_back = [_held_back(cluster, name) for name in NAMES]
    assert held_back[:2] == [0, 0] and held_back[2] > 0, held_back


def _held_back(cluster: Cluster, name: str) -> int:
    """How often a host's packets had to wait for its link's speed, by the kernel's count."""
    counts = cluster.hosts[name].call("tc", "-statistics", "qdisc", "show", "dev", "eth0")
    return sum(int(count) for count in re.findall(r"overlimits (\d+)", counts))


def test_a_cable_is_pulled_and_put_back(cluster: Cluster, tmp_path: Path) -> None:
    knock = ["ssh", "-o", "ConnectTimeout=2", "host2", "true"]
    cluster.cut("host2")
    assert on_first(cluster, knock, tmp_path / "log", limit_s=60) == 255
    assert cluster.hosts["host2"].alive
    cluster.mend("host2")
    assert on_first(cluster, knock, tmp_path / "log", limit_s=60) == 0


def test_a_host_dies_with_all_it_runs_and_boots_again(cluster: Cluster, tmp_path: Path) -> None:
    knock = ["ssh", "-o", "ConnectTimeout=2", "host2", "test -e /run/alive"]
    process = cluster.start("host2", ["bash", "-c", "touch /run/alive; sleep 1000"])
    wait_for("process on host2", lambda: on_first(cluster, knock, tmp_path / "log") == 0)
    cluster.kill("host2")
    assert process.wait(10) == 137 or process.returncode == -signal.SIGKILL
    assert on_first(cluster, knock, tmp_path / "log", limit_s=60) == 255
    cluster.boot("host2")
    assert (
        on_first(cluster, knock, tmp_path / "log", limit_s=60) == 1
    )  # it is there, its /run is new


def test_clusters_side_by_side_do_not_meet(cluster: Cluster, tmp_path: Path) -> None:
    with Cluster({"host1": 1, "host9": 1}) as other:
        assert on_first(other, ["ssh", "host9", "true"], tmp_path / "log") == 0
        assert on_first(cluster, ["ssh", "host9", "true"], tmp_path / "log") == 255
        assert on_first(cluster, ["ssh", "host2", "true"], tmp_path / "log") == 0


def _rehearse(*words: str) -> subprocess.Popen[str]:
    # Whoever runs the tests in the background has Ctrl-C ignored, and hands that on.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        ["launchers/rehearse", *words],
        preexec_fn=heeds,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _interfaces() -> str:
    return subprocess.run(
        ["ip", "-brief", "link"], capture_output=True, text=True, check=True
    ).stdout


def _running(marker: str) -> bool:
    """Whether a process with this word on its command line exists."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in entry.read_text(errors="replace").split("\0"):
                return True
        except OSError:
            continue  # it ended meanwhile
    return False


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name
)
def test_nothing_stays_behind(number: signal.Signals) -> None:
    before, seconds = _interfaces(), str(1000 + number + os.getpid() / 1e6)
    sleep = ["sleep", seconds]
    process = _rehearse("--hosts", "2", "--", "bash", "-c", f"echo up; ssh host2 sleep {seconds}")
    assert process.stdout and process.stdout.readline() == "up\n", process.communicate()
    wait_for("command on the second host", lambda: _running(sleep[1]))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert process.wait(60) == expected[number]
    wait_for("end of its processes", lambda: not _running(sleep[1]), 10)
    assert _interfaces() == before


def test_events_happen_and_the_commands_code_is_handed_on() -> None:
    knock = "ssh -o ConnectTimeout=1 host2 true"
    command = f"sleep 3; {knock}; first=$?; sleep 5; {knock}; exit $((first + $?))"
    events = ["--at", "1:kill:host2", "--at", "5:boot:host2"]
    process = _rehearse("--hosts", "2", *events, "--", "bash", "-c", command)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 255
    assert said.splitlines() == ["rehearse: kill host2", "rehearse: boot host2"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--hosts", "0", "--", "true"], "--hosts 0: 1 or more"),
        (["--hosts", "2"], "no command"),
        (["--hostfile", "launchers/hosts", "--slots", "2", "--", "true"], "--slots 2"),
        (["--hosts", "2", "--at", "5:explode:host1", "--", "true"], "kill|boot|cut|mend"),
        (["--hosts", "2", "--at", "5:kill:host3", "--", "true"], "the hosts are host1, host2"),
        (["--hosts", "2", "--link", "host3:rate=1mbit", "--", "true"], "host3"),
        (["--hosts", "2", "--link", "speed=1mbit", "--", "true"], "rate=… and delay=… are allowed"),
        (["--hosts", "2", "--link", "rate=fast", "--", "true"], "rate=fast"),
        (["--hostfile", "README.md", "--", "true"], "README.md:3: "),
    ],
)
def test_a_mistake_is_one_line(words: list[str], complaint: str) -> None:
    _, error = (process := _rehearse(*words)).communicate(timeout=60)
    assert process.returncode == 2
    assert complaint in error and len(error.splitlines()) == 1, error
