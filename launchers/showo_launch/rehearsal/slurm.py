"""Slurm on the hosts of a rehearsal: munge and slurmd on each, the controller on the first."""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from showo_launch.rehearsal.namespaces import Namespaces

_CONF = """\
ClusterName=rehearsal
SlurmctldHost={first}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/munge.socket.2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
JobRequeue=1
SlurmdTimeout={silence_s}
KillWait=5
SchedulerParameters=sched_min_interval=100000
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd-%n.log
NodeName={names} CPUs={cpus} Gres=gpu:{slots} State=UNKNOWN
PartitionName=rehearsal Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Slurm counts the device files of GPUs; empty files are enough.
_GRES = "Name=gpu File=/run/slurm/gpu[0-{last}]\n"
_CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=yes
CgroupMountpoint=/run/slurm/cgroup
"""
# Slurm and munge read their settings only from these folders, on every host.
_PREPARE = """
mkdir -p /run/munge /run/slurm/state /run/slurm/spool /run/slurm/cgroup
for gpu in $(seq 0 "$3"); do touch "/run/slurm/gpu$gpu"; done
mount --bind "$1/slurm" /etc/slurm
cp "$1/munge.key" /run/munge/key
munged --force --key-file=/run/munge/key --socket=/run/munge/munge.socket.2 \
    --pid-file=/run/munge/pid --seed-file=/run/munge/seed --log-file="$1/logs/munged-$2.log"
"""
_READY_WITHIN_S = 60.0
SILENCE_S = 10
"""Seconds after which Slurm marks a silent host as down and requeues its jobs."""


def write_slurm(folder: Path, seen_as: str, names: Sequence[str], slots: int) -> None:
    """Write Slurm's settings and munge's key.

    Args:
        folder: written to.
        seen_as: that folder's path on the hosts.
        names: of the hosts.
        slots: GPUs that Slurm assumes on each host.
    """
    settings = folder / "slurm"
    settings.mkdir()
    conf = _CONF.format(
        first=names[0],
        names=",".join(names),
        silence_s=SILENCE_S,
        logs=f"{seen_as}/logs",
        cpus=max(slots, os.cpu_count() or 1),
        slots=slots,
    )
    (settings / "slurm.conf").write_text(conf)
    (settings / "gres.conf").write_text(_GRES.format(last=slots - 1))
    (settings / "cgroup.conf").write_text(_CGROUP)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)


def start_slurm(host: Namespaces, name: str, seen_as: str, slots: int, is_first: bool) -> None:
    """Start the daemons of one host.

    Raises:
        OSError: one of them does not start.
    """
    host.call("bash", "-euc", _PREPARE, "prepare", seen_as, name, str(slots - 1))
    if is_first:
        host.call("slurmctld")
    host.call("slurmd", "-N", name)


def wait_until_idle(first: Namespaces, hosts: int, diagnosis: Callable[[], str]) -> None:
    """Wait until Slurm reports all hosts idle.

    Raises:
        OSError: it does not in time.
    """
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        states = _states(first)
        if states == ["idle"] * hosts:
            return
        if time.monotonic() > deadline:
            raise OSError(f"Slurm is not ready, its hosts are {states}\n{diagnosis()}")
        time.sleep(0.2)


def _states(first: Namespaces) -> list[str]:
    try:
        return first.call("sinfo", "--noheader", "--Node", "--format=%t").split()
    except OSError:
        return []  # the controller does not answer yet
