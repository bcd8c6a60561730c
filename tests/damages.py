"""Random damages of bytes, and the numbers of the cases of a fuzz test.

Case n of a test is the same in every run: ``SHOWO_FUZZ_FIRST=n SHOWO_FUZZ_CASES=1 pytest TEST`` repeats it.
``SHOWO_FUZZ_CASES`` cases of every kind are run, from number ``SHOWO_FUZZ_FIRST`` on;
`make test-fuzz` sets both.
"""

import os
import random
import re
import resource
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

CASES = int(os.environ.get("SHOWO_FUZZ_CASES", "150"))
FIRST = int(os.environ.get("SHOWO_FUZZ_FIRST", "0"))
PARTS = max(3, CASES // 100)  # tests among which the cases of a kind are divided
CASE_S = 20  # seconds that a case may take; the slowest takes one
# Numbers that readers of untrusted data have believed.
NUMBERS = [0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63]

Damage = Callable[[bytearray, random.Random], None]
T = TypeVar("T")


class HangError(BaseException):
    """A case takes too long. No Exception, which the code under test might count as a bad sample."""


def cases(part: int) -> range:
    """Return the numbers of the cases of one of the parts."""
    return range(FIRST + part, FIRST + CASES, PARTS)


def limited(items: Iterable[T], memory_mb: int = 256) -> Iterator[T]:
    """Yield cases; one fails that takes longer than :data:`CASE_S` or needs ``memory_mb`` of new memory.

    The test needs the fixture ``case_limits``, which stops the clock where a case fails.
    """
    for item in items:
        with suppress(OSError):  # where the kernel does not allow it, the peak is that of all cases
            Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_REAL, CASE_S)
        yield item
        signal.setitimer(signal.ITIMER_REAL, 0)
        grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mb < memory_mb, f"case {item}: {grown_mb:.0f} MB of memory"


def stop_case(number: int, frame: FrameType | None) -> None:
    """Handle SIGALRM."""
    raise HangError(f"a case takes longer than {CASE_S} s")


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 7, 512])]


def insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.choice([bytes(512), rng.randbytes(rng.randrange(1, 600)), b"\xff"])


def erase(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([4, 100, 512]))
    data[start:end] = rng.choice([b"\0", b"\xff"]) * (end - start)


def repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice([4, 512, 2048])]


def number(data: bytearray, rng: random.Random) -> None:
    """Put a number that is too large somewhere, in binary or in digits."""
    number, start = rng.choice(NUMBERS), rng.randrange(len(data))
    size, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
    binary = (number % 2 ** (8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
    data[start : start + size] = rng.choice([binary, str(number).encode()])


def digits(data: bytearray, rng: random.Random) -> None:
    """Replace a number in digits, in a header or JSON."""
    found = list(re.finditer(rb"\d+", data))
    if found:
        match = rng.choice(found)
        value = rng.choice([b"-1", b"9" * 5000, b"1e999", str(rng.choice(NUMBERS)).encode()])
        data[match.start() : match.end()] = value


def words(data: bytearray, rng: random.Random) -> None:
    """Replace a text in quotes by something else that JSON or NumPy's header may hold."""
    found = list(re.finditer(rb"(['\"])[^'\"]*\1", data))
    values = [b"null", b'""', b'" "', b'"\\ud800"', b"[]", b"{}", b"7", b"true", b"'|O'", b"'<f8'"]
    if found:
        match = rng.choice(found)
        data[match.start() : match.end()] = rng.choice([*values, b"[" * 10_000])


def tar_field(data: bytearray, rng: random.Random) -> None:
    """Replace a field of a tar header, and make its checksum right again."""
    fields = [(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]
    start = rng.randrange(max(1, len(data) // 512)) * 512
    offset, size = rng.choice(fields)
    values = [
        b"\x80" + rng.choice(NUMBERS).to_bytes(size, "big")[1:] if size > 8 else b"\xff" * size,
        b"\xff" * size,
        b"7" * size,
        b"-0000001",
        b"0" * size,
        rng.choice([b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b"\0", b"V", b"9"]),
        b"../" * 40,
        rng.randbytes(size),
    ]
    value = rng.choice(values)[:size]
    data[start + offset : start + offset + len(value)] = value
    header = bytes(data[start : start + 512])
    if len(header) == 512:
        checksum = sum(header[:148]) + sum(header[156:]) + 8 * 32
        data[start + 148 : start + 156] = b"%06o\0 " % checksum


RANDOM: tuple[Damage, ...] = (flip, flip, cut, remove, insert, erase, repeat, number)


def damaged(data: bytes, rng: random.Random, ways: Sequence[Damage]) -> bytes:
    """Return ``data`` with one to four damages, drawn from ``ways``."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if changed:
            rng.choice(ways)(changed, rng)
    return bytes(changed)
