"""Read the project's pages: headings, links, code blocks and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT

_FENCE = re.compile(r"^(```+|~~~+)\s*(\w*)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_LINK = re.compile(r"!?\[((?:[^][]|\[[^]]*\])*)\]\(([^()\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_ANCHOR = re.compile(r'<a id="([^"]+)">')
INDENT = "    "
# Pages about the past: their commands and file names need not exist today.
HISTORY = ("CHANGELOG.md", "dev/LOG.md")


@dataclass(frozen=True)
class Block:
    """A code block, fenced or indented by four spaces.

    Attributes:
        line: number of its first line in the page.
        language: named by a fence; empty for indented blocks.
        lines: its text, without the indentation.
        section: the prose of the section around it.
    """

    line: int
    language: str
    lines: tuple[str, ...]
    section: str


@dataclass(frozen=True)
class Page:
    """A Markdown file of the repository."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        return list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        lines = self.text.splitlines()
        number = 0
        while number < len(lines):
            line, fence = lines[number], _FENCE.match(lines[number])
            before = lines[number - 1] if number else ""
            start = number
            if fence:
                number += 1
                while number < len(lines) and not lines[number].startswith(fence[1]):
                    number += 1
                body = lines[start + 1 : number]
            elif line.startswith(INDENT) and not before.strip():
                while number < len(lines) and lines[number].startswith(INDENT):
                    number += 1
                body = [text[len(INDENT) :] for text in lines[start:number]]
            else:
                number += 1
                continue
            language = fence[2] if fence else ""
            yield Block(start + 1, language, tuple(body), self._section(lines, start))
            number += 1

    @staticmethod
    def _section(lines: list[str], number: int) -> str:
        """The text between the headings around a line."""
        headings = [i for i, line in enumerate(lines) if _HEADING.match(line)]
        start = max((i for i in headings if i <= number), default=0)
        stop = min((i for i in headings if i > number), default=len(lines))
        return "\n".join(lines[start:stop])

    @cached_property
    def prose(self) -> str:
        """The text without code blocks."""
        lines = self.text.splitlines()
        for block in self.blocks:
            fenced = bool(_FENCE.match(lines[block.line - 1]))
            for number in range(block.line - 1, block.line - 1 + len(block.lines) + 2 * fenced):
                if number < len(lines):
                    lines[number] = ""
        return "\n".join(lines)

    @property
    def spans(self) -> list[str]:
        """Inline code."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[tuple[str, str]]:
        """(text, target) of every link and image, innermost first."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """What ``page.md#NAME`` can name: headings as GitHub writes them, and explicit anchors."""
        headings = [m[1] for line in self.prose.splitlines() if (m := _HEADING.match(line))]
        return {slug(heading) for heading in headings} | set(_ANCHOR.findall(self.prose))


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    text = _LINK.sub(r"\1", heading).lower().replace("`", "")
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def pages() -> list[Page]:
    """README, CONTRIBUTING, the records of the past, and every page of docs/."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", *HISTORY)]
    return [Page(path) for path in [*top, *sorted((ROOT / "docs").rglob("*.md"))]]


def logical_lines(lines: tuple[str, ...]) -> list[str]:
    """Lines with a trailing backslash joined to the next."""
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def words(line: str) -> list[str]:
    """A shell line as words, without comment and brackets of optional parts; empty if it is none."""
    line = re.sub(r"\[((?:--|key=)[^]]*)\]", r"\1", line)
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []
