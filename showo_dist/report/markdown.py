"""A report as Markdown; pictures are linked by paths relative to it."""

import os
from pathlib import Path

from showo_dist.report.blocks import Block, Code, Figure, Missing, Section, Table, Text


def to_markdown(title: str, sections: list[Section], folder: Path) -> str:
    """The text of a Markdown file that will lie in ``folder``."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, folder: Path) -> str:
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
