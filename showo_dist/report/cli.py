"""``showo-dist report RUNS_DIR --out report.md``: write a report as Markdown and as one HTML file."""

import argparse
from pathlib import Path

from showo_dist.report.document import Block, Code, Section, Text, to_html, to_markdown
from showo_dist.report.inputs import Runs, read_runs
from showo_dist.report.results import (
    answer_section,
    image_section,
    opening_section,
    score_section,
)
from showo_dist.report.training import backbone_section, throughput_section, tokenizer_section

TITLE = "Mini world: Show-o and RecA"


def build_sections(runs: Runs, out: Path) -> list[Section]:
    """All sections in order.

    The two figures at the top are files beside ``out``, as ``report-grid.png`` and ``report-losses.png``; the
    others are in a folder of its name.
    """
    files = out.with_suffix("")
    grid, losses = (out.with_name(f"{out.stem}-{name}.png") for name in ("grid", "losses"))
    backbone = backbone_section(runs)
    return [
        opening_section(runs, grid, losses),
        *([backbone] if backbone else []),
        tokenizer_section(runs, files),
        image_section(runs, files),
        answer_section(runs, files),
        score_section(runs),
        throughput_section(runs),
        _reproduction(runs, out),
    ]


def _reproduction(runs: Runs, out: Path) -> Section:
    blocks: list[Block] = [
        Text("All of it, from the data to this report:"),
        Code("make train"),
        Text("The evaluations and the report alone, from the checkpoints:"),
        Code("\n".join([*_evaluate_commands(runs), f"showo-dist report {runs.root} --out {out}"])),
    ]
    return Section("How to reproduce", blocks)


def _evaluate_commands(runs: Runs) -> list[str]:
    commands = []
    for evaluation in runs.evaluations.values():
        settings = evaluation.scores["settings"]
        given = (
            (n, v) for n, v in settings.items() if n not in ("checkpoint", "prompts", "shards")
        )
        options = [f"--{name.replace('_', '-')} {_words(value)}" for name, value in given]
        shards = [f"--shards '{settings['shards']}'"] if settings["shards"] else []
        parts = ["showo-dist evaluate --framework mini", settings["checkpoint"]]
        parts += [f"--prompts {settings['prompts']}", *shards, *options]
        commands.append(" ".join([*parts, f"--out {evaluation.folder}"]))
    return commands


def _words(value: object) -> str:
    """A value as words of a command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(argv: list[str]) -> int:
    """Write both files; return the exit code."""
    parser = argparse.ArgumentParser("showo-dist report", description=__doc__)
    parser.add_argument(
        "runs", type=Path, metavar="RUNS_DIR", help="folder with the runs of a recipe"
    )
    parser.add_argument("--out", type=Path, help="Markdown file; default: RUNS_DIR/report.md")
    arguments = parser.parse_args(argv)
    out = (arguments.out or arguments.runs / "report.md").with_suffix(".md")
    runs = read_runs(arguments.runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    sections = build_sections(runs, out)
    out.write_text(to_markdown(TITLE, sections, out.parent))
    out.with_suffix(".html").write_text(to_html(TITLE, sections))
    print(f"{out} and {out.with_suffix('.html')}")
    return 0
