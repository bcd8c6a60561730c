"""DeepSpeed's hostfile: one ``NAME slots=N`` per line."""

from pathlib import Path


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots by host, in the file's order.

    Raises:
        ValueError: a line is not ``NAME slots=N``, or names a host again.
    """
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        count = words[1].removeprefix("slots=") if len(words) == 2 else ""
        if not count.isdecimal() or int(count) < 1 or words[0] in slots:
            raise ValueError(
                f"{path}:{number}: {line.strip()!r} is not NAME slots=N, once per host"
            )
        slots[words[0]] = int(count)
    if not slots:
        raise ValueError(f"{path}: no host in it")
    return slots
