"""The words of code and pages: one term per idea, and citations that can be followed."""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXTS = ("*.py", "*.md", "*.yaml", "*.sh", "Makefile")
EXEMPT = ("CHANGELOG.md", "tests/house/test_words.py")
# The sentences and prompts of these files are data that a model learns or is asked: they stay.
DATA = ("data_pipelines/showo_data/mini/language.py", "showo_dist/evaluation/flickr30k.py")
SPECIFICATION = "docs/specification.md"

REPLACED = re.compile(r"picture|(?<!in)paint", re.IGNORECASE)
MANNERED = re.compile(
    r"(?i:writes a page of its own stack|who is gone is said|which it never forgets|none of nothing"
    r"|nobody's business)"
    r"|\b(?:_told|_sorry|_way_out|_nowhere|_never_finite_alone|Wishes|Story)\b|unconverted\.py"
)
GAP = r"[\s#]+"  # a citation may be broken over two lines of a comment
LOOSE_CITATION = re.compile(rf"(?<!docs/)specification(?:\.md)?,{GAP}section", re.IGNORECASE)
CITATION = re.compile(
    rf"docs/specification\.md,{GAP}sections?{GAP}"
    rf"(\d+(?:(?:,|{GAP}and|{GAP}to|,{GAP}and){GAP}\d+)*)"
)


@cache
def texts() -> dict[str, str]:
    """Every text file of the repository, tracked or new, by its path."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *TEXTS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = sorted({*listed.split("\0")} - {"", *EXEMPT})
    assert len(names) > 300, names
    return {name: (ROOT / name).read_text() for name in names if (ROOT / name).is_file()}


def without_strings(source: str) -> str:
    """Python source with its string literals emptied; comments and docstrings stay."""
    kept: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and not token.string.startswith('"""'):
            token = token._replace(string='""')
        kept.append(token)
    return "\n".join(token.string for token in kept)


def found(pattern: re.Pattern[str]) -> Iterator[str]:
    """``path:line: match`` of every match of a pattern; names of files count as text."""
    for name, text in texts().items():
        for match in pattern.finditer(without_strings(text) if name in DATA else text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {match[0]}"
        if match := pattern.search(Path(name).name):
            yield f"{name}: {match[0]} in the file's name"


@pytest.mark.parametrize("pattern", [REPLACED, MANNERED, LOOSE_CITATION])
def test_words_that_are_not_used(pattern: re.Pattern[str]) -> None:
    wrong = list(found(pattern))
    assert not wrong, "\n".join(wrong)


def test_cited_sections_exist() -> None:
    headings = re.findall(r"^## (\d+)\. ", (ROOT / SPECIFICATION).read_text(), re.MULTILINE)
    assert headings == [str(number + 1) for number in range(len(headings))] and headings
    cited: dict[str, set[str]] = {}
    for name, text in texts().items():
        for match in CITATION.finditer(text):
            for number in re.findall(r"\d+", match[1]):
                cited.setdefault(number, set()).add(name)
    assert len(cited) > 5
    assert not {number: names for number, names in cited.items() if number not in headings}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a_Picture", REPLACED),
        ("repainted", REPLACED),
        ("(the specification, section 3)", LOOSE_CITATION),
        ("the specification,\n    # section 3", LOOSE_CITATION),
        ("def _told(", MANNERED),
    ],
)
def test_patterns_find(text: str, pattern: re.Pattern[str]) -> None:
    assert pattern.search(text)


@pytest.mark.parametrize("text", ["inpainting_mask", "Inpaint", f"{SPECIFICATION}, section 3"])
def test_patterns_allow(text: str) -> None:
    assert not REPLACED.search(text) and not LOOSE_CITATION.search(text)


def test_citations_of_several_sections() -> None:
    numbers = [CITATION.search(f"{SPECIFICATION}, {t}") for t in ("section 3", "sections 3,\n# 4")]
    assert [match and match[1] for match in numbers] == ["3", "3,\n# 4"]
    assert CITATION.search(f"{SPECIFICATION}, sections 1 and 12")[1] == "1 and 12"  # type: ignore[index]
