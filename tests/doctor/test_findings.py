"""Findings name the host that differs, and what doctor checks on this host alone."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from showo_launch.doctor import main
from showo_launch.doctor.examination import Examiner, Limits
from showo_launch.doctor.findings import different, missing_interface, slow_links, wrong_clocks
from showo_launch.doctor.probe import code_digest, source_folders
from showo_launch.doctor.sessions import Host, Session
from tests.forks import free_port


def test_the_odd_one_out_is_named() -> None:
    (finding,) = different("torch", {"a": "1", "b": "2", "c": "1"})
    assert (finding.host, finding.problem) == ("b", "2; others: 1")
    (finding,) = different("torch", {"a": "1", "b": "2"})
    assert finding.host == "b", "of two hosts the first one counts as right"
    assert not different("torch", {"a": "1", "b": "1"})


@pytest.mark.parametrize("ahead", [-3600.0, 2.0])
def test_a_clock_is_compared_with_the_others(ahead: float) -> None:
    (finding,) = wrong_clocks({"a": 0.1, "b": ahead, "c": -0.1}, most_s=1)
    assert finding.host == "b"
    assert not wrong_clocks({"a": 40.0, "b": 40.2, "c": 39.9}, most_s=1), (
        "our own clock may be the wrong one"
    )


def ring(*gbit: float) -> dict[tuple[str, str], dict[str, float]]:
    names = "abcdef"[: len(gbit)]
    pairs = zip(names, names[1:] + names[:1], strict=True)
    return {pair: {"gbit": speed} for pair, speed in zip(pairs, gbit, strict=True)}


def test_a_slow_host_is_named_and_not_its_neighbours() -> None:
    (finding,) = slow_links(ring(10, 10, 0.1, 0.1), least_gbit=None)
    assert finding.host == "d"


def test_a_slow_cable_between_two_hosts_names_both() -> None:
    (finding,) = slow_links(ring(10, 0.1, 10, 10), least_gbit=None)
    assert finding.host == "b–c"


def test_equal_links_are_slow_only_against_a_limit() -> None:
    assert not slow_links(ring(1, 1.2, 0.9), least_gbit=None)
    assert len(slow_links(ring(1, 1.2, 0.9), least_gbit=5)) == 3


@pytest.mark.slow
def test_a_dead_host_spoils_the_measurements_of_its_own_links_alone() -> None:
    """Also the one that follows at once, while a neighbour still waits for the dead host's answer."""
    names = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    limits = Limits([], [], 0, 0, free_port(), None, 1, False, sys.executable, 20)
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        sessions = [stack.enter_context(Session(Host(name, 1, "here"))) for name in names]

        def log(line: str) -> None:
            if line.startswith("all-reduce"):
                sessions[1]._process.kill()

        examiner = Examiner([session.host for session in sessions], limits, log)
        examiner._links(sessions, pool)
    found = [(finding.host, finding.problem) for finding in examiner.result.found]
    assert [host for host, _ in found] == ["127.0.0.1–127.0.0.2", "127.0.0.2–127.0.0.3"]
    assert "the connection ended" in found[1][1]
    assert list(examiner.result.speeds) == [("127.0.0.3", "127.0.0.1")]


def test_every_interface_of_a_list_is_on_every_host() -> None:
    """gloo compares whole names, so ``eth`` is not ``eth0``."""
    facts = {"a": {"interfaces": ["lo", "eth0"]}, "b": {"interfaces": ["lo", "ens3"]}}
    (finding,) = missing_interface(facts, "eth0")
    assert (finding.host, finding.problem) == ("b", "no eth0; it has lo, ens3")
    assert [f.problem for f in missing_interface(facts, "lo,eth0,ens3")] == [
        "no ens3; it has lo, eth0",
        "no eth0; it has lo, ens3",
    ]
    assert len(missing_interface(facts, "eth")) == 2
    assert not missing_interface(facts, "lo") and not missing_interface(facts, None)


def test_this_host_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--free-gb", "0"]) == 0
    assert "nothing wrong with 1 hosts" in capsys.readouterr().out


def test_too_little_space_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--free-gb", "1e9"]) == 1
    assert "disk" in capsys.readouterr().out


def test_the_digest_covers_every_source_file(tmp_path: Path) -> None:
    names = {folder.name for folder in source_folders()}
    assert names == {"showo_dist", "showo_kernels", "showo_data", "showo_launch"}
    digests = {code_digest([tmp_path])}
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2"), ("cpu/gelu.cpp", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        digests.add(code_digest([tmp_path]))
    assert len(digests) == 5


def test_the_probe_starts_without_torch() -> None:
    """It takes long to load from a shared disk, and ``--quick`` does without."""
    code = "import sys, showo_launch.doctor.probe as p; p.facts([]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
