"""A cluster of hosts on one Linux machine, each with its own name, network, processes, ``/run`` and sshd."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from showo_launch.rehearsal.namespaces import Namespaces, open_namespaces
from showo_launch.rehearsal.network import INTERFACE, Link, Switch, hosts_file
from showo_launch.rehearsal.programs import (
    CLIENT_FILE,
    SERVER_FILE,
    missing_requirement,
    path_to,
    write_ssh,
)
from showo_launch.rehearsal.slurm import start_slurm, wait_until_idle, write_slurm

SHARED = "/run/rehearsal"
"""Folder that the hosts share with each other and not with this machine."""
HOSTFILE = f"{SHARED}/hostfile"
# No name server can be reached from the hosts, and a query would take seconds to time out.
_NO_NAME_SERVER = "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"
# Gives a host its own name, /run, /dev/shm, /etc/hosts and ssh settings. /run/hosts is common to all hosts.
_FURNISH = """
hostname "$1"
own="/run/hosts/$1"
rm -rf "$own"
mkdir -p "$own/rehearsal" "$own/sshd"
mount --bind /run/rehearsal "$own/rehearsal"
mount --rbind "$own" /run
mount -t tmpfs tmpfs /dev/shm
mount -t sysfs sysfs /sys
mount --bind /run/rehearsal/hosts /etc/hosts
mount --bind /run/rehearsal/nsswitch /etc/nsswitch.conf
mount --bind "/run/rehearsal/$2" /etc/ssh/ssh_config
if [ -e /dev/nvidiactl ]; then mount --bind /dev/null /dev/nvidiactl; fi
"""


class Cluster:
    """Hosts that exist while the context is open.

    They share all files with this machine except ``/run``, ``/dev/shm``, ``/etc/hosts`` and the settings of
    ssh (and Slurm). ssh and pdsh work between them as root. They reach each other and nothing else; several
    clusters at once are isolated. GPUs are hidden: several hosts cannot share one.

    Args:
        slots: ranks of each host in the hostfile, by its name.
        links: bandwidth and delay by host; other links are as fast as the machine.
        slurm: run Slurm on the hosts too.

    Raises:
        OSError: this machine cannot create hosts, or a daemon does not start.
        ValueError: a link belongs to no host, or ``tc`` refuses it.
    """

    def __init__(
        self,
        slots: Mapping[str, int],
        links: Mapping[str, Link] | None = None,
        slurm: bool = False,
    ) -> None:
        self.slots, self.links, self.slurm = dict(slots), dict(links or {}), slurm
        self.names = list(self.slots)
        if unknown := self.links.keys() - self.slots.keys():
            raise ValueError(f"link of {sorted(unknown)}: the hosts are {', '.join(self.names)}")
        if missing := missing_requirement(slurm):
            raise OSError(missing)
        self.hosts: dict[str, Namespaces] = {}

    def __enter__(self) -> Self:
        self._ground = open_namespaces()
        try:
            self._ground.call("mount", "-t", "tmpfs", "tmpfs", "/run")
            self._write_settings()
            self._switch = Switch(self._ground)
            for name in self.names:
                self.boot(name)
            if self.slurm:
                self.wait_until_idle()
        except BaseException:
            self._ground.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ground.kill()
        for host in self.hosts.values():
            host.holder.wait()

    @property
    def shared(self) -> Path:
        """The path of the hosts' ``/run/rehearsal`` on this machine."""
        return Path(f"{self._ground.root}{SHARED}")

    def _write_settings(self) -> None:
        self.shared.mkdir()
        (self.shared / "logs").mkdir()
        (self.shared / "hosts").write_text(hosts_file(self.names))
        (self.shared / "nsswitch").write_text(_NO_NAME_SERVER)
        lines = [f"{name} slots={slots}\n" for name, slots in self.slots.items()]
        (self.shared / "hostfile").write_text("".join(lines))
        write_ssh(self.shared, SHARED, self.names, self.login())
        if self.slurm:
            write_slurm(self.shared, SHARED, self.names, max(self.slots.values()))

    def login(self) -> dict[str, str]:
        """Environment variables that every session on a host gets in addition to the system's."""
        return {
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "NCCL_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PDSH_RCMD_TYPE": "ssh",
            "HOSTFILE": HOSTFILE,
        }

    def boot(self, name: str) -> None:
        """Start a host, for the first time or again; it is killed first if it still runs.

        Raises:
            OSError: a daemon does not start.
        """
        if name in self.hosts:
            self.kill(name)
        number = self.names.index(name)
        host = self.hosts[name] = open_namespaces(inside=self._ground)
        self._switch.plug(host, number, self.links.get(name, Link()))
        host.call("bash", "-euc", _FURNISH, "furnish", name, CLIENT_FILE)
        log = f"{SHARED}/logs/sshd-{name}.log"
        host.call(path_to("sshd") or "sshd", "-f", f"{SHARED}/{SERVER_FILE}", "-E", log)
        if self.slurm:
            start_slurm(host, name, SHARED, max(self.slots.values()), is_first=number == 0)

    def wait_until_idle(self) -> None:
        """Wait until Slurm reports all hosts idle.

        Raises:
            OSError: it does not in time.
        """
        wait_until_idle(self.hosts[self.names[0]], len(self.names), self.logs)

    def start(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | IO[str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, in this working folder, with this environment and ``login()``.

        Args:
            name: of the host.
            words: the command.
            environment: overrides the rest.
            output: file for stdout and stderr; None: this process's own.
        """
        # Entering a mount namespace leaves the working folder behind.
        inside = ["env", "--chdir", os.getcwd(), *words]
        return subprocess.Popen(
            [*self.hosts[name].entered(), *inside],
            env={**os.environ, **self.login(), **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )

    def kill(self, name: str) -> None:
        """Power a host off: its network and its processes end at once."""
        if self.hosts[name].alive:
            self._switch.unplug(self.names.index(name))
            self.hosts[name].kill()

    def cut(self, name: str) -> None:
        """Disconnect a host's network; its processes continue."""
        self._switch.cut(self.names.index(name))

    def reconnect(self, name: str) -> None:
        """Undo :meth:`cut`."""
        self._switch.reconnect(self.names.index(name))

    def logs(self, lines: int = 5) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for path in sorted((self.shared / "logs").iterdir()):
            last = path.read_text(errors="replace").splitlines()[-lines:]
            parts += [f"{path.name}: {line}" for line in last]
        return "\n".join(parts)
