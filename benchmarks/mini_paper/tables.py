"""RESULTS.md of a comparison: tables, plots and a grid of images, from the files of the runs alone."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure as Plot
from PIL import Image

from mini_paper.arms import ARMS, QUICK, Arm
from mini_paper.clip import HELD_OUT
from mini_paper.prompts import LONG, RARE
from mini_paper.steps import Paper
from showo_dist.evaluation.text_to_image import t_quantile
from showo_dist.logging.grids import labelled_grid
from showo_dist.logging.records import read_metrics
from showo_dist.report.curves import Curve, save_plot
from showo_dist.report.document import Block, Code, Figure, Section, Table, Text, to_markdown
from showo_dist.report.inputs import column

_HELD_OUT_RECON = "validation/recon"
_GRID_PROMPTS = 8
_SCORES = {
    "geneval": "GenEval",
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "two colours",
    LONG: "long",
}
_RARE = {
    "common": "common, mean",
    "rare": "rare, mean",
    **{f"{tag}{RARE}": _SCORES[tag] for tag in ("colors", "position", "color_attr", LONG)},
}
_OTHER = {
    "reconstructed objects": "objects reconstructed",
    "reconstruction error": "reconstruction error",
    "diversity": "diversity",
    "typical colour": "typical colours",
}
# What the comparison is decided by; chosen before the first run.
_MAIN = (
    "geneval",
    "rare",
    LONG,
    f"{LONG}{RARE}",
    "questions",
    "reconstructed objects",
    "diversity",
)

Values = Mapping[str, float | None]
Results = Mapping[str, Mapping[int, Values]]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; ``half`` is None for a single value."""

    mean: float
    half: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values and its 95 % interval (Student's t)."""
    count = len(values)
    if count < 2:
        return Interval(fmean(values), None)
    return Interval(fmean(values), t_quantile(count - 1) * stdev(values) / sqrt(count))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """Difference of two arms, by seed; None without a common seed."""
    common = sorted(values.keys() & others.keys())
    return interval([values[seed] - others[seed] for seed in common]) if common else None


def read_results(folder: Path) -> Results:
    """Arm -> seed -> values, of the results that exist."""
    found: dict[str, dict[int, Values]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        found[result["arm"]][result["seed"]] = result["values"]
    return found


def of(results: Results, arm: str, name: str) -> dict[int, float]:
    """One value of an arm, by seed, where it was measured."""
    seeds = results.get(arm, {})
    return {s: float(v) for s, vs in seeds.items() if (v := vs.get(name)) is not None}


def _shown(found: Interval | None, scale: float = 100, signed: bool = False) -> str:
    if found is None:
        return "–"
    number = f"{scale * found.mean:{'+' if signed else ''}.1f}"
    return number if found.half is None else f"{number} ± {scale * found.half:.1f}"


def _table(results: Results, arms: Sequence[Arm], columns: Mapping[str, str]) -> Table:
    rows = []
    for arm in arms:
        found = [of(results, arm.name, name) for name in columns]
        seeds = len(results.get(arm.name, {}))
        cells = [_shown(interval(list(values.values())) if values else None) for values in found]
        rows.append([arm.title, str(seeds), *cells])
    return Table(["", "n", *columns.values()], rows)


def _differences(results: Results, arms: Sequence[Arm]) -> list[Block]:
    rows, made, excluded = [], 0, 0
    titles = {arm.name: arm.title for arm in ARMS}
    for arm in arms:
        control = arm.control
        if arm.name == control or not {arm.name, control} <= results.keys():
            continue
        found = [paired(of(results, arm.name, n), of(results, control, n)) for n in _MAIN]
        known = [difference for difference in found if difference and difference.half is not None]
        made, excluded = made + len(known), excluded + sum(d.excludes_zero for d in known)
        cells = [_shown(d, signed=True) + ("*" if d and d.excludes_zero else "") for d in found]
        rows.append([f"{arm.title} – {titles[control]}", *cells])
    words = (
        "Differences in points, by seed: equal seeds have equal prompts and sampling noise. * marks the "
        f"{excluded} of {made} intervals that exclude 0; of independent ones, about {made / 20:.1f} would by "
        "chance. All others cannot be told from 0 with so many seeds."
    )
    names = {**_SCORES, **_OTHER, "rare": _RARE["rare"]}
    header = ["", *(names.get(name, name) for name in _MAIN)]
    return [Text(words if made else "No intervals: each arm has one seed."), Table(header, rows)]


def _kinds(results: Results) -> dict[str, str]:
    names = {n for seeds in results.values() for values in seeds.values() for n in values}
    kinds = sorted(name for name in names if name.startswith("question: "))
    return {"questions": "all", **{kind: kind.removeprefix("question: ") for kind in kinds}}


def _encoders(paper: Paper) -> str:
    records = [json.loads(p.read_text()) for p in sorted(paper.out.glob("clip-*/training.json"))]
    found = [f"{r['size']} px: {r['retrieval']:.0%} after {r['steps']} steps" for r in records]
    return f"CLIP encoders, held-out captions that find their image among {HELD_OUT}: {', '.join(found)}."


def _curves(paper: Paper, path: Path) -> None:
    """Plot the held-out losses of the pre-trainings, and of reconstruction in seed 0 of each arm."""
    panels: dict[str, list[Curve]] = {"text-to-image, held out": [], "reconstruction, held out": []}
    for name in ("pretrain", "pretrain-recon"):
        _add(panels["text-to-image, held out"], paper, name, name, "validation/t2i")
    for arm in ARMS:
        _add(panels["reconstruction, held out"], paper, f"{arm.name}-0", arm.title, _HELD_OUT_RECON)
    drawn = {title: curves for title, curves in panels.items() if curves}
    if drawn:
        save_plot(drawn, "nats per label", path)


def _add(curves: list[Curve], paper: Paper, run: str, title: str, key: str) -> None:
    steps, values = column(read_metrics(paper.out / "runs" / run / "metrics.jsonl"), key)
    if steps:
        curves.append(Curve(title, steps, values, len(curves) % 6, held_out=True))


def _points(results: Results, arms: Sequence[Arm], path: Path) -> None:
    """Plot GenEval on all prompts and on rare ones, with intervals."""
    figure = Plot(figsize=(9, 0.4 * len(arms) + 1.2), layout="constrained")
    row = figure.subplots(1, 3, sharey=True)
    for axes, name in zip(row, ("geneval", "rare", LONG), strict=True):
        for place, arm in enumerate(reversed(arms)):
            values = list(of(results, arm.name, name).values())
            if values:
                found = interval(values)
                half = 100 * (found.half or 0)
                axes.errorbar(
                    100 * found.mean, place, xerr=half, fmt="o", color="#0072B2", capsize=3
                )
                axes.plot([100 * v for v in values], [place] * len(values), "|", color="#D55E00")
        axes.set(title={**_SCORES, **_RARE}[name], xlabel="%")
        axes.set_yticks(range(len(arms)), [arm.title for arm in reversed(arms)])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _grid(paper: Paper, arms: Sequence[Arm], path: Path) -> None:
    """Images of seed 0: a row per arm, a column per prompt, evenly over the prompts."""
    rows, titles, names = [], [], []
    for arm in arms:
        folder = paper.out / "evaluations" / f"{arm.name}-0"
        if not (folder / "images.jsonl").is_file():
            continue
        lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
        chosen = lines[len(lines) // (2 * _GRID_PROMPTS) :: len(lines) // _GRID_PROMPTS][
            :_GRID_PROMPTS
        ]
        rows.append([Image.open(folder / line["file"]).convert("RGB") for line in chosen])
        titles.append(arm.title)
        names = [line["prompt"] for line in chosen]
    if rows:
        labelled_grid(rows, names, titles).quantize(256, dither=Image.Dither.NONE).save(path)


def _introduction(paper: Paper, results: Results) -> list[Block]:
    runs = sum(map(len, results.values()))
    quick = (
        ["A quick run: it shows that everything works, and no effect."]
        if paper.scale == QUICK
        else []
    )
    words = [
        *quick,
        f"{runs} runs; each generated image takes {paper.scale.rounds} rounds. All arms begin with one "
        f"pre-training ({paper.scale.pretrain_steps:,} steps) and take {paper.scale.steps} updates more, so "
        "the intervals (95 %, Student's t over n seeds) hold for these weights. An arm that is not trained "
        "further (“before”, “from step 0”) is one training; its n are seeds of sampling alone.",
        "The images are skewed and their captions sparse, as on the web: every shape has a typical colour "
        "and side, and a caption names few of the colours, sizes and places. Questions are complete. RecA's "
        "premise is that gap: what captions omit is in the images and in the answers. Scores are per cent of "
        "images that show all of the prompt and nothing else; of long prompts, per cent of statements that "
        "hold, whatever else is drawn. Rare combinations have a colour that is not typical of its shape.",
    ]
    command = f"python benchmarks/mini_paper.py{' --quick' if quick else ''}"
    return [*map(Text, words), Code(command), Text(_encoders(paper))]


def _ablations(results: Results, arms: Sequence[Arm]) -> Section:
    shown = [*(arm for arm in ARMS if arm.name in ("reca", "reca-clip-64")), *arms]
    table = _table(results, shown, {**_SCORES, **_OTHER})
    return Section("Ablations of RecA", [*_differences(results, arms), table])


def write(paper: Paper, folder: Path) -> Path:
    """Write RESULTS.md and its images to ``folder``; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(paper.out / "results")
    present = [arm for arm in ARMS if arm.name in results]
    arms, ablations = ([a for a in present if a.ablation == wanted] for wanted in (False, True))
    curves, points, grid = (folder / f"{name}.png" for name in ("curves", "scores", "grid"))
    _curves(paper, curves)
    _points(results, arms, points)
    _grid(paper, arms, grid)
    sections = [
        Section("What is compared", _introduction(paper, results)),
        Section("Differences", _differences(results, arms)),
        Section(
            "Scores", [_table(results, arms, _SCORES), *_figure(points, "Means, intervals, seeds.")]
        ),
        Section("Rare combinations", [_table(results, arms, _RARE)]),
        Section("Questions", [_table(results, arms, _kinds(results))]),
        Section("Reconstruction and diversity", [_table(results, arms, _OTHER)]),
        Section("Losses", _figure(curves, "Held-out losses.")),
        *([_ablations(results, ablations)] if ablations else []),
        Section("Images", _figure(grid, "Seed 0, prompts evenly over the list; none is chosen.")),
    ]
    path = folder / "RESULTS.md"
    path.write_text(to_markdown("The paper in miniature", sections, folder))
    return path


def _figure(path: Path, caption: str) -> list[Block]:
    return [Figure(path, caption)] if path.is_file() else []
