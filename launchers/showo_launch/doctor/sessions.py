"""The hosts of a run, and sessions with a probe on each of them: through ssh, srun, or locally."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from showo_launch.hostfile import address, read_hostfile

Way = Literal["ssh", "srun", "here"]
# Functions of the launchers' shell scripts.
_COMMON = Path(__file__).parents[2] / "common.sh"


class HostError(Exception):
    """A host cannot be reached, or did not answer a question.

    Attributes:
        host: its name.
    """

    def __init__(self, host: str, problem: str) -> None:
        super().__init__(problem)
        self.host = host


@dataclass(frozen=True)
class Host:
    """One host of a run.

    Attributes:
        name: in the hostfile or in Slurm; with ``USER@`` where the hostfile has it.
        slots: ranks that will run there; 0: unknown.
        way: how it is reached.
    """

    name: str
    slots: int
    way: Way

    def resolve(self) -> str:
        """Its IP address, as seen from this host; IPv4 where it has both.

        Raises:
            HostError: the name is unknown.
        """
        name = address(self.name)
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise HostError(self.name, f"{name}: {error.strerror}") from None
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def find_hosts(hostfile: Path | None) -> list[Host]:
    """The hosts of a hostfile, of the Slurm allocation around this process, or this host; the master first.

    Raises:
        ValueError, OSError: the hostfile cannot be read.
    """
    if hostfile is not None:
        return [Host(name, slots, "ssh") for name, slots in read_hostfile(hostfile).items()]
    if "SLURM_JOB_NODELIST" in os.environ:
        asked = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            raise OSError(f"{' '.join(asked.args)}: {asked.stderr.strip() or asked.returncode}")
        return [Host(name, 0, "srun") for name in asked.stdout.split()]
    return [Host(socket.gethostname(), 0, "here")]


def passed_variables(hosts: Sequence[Host]) -> dict[str, str]:
    """The environment variables that ``deepspeed.sh`` sets for the ranks on these hosts; sshd passes none on.

    Args:
        hosts: of a hostfile; for others the result is empty.

    Raises:
        ValueError: the hosts have no addresses of their own.
    """
    if not hosts or hosts[0].way != "ssh":
        return {}
    known = []
    for host in hosts:
        with suppress(HostError):  # it is found to be unreachable later
            host.resolve()
            known.append(address(host.name))
    prepare = 'prepare_environment "$@"' if known else "true"
    script = f'source "$0"; {prepare}; passed_environment; user_environment'
    bash = ["bash", "-euo", "pipefail", "-c", script, str(_COMMON), *known[-1:], *known[:-1]]
    done = subprocess.run(bash, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    python = {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
    return python | dict(line.split("=", 1) for line in done.stdout.splitlines())


def _command(host: Host, python: str, connect_s: float, variables: Mapping[str, str]) -> list[str]:
    probe = ["-m", "showo_launch.doctor.probe"]
    if host.way == "here":
        return [python, *probe]
    if host.way == "srun":
        one = ["--nodes=1", "--ntasks=1", f"--nodelist={host.name}"]
        return ["srun", "--overlap", "--quiet", "--unbuffered", *one, python, *probe]
    passed = [f"{name}={value}" for name, value in variables.items()]
    remote = ["env", "--chdir", os.getcwd(), *passed, python, *probe]
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={connect_s:.0f}"]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    return ["ssh", *options, host.name, shlex.join(remote)]


@dataclass
class Session:
    """A probe that runs on a host while the context is open.

    Args:
        host: where it runs.
        python: the interpreter there.
        timeout_s: of connecting and of each answer.
        variables: of the environment there; over ssh only.
    """

    host: Host
    python: str = sys.executable
    timeout_s: float = 60.0
    variables: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] = field(init=False)
    _unread: bytes = field(init=False, default=b"")
    _ended: str = field(init=False, default="")  # why no question can be asked any more
    _asking: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            _command(self.host, self.python, min(10.0, self.timeout_s), self.variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, name: str, **arguments: Any) -> Any:
        """Call one of :data:`showo_launch.doctor.probe.ANSWERS` on the host and return its value.

        Raises:
            HostError: it did not answer in time, or failed; this question or one before.
        """
        # The pipe has one answer after the other: a second reader could get the first one's.
        alone = self._asking.acquire(blocking=False)
        assert alone, f"two questions to {self.host.name} at once"
        try:
            return self._answer(name, arguments)
        finally:
            self._asking.release()

    def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        if self._ended:
            raise HostError(self.host.name, self._ended)
        assert self._process.stdin is not None
        question = json.dumps({"ask": name, "with": arguments}) + "\n"
        try:
            self._process.stdin.write(question.encode())
            self._process.stdin.flush()
        except OSError:
            raise HostError(self.host.name, self._failure()) from None
        reply = json.loads(self._line())
        if "error" in reply:
            raise HostError(self.host.name, f"{name}: {reply['error']}")
        return reply["answer"]

    def _line(self) -> bytes:
        """Read one line from the probe, which may come in several pieces."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(self.timeout_s):
                    self._process.kill()  # or a late answer would be taken for the next one
                    self._ended = f"no answer within {self.timeout_s:g} s"
                    raise HostError(self.host.name, self._ended)
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    raise HostError(self.host.name, self._failure())
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _failure(self) -> str:
        """Why the probe ended: the last line on stderr of ssh, srun or Python."""
        self._process.kill()
        _, stderr = self._process.communicate()
        lines = stderr.decode(errors="replace").strip().splitlines()
        self._ended = lines[-1] if lines else "the connection ended"
        return self._ended
