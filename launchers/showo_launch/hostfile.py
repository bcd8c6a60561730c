"""Read a hostfile: one ``NAME slots=N`` per line, as DeepSpeed's launcher takes it, but strictly.

``python -m showo_launch.hostfile FILE`` prints the hosts in that form, checked and without comments, for the
shell scripts and for DeepSpeed. Nothing but the standard library is imported, so that it starts at once.
"""

import ipaddress
import re
import sys
from pathlib import Path

from showo_launch.exit_codes import USER_ERROR

_NAME = re.compile(r"\w[\w.-]*")  # no leading "-": ssh would take the name for an option
_COUNT = re.compile(r"0*[1-9][0-9]{0,5}")


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots (ranks) by host, in the file's order; the first host is the master.

    A host is a name or an IP address; a name or an IPv4 address may follow ``USER@`` where ssh needs another
    user. Comments begin with ``#``. CRLF line ends and a UTF-8 byte-order mark are accepted. ``max_slots=N``
    is checked and otherwise ignored, as by DeepSpeed.

    Raises:
        OSError: the file cannot be read.
        ValueError: ``FILE:LINE: ...``, with what to write.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise type(error)(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8; save it as UTF-8") from None
    slots: dict[str, int] = {}
    first_lines: dict[str, int] = {}  # by address: me@vm and VM are one host
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            host = _host(words[0])
            slots[host] = _slots(host, words[1:])
            first = first_lines.setdefault(address(host).lower(), number)
            if first != number:
                raise ValueError(f"{host} is in line {first} already; write each host once")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not slots:
        raise ValueError(f"{path}: no host in it; write one per line, as host1 slots=8")
    return slots


def address(host: str) -> str:
    """A host without the user: its name or IP address for everything but ssh."""
    return host.rpartition("@")[2]


def _host(word: str) -> str:
    """Check ``[USER@]NAME``; an IPv6 address is returned in its canonical form."""
    user, at, name = word.rpartition("@")
    if at and not _NAME.fullmatch(user):
        raise ValueError(f"{word!r} has no user before the @; write USER@HOST slots=N")
    if ":" in name or "[" in name:
        try:
            ipv6 = str(ipaddress.IPv6Address(name))
        except ValueError:
            raise ValueError(
                f"{word!r} is neither a name nor an address; write HOST slots=N, one host per line, an IPv6 "
                "address without brackets, and a port into ~/.ssh/config"
            ) from None
        if at:
            raise ValueError(
                f"{word!r}: pdsh takes no user before an IPv6 address; write {ipv6} slots=N, the user into "
                "~/.ssh/config"
            )
        return ipv6
    if not _NAME.fullmatch(name):
        raise ValueError(f"{word!r} is not the name of a host; write HOST slots=N")
    return word


def _slots(host: str, words: list[str]) -> int:
    """The N of ``slots=N``; ``max_slots=N`` may be beside it."""
    found: dict[str, int] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in ("slots", "max_slots") or not _COUNT.fullmatch(value):
            raise ValueError(
                f"{word!r} after {host} is not slots=N; write {host} slots=N, N at least 1"
            )
        if key in found:
            raise ValueError(f"{key} twice; write {host} slots=N")
        found[key] = int(value)
    if "slots" not in found:
        raise ValueError(f"{host} has no slots; write {host} slots=N, N its number of ranks (GPUs)")
    if found.get("max_slots", found["slots"]) < found["slots"]:
        raise ValueError(f"max_slots is below slots={found['slots']}; leave max_slots out")
    return found["slots"]


def main(argv: list[str]) -> int:
    """Print the hosts of a file; returns the exit code."""
    try:
        for host, slots in read_hostfile(Path(argv[0])).items():
            print(host, f"slots={slots}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
