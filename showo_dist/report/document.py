"""Contents of a page, and its two writers: a self-contained HTML file, and Markdown."""

import os
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class Missing:
    """A notice that an input does not exist."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands, as typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column holds names, all others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG file with a caption; ``scrolls`` keeps its size on a narrow screen, for small print."""

    path: Path
    caption: str
    scrolls: bool = False


@dataclass(frozen=True)
class Html:
    """Markup for pages that are never written as Markdown."""

    markup: str


Block = Text | Missing | Code | Table | Figure | Html


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The section's name in links."""
        return re.sub(r"\W+", "-", self.title.lower())


def to_html(title: str, sections: Iterable[Section], *, body_class: str = "", end: str = "") -> str:
    """A whole HTML page that loads nothing from other places; figures are embedded as data URIs.

    Args:
        title: of the page.
        sections: in order; the links at the top lead to them.
        body_class: class of the page's body.
        end: markup at the end of the body: dialogs and scripts.
    """
    sections = list(sections)
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    style = files(__package__).joinpath("page.css").read_text()
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>",
            f'<body class="{escape(body_class)}">\n<header><h1>{escape(title)}</h1>',
            f'<nav aria-label="Sections">{links}</nav></header>\n<main>',
            *map(_html_section, sections),
            f"</main>\n{end}</body>\n</html>\n",
        ]
    )


def _html_section(section: Section) -> str:
    blocks = "\n".join(map(_html_block, section.blocks))
    return f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _html_block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Missing(text):
            return f'<p class="missing">Missing: {escape(text)}</p>'
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(header, rows):
            lines = "\n".join(_html_row("td", row) for row in rows)
            head = f"<thead>{_html_row('th', header)}</thead>"
            return f'<div class="wide"><table>{head}\n<tbody>\n{lines}\n</tbody></table></div>'
        case Figure(path, caption, scrolls):
            data = b64encode(path.read_bytes()).decode()
            image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            image = f'<div class="wide">{image}</div>' if scrolls else image
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Html(markup):
            return markup


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def to_markdown(title: str, sections: Iterable[Section], folder: Path) -> str:
    """The text of a Markdown file in ``folder``; figures are linked by relative paths."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_markdown_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block, folder: Path) -> str:
    match block:
        case Text(text):
            return text
        case Missing(text):
            return f"*Missing: {text}*"
        case Code(text):
            return f"```sh\n{text}\n```"
        case Table(header, rows):
            rule = ["---", *["---:"] * (len(header) - 1)]
            return "\n".join(map(_markdown_row, (header, rule, *rows)))
        case Figure(path, caption, _):
            link = Path(os.path.relpath(path, folder)).as_posix()
            return f"![{caption}]({link})\n\n*{caption}*"
        case Html():
            raise AssertionError("markup has no Markdown version")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
