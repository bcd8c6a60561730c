"""Talking to a probe on a host: through ssh, srun, or here."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

Way = Literal["ssh", "srun", "here"]
# What the probe needs of our environment; sshd hands nothing on.
_PASSED = ("PYTHONPATH", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS")


class HostError(Exception):
    """A host cannot be reached, or does not answer.

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
        name: as the hostfile or Slurm calls it.
        slots: ranks that it is to hold; 0: unknown.
        way: how it is reached.
    """

    name: str
    slots: int
    way: Way


def _command(host: Host, python: str, connect_s: float) -> list[str]:
    probe = ["-m", "showo_launch.doctor.probe"]
    if host.way == "here":
        return [python, *probe]
    if host.way == "srun":
        one = ["--nodes=1", "--ntasks=1", f"--nodelist={host.name}"]
        return ["srun", "--overlap", "--quiet", "--unbuffered", *one, python, *probe]
    passed = [f"{name}={os.environ[name]}" for name in _PASSED if name in os.environ]
    remote = ["env", "--chdir", os.getcwd(), *passed, python, *probe]
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={connect_s:.0f}"]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    return ["ssh", *options, host.name, shlex.join(remote)]


@dataclass
class Session:
    """A probe that runs on a host while the context is open.

    Args:
        host: where.
        python: the interpreter there.
        timeout_s: of connecting and of each answer.
    """

    host: Host
    python: str = sys.executable
    timeout_s: float = 60.0
    _process: subprocess.Popen[bytes] = field(init=False)
    _unread: bytes = field(init=False, default=b"")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            _command(self.host, self.python, min(10.0, self.timeout_s)),
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

    def ask(self, what: str, **arguments: Any) -> Any:
        """The probe's answer to one of :data:`showo_launch.doctor.probe.ANSWERS`.

        Raises:
            HostError: there is none in time, or the probe failed.
        """
        assert self._process.stdin is not None
        question = json.dumps({"ask": what, "with": arguments}) + "\n"
        try:
            self._process.stdin.write(question.encode())
            self._process.stdin.flush()
        except OSError:
            raise HostError(self.host.name, self._last_words()) from None
        reply = json.loads(self._line())
        if "error" in reply:
            raise HostError(self.host.name, f"{what}: {reply['error']}")
        return reply["answer"]

    def _line(self) -> bytes:
        """One line of the probe's, which comes in pieces."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(self.timeout_s):
                    self._process.kill()  # a late answer must not be taken for the next one
                    raise HostError(self.host.name, f"no answer within {self.timeout_s:g} s")
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    raise HostError(self.host.name, self._last_words())
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Why the probe ended, as ssh, srun or Python said it last."""
        self._process.kill()
        _, said = self._process.communicate()
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the connection ended"
