"""Which hosts a run has: of a hostfile, of the Slurm allocation that we are in, or this one."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from showo_launch.doctor.sessions import Host
from showo_launch.hostfile import read_hostfile


def find_hosts(hostfile: Path | None) -> list[Host]:
    """The hosts in order, the master first.

    Args:
        hostfile: as DeepSpeed reads it; None: the allocation, or this host alone.

    Raises:
        ValueError, OSError: the hostfile cannot be read.
    """
    if hostfile is not None:
        return [Host(name, slots, "ssh") for name, slots in read_hostfile(hostfile).items()]
    if "SLURM_JOB_NODELIST" in os.environ:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        return [Host(name, 0, "srun") for name in names]
    return [Host(socket.gethostname(), 0, "here")]
