"""Keys and settings with which every rehearsed host reaches every other as root."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from showo_dist.rehearsal.programs import call

# One key pair serves as everybody's host key and everybody's own: these hosts trust each other.
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
    """Write keys and settings of ssh and sshd.

    Args:
        folder: where to.
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
