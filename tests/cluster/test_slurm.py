"""``train.sbatch`` under real Slurm: a run that loses a host has the same losses as an undisturbed one."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from showo_dist.checkpoint import complete_checkpoints
from showo_launch.rehearsal import Cluster
from tests.cluster.commands import LIMIT_S, on_first, started, wait_for
from tests.cluster.conftest import TOLERANCE, arguments, losses, train_alone
from tests.training.conftest import TinyWorld

STEPS, SAVE_EVERY, NODES = 24, 8, 4
# Slurm delays a requeued job by two minutes; in the second of its end, hosts would refuse its credential.
SOON = ("StartTime=now+5", "TimeLimit=UNLIMITED")
# train.sbatch requests a warning 300 s before the end: it is due now. Slurm checks twice a minute.
ALMOST_OVER = ("TimeLimit=4",)
# Slow enough for the run to have steps left when Slurm checks: each step sends at least three times 100 KB.
SLOW = ("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", "1mbit")
SLOW += ("burst", "65536", "latency", "100ms")


def _submit(folder: Path, *training: str) -> list[str]:
    """The command that a user types, with its output in ``folder``."""
    options = [f"--nodes={NODES}", "--gpus-per-node=1", f"--output={folder}/batch.log"]
    return ["sbatch", "--wait", *options, "launchers/slurm/train.sbatch", *training]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four hosts for the job and a spare one."""
    with Cluster({f"host{number}": 1 for number in range(1, NODES + 2)}, slurm=True) as hosts:
        yield hosts


def _states(cluster: Cluster) -> list[str]:
    return cluster.hosts["host1"].call("squeue", "--noheader", "--format=%t").split()


def _update(cluster: Cluster, changes: Sequence[str]) -> None:
    """Change the only job in the queue."""
    job = cluster.hosts["host1"].call("squeue", "--noheader", "--format=%i").strip()
    cluster.hosts["host1"].call("scontrol", "update", f"jobid={job}", *changes)


def _start_requeued(cluster: Cluster) -> None:
    """Wait until Slurm has requeued the job, and let it start soon."""
    wait_for("job requeued", lambda: _states(cluster) == ["PD"])
    _update(cluster, SOON)


def _printed(run: Path, restart: int) -> str:
    """The output of rank 0 in one start of the job."""
    (log,) = (run / "logs").glob(f"slurm-*-{restart}-task0.log")
    return log.read_text()


def _resumed_step(run: Path) -> int:
    """The saved step from which the second start resumed; the step after it must be its first."""
    printed = _printed(run, 1)
    ((saved, step),) = re.findall(rf"resuming from {run}/checkpoint-(\d+) at step (\d+)", printed)
    assert int(saved) == int(step), printed
    # Progress lines are limited in time, but the first step always has one.
    taken = [int(number) for number in re.findall(rf"step (\d+)/{STEPS}", printed)]
    assert (taken[0], taken[-1]) == (int(saved) + 1, STEPS), printed
    return int(saved)


def test_a_host_dies_and_the_job_resumes_on_another(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    undisturbed = train_alone(tiny_world, tmp_path / "alone", STEPS, NODES)
    saving = f"experiment.save_every={SAVE_EVERY}"
    words = _submit(tmp_path, *arguments(tiny_world, run, STEPS, saving))
    with started(cluster, words, tmp_path / "sbatch.log") as sbatch:
        wait_for("first checkpoint", lambda: bool(complete_checkpoints(run)))
        cluster.kill("host3")
        _start_requeued(cluster)
        assert sbatch.wait(LIMIT_S) == 0, (tmp_path / "batch.log").read_text()
    first = _printed(run, 0)
    assert "starting at step 0" in first and f"step {STEPS}/{STEPS}" not in first
    assert _resumed_step(run) in range(SAVE_EVERY, STEPS, SAVE_EVERY)
    assert losses(run) == pytest.approx(undisturbed, rel=TOLERANCE)


def test_a_warning_saves_and_requeues_the_job(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """One torchrun per node; Slurm signals before the time limit, as the batch file requests."""
    run = tmp_path / "run"
    cluster.boot("host3")
    cluster.wait_until_idle()
    undisturbed = train_alone(tiny_world, tmp_path / "alone", STEPS, NODES)
    words = _submit(tmp_path, *arguments(tiny_world, run, STEPS, "experiment.save_every=0"))
    with started(cluster, words, tmp_path / "sbatch.log", {"TASKS": "node"}) as sbatch:
        wait_for("third step", lambda: len(losses(run)) > 2)
        _update(cluster, ALMOST_OVER)
        for name in cluster.names[1:]:
            cluster.hosts[name].call(*SLOW)
        wait_for("end of the first start", lambda: _states(cluster) != ["R"])
        for name in cluster.names[1:]:
            cluster.hosts[name].call("tc", "qdisc", "delete", "dev", "eth0", "root")
        _start_requeued(cluster)
        assert sbatch.wait(LIMIT_S) == 0, (tmp_path / "batch.log").read_text()
    assert f"stopped and saved after step {_resumed_step(run)} (" in _printed(run, 0)
    assert losses(run) == pytest.approx(undisturbed, rel=TOLERANCE)


def test_ranks_that_could_not_report_are_started_again(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """As when the kernel or NCCL ends them: no rank lives to write why."""
    run = tmp_path / "run"
    cluster.boot("host3")
    cluster.wait_until_idle()
    saving = f"experiment.save_every={SAVE_EVERY}"
    words = _submit(tmp_path, *arguments(tiny_world, run, STEPS, saving))
    with started(cluster, words, tmp_path / "sbatch.log") as sbatch:
        wait_for("first checkpoint", lambda: bool(complete_checkpoints(run)))
        for name in cluster.names:
            killed = [*cluster.hosts[name].entered(), "pkill", "-KILL", "-f", "showo_dist.train"]
            subprocess.run(killed, check=False, timeout=30)  # the spare host has none
        _start_requeued(cluster)
        assert sbatch.wait(LIMIT_S) == 0, (tmp_path / "batch.log").read_text()
    assert "the run failed, code" in (tmp_path / "batch.log").read_text()
    reports = (run / "logs").glob("slurm-*-0-ends/*")
    assert not [path for path in reports if json.loads(path.read_text())["code"] is not None]
    _resumed_step(run)


def test_submitting_from_elsewhere_is_one_clear_line(cluster: Cluster, tmp_path: Path) -> None:
    batch = Path("launchers/slurm/train.sbatch").resolve()
    words = ["sbatch", "--wait", f"--chdir={tmp_path}", str(batch), "config=x.yaml"]
    move = ["env", f"--chdir={tmp_path}", *words]
    assert on_first(cluster, move, tmp_path / "log", limit_s=60) == 2
    (printed,) = tmp_path.glob("slurm-*.out")
    assert "is not the project's folder" in printed.read_text()
