"""DeepSpeed's launcher over ssh on six hosts gives the losses of one process."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from showo_launch.hostfile import read_hostfile
from showo_launch.rehearsal import Cluster
from tests.cluster.commands import on_first, started, wait_for
from tests.cluster.conftest import TOLERANCE, arguments, losses, train_alone
from tests.training.conftest import TinyWorld

HOSTFILE = Path("launchers/hosts")
HOSTS, STEPS = 6, 5
FAULT_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The hosts that ``launchers/hosts`` names."""
    with Cluster(read_hostfile(HOSTFILE)) as hosts:
        assert len(hosts.names) == HOSTS
        yield hosts


@pytest.fixture(scope="module")
def alone(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of one process, without hosts, for the same batches."""
    return train_alone(tiny_world, tmp_path_factory.mktemp("alone") / "run", STEPS, HOSTS)


def test_the_hostfile_command_trains_zero_3_as_one_process_does(
    cluster: Cluster, tiny_world: TinyWorld, alone: dict[int, float], tmp_path: Path
) -> None:
    """``deepspeed --hostfile launchers/hosts`` as a user types it, with one rank per host."""
    run = tmp_path / "run"
    words = ["deepspeed", "--hostfile", str(HOSTFILE), "--num_gpus", "1"]
    words += ["--module", "showo_dist.train", *arguments(tiny_world, run, STEPS)]
    code = on_first(cluster, [*words, "distributed.zero_stage=3"], tmp_path / "log")
    printed = (tmp_path / "log").read_text()
    assert code == 0, printed[-3000:]
    assert f"{HOSTS} ranks on cpu, ZeRO-3" in printed
    assert losses(run) == pytest.approx(alone, rel=TOLERANCE)


def test_the_script_trains_zero_2_as_one_process_does(
    cluster: Cluster, tiny_world: TinyWorld, alone: dict[int, float], tmp_path: Path
) -> None:
    """``launchers/deepspeed.sh``: special characters in arguments arrive unchanged, each rank has its log.

    The hostfile has a byte-order mark, CRLF and users, which DeepSpeed's own reader would not all accept.
    """
    run, name = tmp_path / "run", "it's {1,2} $HOME %h"
    hostfile = tmp_path / "hosts"
    lines = [f"root@{host} slots={slots}\r\n" for host, slots in cluster.slots.items()]
    hostfile.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    words = ["launchers/deepspeed.sh", "--hostfile", str(hostfile), "--num_gpus", "1"]
    changes = [f"experiment.name={name}", "distributed.zero_stage=2"]
    code = on_first(
        cluster, [*words, *arguments(tiny_world, run, STEPS, *changes)], tmp_path / "log"
    )
    printed = (tmp_path / "log").read_text()
    assert code == 0, printed[-3000:]
    assert f"{name}: 48,027 parameters, {HOSTS} ranks on cpu, ZeRO-2" in printed
    assert losses(run) == pytest.approx(alone, rel=TOLERANCE)
    logs = {path.name.partition("_")[2] for path in (run / "logs").glob("*_rank*.log")}
    assert logs == {f"rank{rank}.log" for rank in range(HOSTS)}


def test_every_host_starts_its_own_ranks_without_ssh(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """``deepspeed.sh --no_ssh`` and ``torchrun.sh``, each on two hosts at once."""
    hostfile = tmp_path / "hosts"
    hostfile.write_bytes(b"root@host5 slots=1\r\n\r\nhost2 slots=1\r\n")
    undisturbed = train_alone(tiny_world, tmp_path / "alone", STEPS, 2)
    for script in (["launchers/deepspeed.sh", "--no_ssh"], ["launchers/torchrun.sh"]):
        run = tmp_path / Path(script[0]).stem
        words = [*script, *arguments(tiny_world, run, STEPS)]
        environment = {"HOSTFILE": str(hostfile)}
        with (tmp_path / "log").open("w") as log:
            both = [cluster.start(name, words, environment, log) for name in ("host2", "host5")]
            codes = [process.wait(900) for process in both]
        assert codes == [0, 0], (tmp_path / "log").read_text()[-3000:]
        assert losses(run) == pytest.approx(undisturbed, rel=TOLERANCE)


def test_a_host_without_network_is_named_by_the_others(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    include = "@".join(f"host{number}:0" for number in (1, 2, 3))
    words = ["launchers/deepspeed.sh", "--hostfile", str(HOSTFILE), "--include", include]
    changes = [f"fault.timeout_s={FAULT_TIMEOUT_S}"]
    words += arguments(tiny_world, run, 100_000, *changes)
    with started(cluster, words, tmp_path / "log"):
        wait_for("third step", lambda: len(losses(run)) > 2)
        cluster.cut("host3")
        try:
            wait_for("both name rank 2 on host3", lambda: _both_name_host3(run), FAULT_TIMEOUT_S)
        finally:
            cluster.reconnect("host3")
    (log,) = (run / "logs").glob("*_rank0.log")
    assert "rank 2 (host host3" in log.read_text()


def _both_name_host3(run: Path) -> bool:
    """Whether the evidence of ranks 0 and 1 begins with the lost rank and its host."""
    found = [list(run.rglob(f"*-rank-0000{rank}.txt")) for rank in (0, 1)]
    return all(
        paths and "rank 2 (host host3" in paths[0].read_text().partition("\n")[0] for paths in found
    )


def test_ranks_on_all_hosts_end_with_their_launcher(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """Killed, so that it can tell no host; and a run's folder has any name, also over ssh."""
    run, names = tmp_path / """it's a "run" {1,2} $HOME""", ("host1", "host2")
    include = "@".join(f"{name}:0" for name in names)
    words = ["launchers/deepspeed.sh", "--hostfile", str(HOSTFILE), "--include", include]
    with started(
        cluster, [*words, *arguments(tiny_world, run, 100_000)], tmp_path / "log"
    ) as launcher:
        wait_for("third step", lambda: launcher.poll() is not None or len(losses(run)) > 2)
        assert all(_running(cluster, name, "showo_dist.train config") for name in names)
        # The launcher, and the connections that it opened.
        killed = [
            *cluster.hosts["host1"].entered(),
            "pkill",
            "-KILL",
            "-f",
            "bin/deepspeed|pdsh|^ssh ",
        ]
        subprocess.run(killed, check=True, timeout=30)
        launcher.wait(30)
        wait_for(
            "end of all ranks",
            lambda: not any(_running(cluster, name, "showo_dist.train config") for name in names),
            FAULT_TIMEOUT_S,
        )


def _running(cluster: Cluster, host: str, command: str) -> bool:
    """Whether a host has a process whose command line matches."""
    words = [*cluster.hosts[host].entered(), "pgrep", "-f", command]
    return bool(subprocess.run(words, capture_output=True, timeout=30).stdout)


@pytest.mark.cluster48
def test_48_ranks_take_three_steps(cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path) -> None:
    """All of ``launchers/hosts``: 6 hosts with 8 ranks each."""
    run = tmp_path / "run"
    words = ["launchers/deepspeed.sh", "--hostfile", str(HOSTFILE), *arguments(tiny_world, run, 3)]
    code = on_first(cluster, words, tmp_path / "log", limit_s=3600)
    printed = (tmp_path / "log").read_text()
    assert code == 0, printed[-3000:]
    assert "48 ranks on cpu" in printed
    assert sorted(losses(run)) == [1, 2, 3]
