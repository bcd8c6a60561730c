"""What a report consists of, before it is Markdown or HTML.

A report as one HTML file that needs nothing else.

A report as Markdown; images are linked by paths relative to it."""

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class Missing:
    """Says that an input was not there."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands, as typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as shown; the first column is a name, all others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG file with words below it; one with small print ``scrolls`` rather than shrinks."""

    path: Path
    caption: str
    scrolls: bool = False


Block = Text | Missing | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e24; --faint: #5d626d; --paper: #ffffff;
  --line: #dfe2e8; --soft: #f4f5f8; --accent: #0b63b0; --warn: #9a4a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --faint: #a0a6b2;
  --paper: #15171c; --line: #343842; --soft: #1e2128; --accent: #7fb8ee; --warn: #f0b070; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; padding-bottom: 0.25rem;
  border-bottom: 1px solid var(--line); }
p { margin: 0.6rem 0; }
.missing { color: var(--warn); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
@media (max-width: 40rem) { figure .wide img { max-width: none; } }
figcaption { color: var(--faint); font-size: 0.88rem; margin-top: 0.35rem; }
pre { background: var(--soft); padding: 0.8rem 1rem; border-radius: 4px; overflow-x: auto;
  font-size: 0.9rem; }
"""


def to_html(title: str, sections: list[Section]) -> str:
    """The text of the HTML file, images inside it as data URIs."""
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [_html_block(block) for block in section.blocks]
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>"
    )
    text = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{text}\n</body>\n</html>\n'


def _html_block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Missing(text):
            return f'<p class="missing">Missing: {escape(text)}</p>'
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(header, rows):
            lines = "\n".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
            head = f"<thead><tr>{_cells('th', header)}</tr></thead>"
            return f'<div class="wide"><table>{head}\n<tbody>\n{lines}\n</tbody></table></div>'
        case Figure(path, caption, scrolls):
            data = b64encode(path.read_bytes()).decode()
            image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            image = f'<div class="wide">{image}</div>' if scrolls else image
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _cells(tag: str, cells: object) -> str:
    assert isinstance(cells, list | tuple)
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)


def to_markdown(title: str, sections: list[Section], folder: Path) -> str:
    """The text of a Markdown file that will lie in ``folder``."""
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
            return "\n".join(_row(cells) for cells in (header, rule, *rows))
        case Figure(path, caption, _):
            link = Path(os.path.relpath(path, folder)).as_posix()
            return f"![{caption}]({link})\n\n*{caption}*"


def _row(cells: object) -> str:
    assert isinstance(cells, list | tuple)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
