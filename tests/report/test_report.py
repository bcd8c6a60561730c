"""The report has the numbers and images of the files, and names missing inputs."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from showo_dist.report.cli import main
from showo_dist.report.curves import curves_of, loss_curves, running_mean, save_plot, svg_chart
from showo_dist.report.document import (
    Code,
    Figure,
    Missing,
    Section,
    Table,
    Text,
    to_html,
    to_markdown,
)
from showo_dist.report.inputs import number, share, tally

HEADINGS = [
    "Before and after RecA", "Image tokenizer", "Images", "Answered questions", "Scores",
    "Throughput", "How to reproduce",
]  # fmt: skip


class Outline(HTMLParser):
    """Checks that tags close in order, and collects headings and images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def _outline(html: str) -> Outline:
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    return outline


def _report(root: Path) -> tuple[str, str]:
    assert main([str(root), "--out", str(root / "report.md")]) == 0
    return (root / "report.md").read_text(), (root / "report.html").read_text()


def _row(markdown: str, name: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_everything_is_there(runs: Path) -> None:
    markdown, html = _report(runs)
    assert re.findall(r"^## (.*)$", markdown, re.M) == HEADINGS
    assert "Missing" not in markdown
    links = re.findall(r"\]\(([^)]*\.png)\)", markdown)
    assert len(links) == 6
    outline = _outline(html)
    assert outline.headings == HEADINGS
    for link, source in zip(links, outline.sources, strict=True):
        with Image.open(runs / link) as image:
            image.verify()
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (runs / link).read_bytes()
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)


def test_it_opens_with_images_scores_and_losses(runs: Path) -> None:
    opening = _report(runs)[0].split("## Image tokenizer")[0]
    grid, table, losses = (opening.index(x) for x in ("grid.png", "| --- |", "losses.png"))
    assert grid < table < losses
    assert 3 <= len(re.findall(r"^\| ", opening, re.M)) - 2 <= 6
    for name in ("report-grid.png", "report-losses.png"):
        with Image.open(runs / name) as image:
            image.verify()
        assert (runs / name).stat().st_size < 200_000
    scores = json.loads((runs / "eval-pretrain" / "scores.json").read_text())
    cells = _row(opening, "everything that the prompt asks for")
    assert cells[0] == share(scores["prompts"]) and cells[2] == "–"


def test_numbers_are_those_of_the_files(runs: Path) -> None:
    markdown, _ = _report(runs)
    for column, stage in enumerate(["pretrain", "reca"]):
        scores = json.loads((runs / f"eval-{stage}" / "scores.json").read_text())
        for name, key in [("colour", "single_object_colour"), ("shape", "single_object_shape")]:
            assert _row(markdown, f"single object: {name}")[column] == tally(scores[key])
        assert _row(markdown, "prompts: counting")[column] == tally(
            scores["categories"]["counting"]
        )
        assert _row(markdown, "prompts: all")[column] == tally(scores["prompts"])
    assert _row(markdown, "single object: colour")[2] == "16.7 %"
    assert _row(markdown, "PSNR") == ["23.5 dB"]
    assert _row(markdown, "codes in use") == ["11"]
    assert _row(markdown, "codes in the codebook") == ["8,192"]
    assert _row(markdown, "RecA")[7] == "3 GB"
    assert _row(markdown, "pre-training")[6] == "25.0 %"
    assert "12 rounds, guidance 2, seed 3" in markdown
    assert "not comparable" not in markdown


def test_evaluations_of_unlike_settings_are_not_compared(runs: Path) -> None:
    path = runs / "eval-reca" / "scores.json"
    scores = json.loads(path.read_text())
    scores["settings"] |= {
        "steps": 16,
        "sampler": "halton",
    }  # recorded where it is not the usual one
    path.write_text(json.dumps(scores))
    assert "not comparable: they differ in steps, sampler." in _report(runs)[0]


@pytest.mark.parametrize("name", ["tokenizer", "pretrain", "reca", "eval-pretrain", "eval-reca"])
def test_one_missing_run_is_named(runs: Path, name: str) -> None:
    shutil.rmtree(runs / name)
    markdown, html = _report(runs)
    assert re.search(rf"Missing: .*runs/mini/{name}/", markdown)
    assert _outline(html).headings == HEADINGS
    assert "| colour of a single object |" in markdown


def test_nothing_there_gives_no_number(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    markdown, html = _report(root)
    assert _outline(html).headings == HEADINGS
    text = markdown.replace(str(root), "")
    assert re.search(r"\d", text) is None
    assert text.count("Missing") == 13
    with pytest.raises(ValueError, match="no such folder"):
        main([str(tmp_path / "nowhere")])


def test_a_run_killed_at_its_first_line(runs: Path) -> None:
    path = runs / "reca" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"step": 2, "lo')
    assert _row(_report(runs)[0], "RecA")[0] == "1"


def test_markup_is_escaped(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    words = "a <b> & | c"
    blocks = [Text(words), Missing(words), Code(words), Table(["", words], [[words, words]])]
    sections = [Section(words, [*blocks, Figure(tmp_path / "a.png", words)])]
    html = to_html(words, sections)
    _outline(html)
    assert "<b>" not in html and html.count("a &lt;b&gt; &amp; | c") == 12
    assert "| a <b> & \\| c | a <b> & \\| c |" in to_markdown(words, sections, tmp_path)


def test_curves_leave_out_values_that_are_not_finite(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": None if i == 3 else 1.0, "loss/lm": None} for i in range(40)]
    (curve,) = curves_of(lines, ["loss", "loss/lm"])
    assert (curve.name, len(curve.steps), set(curve.values)) == ("loss", 39, {1.0})
    path = tmp_path / "new" / "curves.png"
    save_plot({"": [curve]}, "nats", path)
    with Image.open(path) as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1 << 16) or []}
    assert (0, 114, 178) in shown and (213, 94, 0) not in shown


def test_running_mean() -> None:
    assert running_mean([2.0] * 50) == [2.0] * 50
    assert running_mean([0.0, 3.0, 0.0], share=0.1) == [1.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01234, "0.0123"), (1.5, "1.5"), (99.96, "100"), (1234.5, "1,234"), (None, "–"), (0, "0")],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_held_out_losses_are_dashed_curves_of_their_own(tmp_path: Path) -> None:
    lines: list[dict] = [{"step": step, "loss/t2i": 3.0} for step in range(1, 41)]
    lines[19] |= {"validation/t2i": 2.0}
    lines[39] |= {"validation/t2i": 1.0}
    train, held_out = loss_curves(lines)
    assert (train.name, held_out.name) == ("t2i", "t2i, held out")
    assert (held_out.steps, held_out.values) == ([20, 40], [2.0, 1.0])
    assert held_out.held_out and held_out.colour == train.colour
    save_plot({"": [train, held_out]}, "nats", tmp_path / "curves.png")
    assert svg_chart([train, held_out], "Loss").count("stroke-dasharray") == 1


def test_another_backbone_stands_beside_the_mini_worlds_own(runs: Path) -> None:
    assert "Beside the mini world's own backbone" not in _report(runs)[0]
    shutil.copytree(runs, runs.with_name("copy"))
    other = shutil.move(runs.with_name("copy"), runs / "qwen3")
    path = other / "eval-pretrain" / "scores.json"
    scores = json.loads(path.read_text())
    scores["prompts"] = {"correct": 1, "total": 4, "accuracy": 0.25, "low": 0.05, "high": 0.7}
    path.write_text(json.dumps(scores))
    cells = _row(_report(other)[0], "prompts, before RecA")
    own = json.loads((runs / "eval-pretrain" / "scores.json").read_text())["prompts"]
    assert cells == [tally(own), "1/4 = 25.0 % (5.0 to 70.0)"]
