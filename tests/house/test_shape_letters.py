"""Tensor names end in shape letters, and every letter is in the one table of docs/architecture.md."""

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("kernels/showo_kernels", "data_pipelines/showo_data", "showo_dist")
SUFFIX = re.compile(r"[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)")
# Methods that another library calls by these names.
NOT_OURS = {"do_GET"}


def letters_of(path: Path) -> dict[str, str]:
    """Shape letters that a file uses, each with a name that has it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    found = {name: match[1] for name in names - NOT_OURS if (match := SUFFIX.fullmatch(name))}
    return {letter: name for name, suffix in found.items() for letter in suffix if letter.isalpha()}


def tables() -> tuple[set[str], set[str]]:
    """Letters of the general table, and of the table of exceptions."""
    section = PAGE.split("## Shape letters")[1].split("\n## ")[0]
    parts = section.split("| letter |")[1:]
    rows = [re.findall(r"^\| ([A-Z](?:, [A-Z])*) \|", part, re.MULTILINE) for part in parts]
    general, local = ({letter for row in part for letter in row.split(", ")} for part in rows)
    return general, local


def test_every_letter_is_in_the_tables() -> None:
    general, local = tables()
    used = {
        letter: f"{path.relative_to(ROOT)}: {name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for letter, name in letters_of(path).items()
    }
    assert {letter: where for letter, where in used.items() if letter not in general | local} == {}
    assert general <= set(used), f"in the table and used nowhere: {general - set(used)}"
