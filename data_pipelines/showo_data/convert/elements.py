"""Read a JSON list or object element by element: it may be larger than memory, and some of it broken."""

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Characters read at a time.
_CHUNK = 1 << 20
# Characters of the longest element: one that is still incomplete then is broken.
_LONGEST = 64 << 20
# Digits of the longest integer: Python refuses to parse those of more than 4300.
_DIGITS = 4000
_CLOSING = {"[": "]", "{": "}"}
_SEPARATORS = re.compile(r"[\s,]*")
_SPACES = re.compile(r"\s*")
_COLON = re.compile(r"\s*:\s*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)

# An element that is no valid JSON, or is nested too deeply.
BROKEN: Any = object()


class BrokenFileError(ValueError):
    """A JSON file is broken: nothing can be read from there on. ``count`` elements were read before."""

    def __init__(self, path: str | Path, count: int) -> None:
        super().__init__(f"{path}: broken JSON after {count} elements")
        self.count = count


def read_array(path: str | Path) -> Iterator[tuple[Any, int]]:
    """Yield the elements of the JSON list in a file, and the CRC-32 of each as it is written.

    One that cannot be parsed is :data:`BROKEN`.

    Bytes that are not UTF-8 become surrogates, so that a bad element does not affect the others. An integer
    of thousands of digits becomes infinity.

    Raises:
        BrokenFileError: an element does not end, or something else than an element follows, or something
            is behind the list.
        ValueError: the file holds no list.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
        elements = _Elements(path, stream, "[")
        while not elements.at_end():
            yield elements.next(), elements.check


def read_object(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of the JSON object in a file, read as in :func:`read_array`."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
        elements = _Elements(path, stream, "{")
        while not elements.at_end():
            key = elements.next()
            if not isinstance(key, str):
                raise BrokenFileError(path, elements.count)
            elements.skip_colon()
            yield key, elements.next()


class _Elements:
    """A cursor in a JSON file, between the elements of its outermost list or object."""

    def __init__(self, path: str | Path, stream: IO[str], opening: str) -> None:
        self._path, self._stream = path, stream
        self._decoder = json.JSONDecoder(parse_int=_integer)
        self._text, self._at, self.count, self.check = "", 1, 0, 0
        while not self._text and (more := stream.read(_CHUNK)):
            self._text = more.lstrip()
        self._closing = _CLOSING[opening]
        if not self._text.startswith(opening):
            raise ValueError(f"{path}: expected a JSON {'list' if opening == '[' else 'object'}")

    def at_end(self) -> bool:
        """Whether the list or object is closed here, behind separators; nothing may follow."""
        self._skip(_SEPARATORS)
        if not self._text.startswith(self._closing, self._at):
            return False
        self._at += 1
        self._skip(_SPACES)
        if self._at < len(self._text):
            raise BrokenFileError(self._path, self.count)
        return True

    def skip_colon(self) -> None:
        """Move behind the colon between a key and its value."""
        while not self._skip(_COLON):
            self._read_on()
        self._skip(_SEPARATORS)

    def next(self) -> Any:
        """Parse the element that begins here, and move behind it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                broken_end = _end_of_brackets(self._text, self._at)
                if broken_end is None:
                    self._read_on()  # the element may end in a part of the file that is not read yet
                    continue
                value, end = BROKEN, broken_end
            if end == len(self._text) and (more := self._stream.read(_CHUNK)):
                self._text, self._at = (
                    self._text[self._at :] + more,
                    0,
                )  # a number may have more digits
                continue
            element = self._text[self._at : end].encode("utf-8", "surrogateescape")
            self.check = zlib.crc32(element)
            self._at = end
            self.count += 1
            return value

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Move behind a match of ``pattern``, also if it ends in text not yet read; false if none is here."""
        while match := pattern.match(self._text, self._at):
            if match.end() < len(self._text) or not (more := self._stream.read(_CHUNK)):
                self._at = match.end()
                return True
            self._text, self._at = self._text[self._at :] + more, 0
        return False

    def _read_on(self) -> None:
        more = self._stream.read(_CHUNK)
        if not more or len(self._text) - self._at > _LONGEST:
            raise BrokenFileError(self._path, self.count) from None
        self._text, self._at = self._text[self._at :] + more, 0


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < _DIGITS else float(digits)


def _end_of_brackets(text: str, start: int) -> int | None:
    """Return the end of the list or object at ``start``, whatever is in it; None if ``text`` lacks it."""
    if not text.startswith(("[", "{"), start):
        return None
    opened: list[str] = []
    for match in _TOKEN.finditer(text, start):
        if match[0] in _CLOSING:
            opened.append(match[0])
        elif match[0] in "]}":
            while opened and _CLOSING[opened.pop()] != match[0]:  # one that was never closed
                pass
            if not opened:
                return match.end()
    return None
