"""docs/results.md is the one place of measured figures; the other pages quote the same numbers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.house.markdown import Page, pages

COLUMNS = ["what", "figure", "n and spread", "date", "machine", "command", "page"]
NOT_MEASURED = "not measured"
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?:/\d+)?")
NO_GPU = "No GPU figure exists yet"
RESULTS = Page(ROOT / "docs" / "results.md")
PAGES = {page.name: page for page in pages()}
# Pages in which bold figures are measurements; elsewhere bold marks a choice among settings.
BOLD_IS_MEASURED = ("docs/kernels.md", "docs/checkpoints.md", "docs/generation.md")


@dataclass(frozen=True)
class Row:
    """One figure of docs/results.md."""

    name: str
    section: str
    cells: dict[str, str]

    @property
    def numbers(self) -> set[str]:
        return set(NUMBER.findall(self.cells["figure"]))

    @property
    def measured(self) -> bool:
        return self.cells["figure"] != NOT_MEASURED


def _rows() -> Iterator[Row]:
    section, columns = "", []
    for line in RESULTS.text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif columns == COLUMNS and not set(line) <= set("|- "):
            anchor = re.match(r'<a id="([\w-]+)"></a>', cells[0])
            assert anchor, f"no anchor: {line}"
            yield Row(anchor[1], section, dict(zip(columns, cells, strict=True)))


ROWS = {row.name: row for row in _rows()}


def test_rows_are_read() -> None:
    assert len(ROWS) > 60
    assert len(ROWS) == RESULTS.text.count('<a id="'), "two rows have one name"


@pytest.mark.parametrize("name", ROWS)
def test_a_figure_says_how_it_was_measured(name: str) -> None:
    cells = ROWS[name].cells
    if not ROWS[name].measured:
        assert (cells["n and spread"], cells["date"], cells["machine"]) == ("–", "–", "–")
        return
    assert ROWS[name].numbers
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", cells["date"])
    assert cells["machine"].split(",")[0] in _machines()
    assert re.search(r"\d|recorded|above|same images|before", cells["n and spread"])
    assert re.search(r"`[^`]+`|the same|not recorded", cells["command"])


def _machines() -> set[str]:
    return set(re.findall(r"^\| \*\*(\w+)\*\* \|", RESULTS.text, re.MULTILINE))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.measured])
def test_the_page_of_a_figure_has_the_same_numbers(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", ROWS[name].cells["page"]):
        there = set(NUMBER.findall(Page(RESULTS.path.parent / target).text))
        there |= {number.lstrip("+") for number in there}
        missing = {n for n in ROWS[name].numbers if n.lstrip("+") not in there}
        assert not missing, f"{target} does not have {missing}"


def _quotations(page: Page) -> Iterator[tuple[str, str]]:
    """(text, row) of the links of a page to rows of docs/results.md."""
    for text, target in page.links:
        file, _, anchor = target.partition("#")
        same = file and (page.path.parent / file).resolve() == RESULTS.path
        if same and anchor in ROWS:
            yield text, anchor


def test_quoted_figures_are_those_of_the_row() -> None:
    wrong, found = [], 0
    for page in PAGES.values():
        for text, name in _quotations(page):
            found += 1
            if not set(NUMBER.findall(text)) <= ROWS[name].numbers:
                wrong.append(f"{page.name}: {text!r}, but {name} is {ROWS[name].cells['figure']!r}")
            unit = re.sub(NUMBER, "", text).strip(" %")
            if unit and unit not in ROWS[name].cells["figure"]:
                wrong.append(f"{page.name}: {text!r} has another unit than {name}")
    assert not wrong, "\n".join(wrong)
    assert found >= 10


def test_the_readme_quotes_every_figure_from_a_row() -> None:
    """In its table of figures no number stands outside a link to a row, except sizes in the description."""
    section = re.split(r"^## ", PAGES["README.md"].text, flags=re.MULTILINE)
    [measured] = [part for part in section if part.startswith("What was measured")]
    rows = [line for line in measured.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 8
    for line in rows:
        _, _, figure, _ = re.split(r"(?<!\\)\|", line)
        assert "docs/results.md#" in figure
        assert not NUMBER.findall(re.sub(r"\[[^]]*\]\([^)]*\)", "", figure)), line


@pytest.mark.parametrize("name", BOLD_IS_MEASURED)
def test_bold_figures_have_a_row(name: str) -> None:
    bold = re.findall(r"\*\*([^*\n]*\d[^*\n]*)\*\*", PAGES[name].prose)
    here = {n for row in ROWS.values() if Path(name).name in row.cells["page"] for n in row.numbers}
    assert {number for text in bold for number in NUMBER.findall(text)} - here == set()


def test_pages_say_that_no_gpu_figure_exists_as_long_as_none_does() -> None:
    """The sentence, on the first page and here, and the rows of the table agree."""
    gpu = [row for row in ROWS.values() if row.section == "GPUs"]
    assert gpu
    none = not any(row.measured for row in gpu)
    for page in (PAGES["README.md"], RESULTS):
        assert (NO_GPU in page.text) == none, page.name


def test_predictions_in_the_readme_are_those_of_the_table() -> None:
    [row] = re.findall(r"^\| RecA at 512 px.*$", RESULTS.text, re.MULTILINE)
    predicted = NUMBER.findall(row.split("|")[2])
    assert [f"{number} GB" in PAGES["README.md"].text for number in predicted] == [True, True]


def test_image_files_of_the_first_screen_are_named() -> None:
    images = re.findall(r"!\[[^]]*\]\((docs/images/[^)]+)\)", PAGES["README.md"].text[:2500])
    assert images == ["docs/images/mini-grid.png", "docs/images/mini-losses.png"]
