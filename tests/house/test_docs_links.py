"""Links, anchors and file names in the pages point to something."""

import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.house.markdown import HISTORY, Page, pages
from tests.house.test_layers import ROOMS, TOP

PAGES = {page.name: page for page in pages()}
# Inline code that begins so is a file or folder of the repository.
ROOTS = (
    *("showo_dist/", "kernels/", "data_pipelines/", "launchers/", "configs/", "benchmarks/"),
    *("tests/", "docs/", "examples/", "dev/"),
)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert list(_broken(PAGES[name])) == []


def _broken(page: Page) -> Iterator[str]:
    for _, target in page.links:
        if re.match(r"[a-z]+:", target):  # https: and the like; no test asks the network
            continue
        file, _, anchor = target.partition("#")
        path = (page.path.parent / file).resolve() if file else page.path
        if not path.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in Page(path).anchors:
            yield f"{target}: no such anchor"


@pytest.mark.parametrize("name", [name for name in PAGES if name not in HISTORY])
def test_files_named_in_a_page_exist(name: str) -> None:
    named = {span for span in PAGES[name].spans if span.startswith(ROOTS)}
    plain = {span for span in named if re.fullmatch(r"[\w./-]+", span)}
    assert sorted(span for span in plain if not (ROOT / span).exists()) == []


def test_every_page_is_reachable_from_the_readme() -> None:
    found, waiting = {"README.md"}, ["README.md"]
    while waiting:
        page = PAGES[waiting.pop()]
        for _, target in page.links:
            path = (page.path.parent / target.partition("#")[0]).resolve()
            name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
            if name in PAGES and name not in found:
                found.add(name)
                waiting.append(name)
    assert set(PAGES) - found == set()


def test_the_table_of_parts_has_the_order_of_the_layers() -> None:
    table = PAGES["docs/architecture.md"].text.split("| package | does |")[1].split("\n\n")[0]
    first_cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert listed == [*ROOMS, *TOP]
