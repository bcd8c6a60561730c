"""The page as HTML: its images are files beside it, and it asks nothing of any other place."""

import json
from collections.abc import Sequence
from html import escape

from showo_dist.logging.records import read_metrics
from showo_dist.report.gallery.chart import Curve, line_chart
from showo_dist.report.gallery.generating import Generated, Settings
from showo_dist.report.gallery.runs import Run
from showo_dist.report.gallery.script import SCRIPT
from showo_dist.report.gallery.style import STYLE
from showo_dist.report.inputs import column
from showo_dist.sequences.sequence import FLOWS

_LOSSES = ("loss", *(f"loss/{flow}" for flow in FLOWS))
_DIALOG = (
    '<dialog aria-label="One image"><img class="image" src="data:," alt=""><p></p>'
    '<div class="controls"><button class="back">Back</button><button class="close">Close</button>'
    '<button class="forth">Next</button></div></dialog>'
)


def page(
    title: str, runs: Sequence[Run], generated: Sequence[Generated], settings: Settings
) -> str:
    """The whole document.

    Args:
        title: of the page.
        runs: whose curves are drawn, from what their metrics say now.
        generated: the columns of images, in order.
        settings: what was generated.
    """
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>",
            '<nav aria-label="Sections"><a href="#images">Images</a>'
            '<a href="#rounds">Rounds</a><a href="#curves">Training</a></nav></header><main>',
            _images(generated, settings),
            _rounds(generated, settings),
            _curves(runs),
            f"</main>{_DIALOG}<script>{SCRIPT}</script>",
        ]
    )
    small = ' class="small"' if all(item.side <= 16 for item in generated) else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body{small}>\n{body}\n</body>\n</html>\n"
    )


def _images(generated: Sequence[Generated], settings: Settings) -> str:
    """A strip per prompt, a checkpoint per column."""
    rows = []
    for place, prompt in enumerate(settings.prompts):
        figures = "".join(
            f'<li><figure><button aria-haspopup="dialog">{_image(item, item.images[place], prompt)}'
            f"</button><figcaption>{escape(item.checkpoint.label)}</figcaption></figure></li>"
            for item in generated
        )
        rows.append(f"<h3>{escape(prompt)}</h3>{_strip(figures, prompt)}")
    words = f"The same prompts and random numbers (seed {settings.seed}) for every checkpoint."
    return (
        f'<section id="images"><h2>Images</h2><p class="faint">{words}</p>{"".join(rows)}</section>'
    )


def _strip(figures: str, prompt: str) -> str:
    """Can be scrolled by keys where it is wider than the screen."""
    return f'<ul class="strip" tabindex="0" aria-label="{escape(prompt)}">{figures}</ul>'


def _image(item: Generated, file: str, prompt: str) -> str:
    words = escape(f"{prompt} ({item.checkpoint.label})")
    return f'<img class="image" src="{escape(file)}" alt="{words}" loading="lazy">'


def _rounds(generated: Sequence[Generated], settings: Settings) -> str:
    """A player per prompt whose rounds were kept; one slider moves all its checkpoints."""
    players = [
        _player(place, prompt, generated)
        for place, prompt in enumerate(settings.prompts[: settings.frames])
    ]
    words = (
        "Each round guesses every code that is still masked and masks the least sure ones again. "
        "The image is the whole guess; the veil covers what is masked again."
    )
    return (
        f'<section id="rounds"><h2>Rounds of an image</h2><p class="faint">{words}</p>'
        f"{''.join(players)}</section>"
    )


def _player(place: int, prompt: str, generated: Sequence[Generated]) -> str:
    rounds = max(len(item.frames[place]) for item in generated)
    figures = "".join(
        f'<li><figure><div class="stack">{_image(item, item.frames[place][-1], prompt)}'
        f'<svg viewBox="0 0 {item.side} {item.side}" aria-hidden="true"><path d=""/></svg>'
        f"{_data(item, place)}</div>"
        f"<figcaption>{escape(item.checkpoint.label)}</figcaption></figure></li>"
        for item in generated
    )
    name = escape(prompt)
    return (
        f'<div class="player" role="group" aria-label="Rounds of: {name}"><h3>{name}</h3>'
        '<div class="controls" hidden><button class="play">Play</button>'
        f'<input type="range" min="1" max="{rounds}" value="{max(1, rounds // 3)}" '
        f'aria-label="Round"><output></output>'
        '<label><input type="checkbox" checked> show what is masked</label></div>'
        f"{_strip(figures, prompt)}</div>"
    )


def _data(item: Generated, place: int) -> str:
    values = {"frames": item.frames[place], "masks": item.masks[place], "side": item.side}
    return f'<script type="application/json">{json.dumps(values)}</script>'


def _curves(runs: Sequence[Run]) -> str:
    """A chart of the losses of every run that has metrics."""
    charts = []
    for run in runs:
        lines = read_metrics(run.folder / "metrics.jsonl")
        columns = {key.removeprefix("loss/"): column(lines, key) for key in _LOSSES}
        curves = [Curve(name, *both) for name, both in columns.items() if both[0]]
        if curves:
            chart = line_chart(curves, f"Loss of {run.name}")
            charts.append(f"<div><h3>{escape(run.name)}: loss, nats</h3>{chart}</div>")
    shown = f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>No metrics here.</p>"
    return f'<section id="curves"><h2>Training</h2>{shown}</section>'
