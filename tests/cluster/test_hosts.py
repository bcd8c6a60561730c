"""Rehearsed hosts have their own names, networks, processes, ssh and links, and leave nothing behind."""

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


def _output(cluster: Cluster, words: list[str], log: Path, limit_s: float = 60) -> list[str]:
    """The output of a command on the first host, in sorted lines."""
    assert on_first(cluster, words, log, limit_s=limit_s) == 0, log.read_text()
    return sorted(log.read_text().splitlines())


def test_pdsh_reaches_every_host_by_name(cluster: Cluster, tmp_path: Path) -> None:
    output = _output(
        cluster, ["pdsh", "-S", "-w", ",".join(NAMES), "hostname; hostname -I"], tmp_path / "log"
    )
    expected = [f"{name}: {name}" for name in NAMES]
    expected += [f"{name}: 10.77.0.{number} " for number, name in enumerate(NAMES, start=1)]
    assert output == sorted(expected)


def test_hostfile_names_hosts_and_slots(cluster: Cluster, tmp_path: Path) -> None:
    assert _output(cluster, ["bash", "-c", "cat $HOSTFILE"], tmp_path / "log") == [
        f"{name} slots=2" for name in NAMES
    ]


def test_memory_and_processes_are_a_hosts_own(cluster: Cluster, tmp_path: Path) -> None:
    touch = (
        "touch /dev/shm/$(hostname) /run/$(hostname); ls /dev/shm; ls -d /run/host*; pgrep -c sshd"
    )
    output = _output(cluster, ["ssh", "host2", touch], tmp_path / "log")
    # One sshd that listens and one for this session; those of this machine and the other hosts are hidden.
    assert output == ["/run/host2", "2", "host2"]


def test_a_link_is_as_slow_as_asked_for_each_way(cluster: Cluster, tmp_path: Path) -> None:
    send = f"head -c {MEGABYTES}000000 /dev/zero"
    least_s = 0.9 * MEGABYTES * 8 / SLOW_MBIT  # data that fits into the queue does not wait
    for command in (f"{send} | ssh host3 'cat >/dev/null'", f"ssh host3 '{send}' >/dev/null"):
        begin = time.monotonic()
        _output(cluster, ["bash", "-c", command], tmp_path / "log")
        assert time.monotonic() - begin > least_s, command
    held_back = [_held_back(cluster, name) for name in NAMES]
    assert held_back[:2] == [0, 0] and held_back[2] > 0, held_back


def _held_back(cluster: Cluster, name: str) -> int:
    """How often a host's packets were delayed by the rate of its link, as counted by the kernel."""
    counts = cluster.hosts[name].call("tc", "-statistics", "qdisc", "show", "dev", "eth0")
    return sum(int(count) for count in re.findall(r"overlimits (\d+)", counts))


def test_a_network_is_cut_and_reconnected(cluster: Cluster, tmp_path: Path) -> None:
    knock = ["ssh", "-o", "ConnectTimeout=2", "host2", "true"]
    cluster.cut("host2")
    assert on_first(cluster, knock, tmp_path / "log", limit_s=60) == 255
    assert cluster.hosts["host2"].alive
    cluster.reconnect("host2")
    assert on_first(cluster, knock, tmp_path / "log", limit_s=60) == 0


def test_a_host_dies_with_its_processes_and_boots_again(cluster: Cluster, tmp_path: Path) -> None:
    knock = ["ssh", "-o", "ConnectTimeout=2", "host2", "test -e /run/alive"]
    process = cluster.start("host2", ["bash", "-c", "touch /run/alive; sleep 1000"])
    wait_for("process on host2", lambda: on_first(cluster, knock, tmp_path / "log") == 0)
    cluster.kill("host2")
    assert process.wait(10) == 137 or process.returncode == -signal.SIGKILL
    assert on_first(cluster, knock, tmp_path / "log", limit_s=60) == 255
    cluster.boot("host2")
    assert (
        on_first(cluster, knock, tmp_path / "log", limit_s=60) == 1
    )  # it is reached, and its /run is new


def test_simultaneous_clusters_are_isolated(cluster: Cluster, tmp_path: Path) -> None:
    with Cluster({"host1": 1, "host9": 1}) as other:
        assert on_first(other, ["ssh", "host9", "true"], tmp_path / "log") == 0
        assert on_first(cluster, ["ssh", "host9", "true"], tmp_path / "log") == 255
        assert on_first(cluster, ["ssh", "host2", "true"], tmp_path / "log") == 0


def _rehearse(*words: str) -> subprocess.Popen[str]:
    # In the background, shells ignore Ctrl-C for the tests, and children inherit that.
    accept_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        ["launchers/rehearse", *words],
        preexec_fn=accept_interrupt,
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
    """Whether a process with this word in its command line exists."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in entry.read_text(errors="replace").split("\0"):
                return True
        except OSError:
            continue  # it has just ended
    return False


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name
)
def test_nothing_is_left_behind(number: signal.Signals) -> None:
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


def test_events_are_applied_and_the_exit_code_is_the_commands() -> None:
    knock = "ssh -o ConnectTimeout=1 host2 true"
    command = f"sleep 3; {knock}; first=$?; sleep 5; {knock}; exit $((first + $?))"
    events = ["--at", "1:kill:host2", "--at", "5:boot:host2"]
    process = _rehearse("--hosts", "2", *events, "--", "bash", "-c", command)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 255
    assert output.splitlines() == ["rehearse: kill host2", "rehearse: boot host2"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--hosts", "0", "--", "true"], "--hosts 0: 1 or more"),
        (["--hosts", "2"], "no command"),
        (["--hostfile", "launchers/hosts", "--slots", "2", "--", "true"], "--slots 2"),
        (["--hosts", "2", "--at", "5:explode:host1", "--", "true"], "kill|boot|cut|reconnect"),
        (["--hosts", "2", "--at", "5:kill:host3", "--", "true"], "the hosts are host1, host2"),
        (["--hosts", "2", "--link", "host3:rate=1mbit", "--", "true"], "host3"),
        (["--hosts", "2", "--link", "speed=1mbit", "--", "true"], "rate=… and delay=… are allowed"),
        (["--hosts", "2", "--link", "rate=fast", "--", "true"], "rate=fast"),
        (["--hostfile", "Makefile", "--", "true"], "Makefile:"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], complaint: str) -> None:
    _, error = (process := _rehearse(*words)).communicate(timeout=60)
    assert process.returncode == 2
    assert complaint in error and len(error.splitlines()) == 1, error
