"""Which host is blamed."""

import pytest

from showo_launch.doctor import main
from showo_launch.doctor.findings import different, slow_links, wrong_clocks


def test_the_odd_one_out_is_named() -> None:
    (finding,) = different("torch", {"a": "1", "b": "2", "c": "1"})
    assert (finding.host, finding.problem) == ("b", "2; others: 1")
    (finding,) = different("torch", {"a": "1", "b": "2"})
    assert finding.host == "b", "of two hosts the first one is believed"
    assert not different("torch", {"a": "1", "b": "1"})


@pytest.mark.parametrize("ahead", [-3600.0, 2.0])
def test_a_clock_is_compared_with_the_others(ahead: float) -> None:
    (finding,) = wrong_clocks({"a": 0.1, "b": ahead, "c": -0.1}, most_s=1)
    assert finding.host == "b"
    assert not wrong_clocks({"a": 40.0, "b": 40.2, "c": 39.9}, most_s=1), (
        "ours may be the wrong one"
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


def test_even_links_are_slow_only_against_a_wish() -> None:
    assert not slow_links(ring(1, 1.2, 0.9), least_gbit=None)
    assert len(slow_links(ring(1, 1.2, 0.9), least_gbit=5)) == 3


def test_this_host_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--free-gb", "0"]) == 0
    assert "nothing wrong with 1 hosts" in capsys.readouterr().out


def test_too_little_space_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--free-gb", "1e9"]) == 1
    assert "disk" in capsys.readouterr().out
