"""Convert plain text in Parquet (RefinedWeb's column ``content``) and in JSON lines."""

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from showo_data.convert.items import (
    FILE,
    REST,
    Item,
    Members,
    Pieces,
    bad_item,
    find_files,
    is_passing,
    text_of,
)
from showo_data.convert.parquet import ParquetFiles
from showo_data.members import BadSampleError
from showo_data.text import parse_json

Newlines = Literal["keep", "space", "remove"]
_JOINTS: dict[Newlines, str] = {"space": " ", "remove": ""}


def text_items(
    patterns: Sequence[str],
    *,
    column: str = "content",
    max_chars: int = 8000,
    newlines: Newlines = "space",
) -> Iterator[Item]:
    """Yield texts, long ones in pieces.

    Args:
        patterns: ``.parquet``, ``.jsonl`` or ``.jsonl.gz`` files, as paths, brace patterns or wildcards.
        column: column or field of the text.
        max_chars: characters of the longest piece; texts are cut between words. The published loader samples
            one window of 8000 characters from a longer text each time it reads it.
        newlines: ``keep`` line breaks, replace each run of them by a ``space``, or ``remove`` them as the
            published loader does, which joins the words around them.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: another kind of file, or as :class:`showo_data.convert.parquet.ParquetRows`.
    """
    if max_chars < 1:
        raise ValueError(f"--max-chars must be at least 1, not {max_chars}")
    cut = partial(_pieces, max_chars=max_chars, newlines=newlines)
    for path in find_files(patterns):
        if path.endswith(".parquet"):
            yield from _parquet(path, column, cut)
        elif path.endswith((".jsonl", ".jsonl.gz")):
            yield from json_lines(path, lambda value: cut(value.get(column)))
        else:
            raise ValueError(f"{path}: expected .parquet, .jsonl or .jsonl.gz")


Cut = Callable[[Any], list[Members]]


def _parquet(path: str, column: str, cut: Cut) -> Iterator[Item]:
    return ParquetFiles([column]).items([path], lambda row: cut(row[column]))


def json_lines(path: str, load: Callable[[dict[str, Any]], Pieces]) -> Iterator[Item]:
    """Yield an input for every line, of whose JSON object ``load`` makes samples.

    Where a ``.gz`` is broken, the rest counts as one bad input.

    Raises:
        OSError: the file cannot be opened, or the machine fails; ``filename`` is set.
    """
    number = 0
    with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as stream:
        lines = iter(stream)
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except (EOFError, OSError, zlib.error) as error:  # cut off, or a wrong checksum
                if is_passing(error):
                    error.filename = path
                    raise
                broken = (f"{path}, from line {number + 1} on", REST) if number else (path, FILE)
                yield bad_item(*broken)
                return
            number += 1
            # Without the line's end, which the last line may get when others are appended.
            mark = zlib.crc32(line.rstrip(b"\r\n"))
            yield Item(f"{path}, line {number}", partial(_load_line, line, load), mark)


def _load_line(line: bytes, load: Callable[[dict[str, Any]], Pieces]) -> Pieces:
    try:
        value = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadSampleError("not-utf8") from None
    except ValueError:
        raise BadSampleError("broken-json") from None
    if not isinstance(value, dict):
        raise BadSampleError("broken-json")
    return load(value)


def _pieces(value: Any, max_chars: int, newlines: Newlines) -> list[Members]:
    text = text_of(value)
    if newlines != "keep":
        text = re.sub(r"[\r\n]+", _JOINTS[newlines], text)
    return [{"txt": piece} for piece in cut_text(text, max_chars)]


def cut_text(text: str, max_chars: int) -> list[str]:
    """Cut ``text`` into pieces of at most ``max_chars`` characters, at a space if there is one.

    Joined, the pieces give the text without the spaces at the cuts.
    """
    pieces = []
    while len(text) > max_chars:
        end = text.rfind(" ", 0, max_chars + 1)
        end = end if end > 0 else max_chars
        pieces.append(text[:end])
        text = text[end:].removeprefix(" ")
    return [*pieces, text] if text else pieces
