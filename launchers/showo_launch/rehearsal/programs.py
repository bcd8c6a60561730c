"""The system programs that a rehearsal needs, and the ssh settings with which its hosts reach each other."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGES = "iproute2 openssh-server pdsh"
SLURM_PACKAGES = "slurm-wlm munge"
_NEEDED = ("unshare", "nsenter", "setpriv", "ip", "tc", "sshd", "ssh", "ssh-keygen", "pdsh")
_NEEDED_BY_SLURM = ("munged", "slurmctld", "slurmd", "sinfo")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def path_to(program: str) -> str | None:
    """Path of a program; also searches the folders that only root has on its PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")


def missing_requirement(slurm: bool = False) -> str | None:
    """Why hosts cannot be created on this machine, with what to install; None when they can.

    Args:
        slurm: whether Slurm has to run on them.
    """
    if os.geteuid() != 0:
        return "needs root: hosts are made of Linux namespaces"
    needed = _NEEDED + (_NEEDED_BY_SLURM if slurm else ())
    absent = [program for program in needed if path_to(program) is None]
    if not absent:
        return None
    packages = PACKAGES + (f" {SLURM_PACKAGES}" if slurm else "")
    return f"needs {', '.join(absent)}; on Debian: apt-get install -y {packages}"


def call(words: Sequence[str], timeout_s: float = 30.0) -> str:
    """Run a program until it ends and return its stdout.

    Raises:
        OSError: it failed or took too long; contains its stderr.
    """
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{' '.join(words)}: no end after {timeout_s:g} s") from None
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


# One key pair is the host key and the user key on all hosts: they trust each other.
_SERVER = """\
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
MaxStartups 1000
MaxSessions 1000
PidFile /run/sshd.pid
SetEnv {environment}
"""
_CLIENT = """\
Host *
  IdentityFile {folder}/key
  GlobalKnownHostsFile {folder}/known_hosts
  UserKnownHostsFile /dev/null
  BatchMode yes
  LogLevel ERROR
"""
SERVER_FILE, CLIENT_FILE = "sshd_config", "ssh_config"


def write_ssh(folder: Path, seen_as: str, names: Sequence[str], login: Mapping[str, str]) -> None:
    """Write the key and the settings of ssh and sshd.

    Args:
        folder: written to.
        seen_as: that folder's path on the hosts.
        names: of the hosts.
        login: environment of every session.
    """
    call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")])
    kind, key, *_ = (folder / "key.pub").read_text().split()
    (folder / "known_hosts").write_text("".join(f"{name} {kind} {key}\n" for name in names))
    environment = " ".join(f"{name}={value}" for name, value in login.items())
    (folder / SERVER_FILE).write_text(_SERVER.format(folder=seen_as, environment=environment))
    (folder / CLIENT_FILE).write_text(_CLIENT.format(folder=seen_as))
