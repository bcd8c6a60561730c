"""Read text and JSON that people and other programs wrote: UTF-8, with or without a byte-order mark."""

import json
from pathlib import Path, PurePath
from typing import Any

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_APPLE_DOUBLE = "._"


def read_text(path: str | Path) -> str:
    """Read a text file without its byte-order mark; every line break becomes a line feed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8; names the file and the line.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = "UTF-16" if data[:2] in _UTF16 else f"line {_line(data, error.start)}"
        raise ValueError(f"{path}: not UTF-8 ({where}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(data: bytes, offset: int) -> int:
    """The number of the line that holds a byte."""
    return data.count(b"\n", 0, offset) + 1


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a text file; U+2028 and the like are text, not the end of a line.

    Raises:
        OSError, ValueError: as :func:`read_text`.
    """
    lines = read_text(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def parse_json(text: str) -> Any:
    """Parse JSON of any origin.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain_text(value: object) -> str:
    """Return ``value`` if it is a text that is not blank and has a form in UTF-8.

    Raises:
        ValueError: it is not; the message is a phrase without the place.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    if not value.strip():
        raise ValueError("the text is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!a:.40} has half of a surrogate pair") from None
    return value


def plain_name(value: object) -> str:
    """Return ``value`` as a text if it can be the name of a file, whatever folder it is put in.

    Raises:
        ValueError: it is empty, too long, or holds a separator or control character.
    """
    name = str(value)
    usable = name.isprintable() and not set(name) & set("/\\") and name not in ("", ".", "..")
    if not usable or len(name.encode()) > 200:
        raise ValueError(f"{value!r:.80} cannot be the name of a file")
    return name


def inside(folder: Path, name: object) -> Path:
    """Return the path of ``name``, which may have folders, in ``folder``.

    Raises:
        ValueError: it is not a text, is absolute or leads out of ``folder``.
    """
    path = PurePath(plain_text(name))
    if path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise ValueError(f"{name!r:.80} leads out of {folder}")
    return folder / path


def is_apple_double(path: str | Path) -> bool:
    """Whether a file is one of the ``._*`` files that macOS writes beside others, without their content."""
    return PurePath(path).name.startswith(_APPLE_DOUBLE)
