"""The gallery's page: its images are files beside it, and it loads nothing from other places."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from showo_dist.logging.records import read_metrics
from showo_dist.report.curves import loss_curves, svg_chart
from showo_dist.report.document import Html, Section, Text, to_html
from showo_dist.report.gallery.checkpoints import Run
from showo_dist.report.gallery.generating import Generated, Settings

_SMALL_SIDE = 16  # codes: images of at most so many are shown with visible pixels
_DIALOG = (
    '<dialog aria-label="One image"><img class="image" src="data:," alt=""><p></p>'
    '<div class="controls"><button class="back">Back</button><button class="close">Close</button>'
    '<button class="next">Next</button></div></dialog>'
)


def gallery_page(
    title: str, runs: Sequence[Run], generated: Sequence[Generated], settings: Settings
) -> str:
    """The whole HTML page.

    Args:
        title: of the page.
        runs: whose losses are drawn, as their metrics are now.
        generated: the columns of images, in order.
        settings: of the generation.
    """
    sections = [_images(generated, settings), _rounds(generated, settings), _training(runs)]
    script = files(__package__).joinpath("page.js").read_text()
    small = all(item.side <= _SMALL_SIDE for item in generated)
    return to_html(
        title,
        sections,
        body_class="small" if small else "",
        end=f"{_DIALOG}<script>\n{script}</script>\n",
    )


def _images(generated: Sequence[Generated], settings: Settings) -> Section:
    """A row of images per prompt, one per checkpoint."""
    words = f"The same prompts and random numbers (seed {settings.seed}) for every checkpoint."
    rows = []
    for place, prompt in enumerate(settings.prompts):
        buttons = [
            f'<button aria-haspopup="dialog">{_image(item, item.images[place], prompt)}</button>'
            for item in generated
        ]
        rows.append(Html(f"<h3>{escape(prompt)}</h3>{_strip(generated, buttons, prompt)}"))
    return Section("Images", [Text(words), *rows])


def _strip(generated: Sequence[Generated], contents: Sequence[str], prompt: str) -> str:
    """A row with a figure per checkpoint; it can be focused, so that arrow keys scroll a wide one."""
    figures = "".join(
        f"<li><figure>{content}<figcaption>{escape(item.checkpoint.label)}</figcaption></figure></li>"
        for item, content in zip(generated, contents, strict=True)
    )
    return f'<ul class="strip" tabindex="0" aria-label="{escape(prompt)}">{figures}</ul>'


def _image(item: Generated, file: str, prompt: str) -> str:
    words = escape(f"{prompt} ({item.checkpoint.label})")
    return f'<img class="image" src="{escape(file)}" alt="{words}" loading="lazy">'


def _rounds(generated: Sequence[Generated], settings: Settings) -> Section:
    """A player per prompt whose rounds are kept; one slider moves all its checkpoints."""
    words = (
        "Each round predicts every code that is still masked and masks the least certain ones again. "
        "The image shows all predictions; the veil covers the codes that are masked again."
    )
    players = [
        Html(_player(place, prompt, generated))
        for place, prompt in enumerate(settings.prompts[: settings.frames])
    ]
    return Section("Rounds", [Text(words), *players])


def _player(place: int, prompt: str, generated: Sequence[Generated]) -> str:
    rounds = max(len(item.frames[place]) for item in generated)
    stacks = [
        f'<div class="stack">{_image(item, item.frames[place][-1], prompt)}'
        f'<svg viewBox="0 0 {item.side} {item.side}" aria-hidden="true"><path d=""/></svg>'
        f"{_data(item, place)}</div>"
        for item in generated
    ]
    name = escape(prompt)
    return (
        f'<div class="player" role="group" aria-label="Rounds of: {name}"><h3>{name}</h3>'
        '<div class="controls" hidden><button class="play">Play</button>'
        f'<input type="range" min="1" max="{rounds}" value="{max(1, rounds // 3)}" '
        f'aria-label="Round"><output></output>'
        '<label><input type="checkbox" checked> show the masked codes</label></div>'
        f"{_strip(generated, stacks, prompt)}</div>"
    )


def _data(item: Generated, place: int) -> str:
    values = {"frames": item.frames[place], "masks": item.masks[place], "side": item.side}
    return f'<script type="application/json">{json.dumps(values)}</script>'


def _training(runs: Sequence[Run]) -> Section:
    """A chart of the losses of every run that has metrics."""
    charts = []
    for run in runs:
        curves = loss_curves(read_metrics(run.folder / "metrics.jsonl"))
        if curves:
            chart = svg_chart(curves, f"Loss of {run.name}")
            charts.append(f"<div><h3>{escape(run.name)}: loss, nats</h3>{chart}</div>")
    shown = Html(f'<div class="charts">{"".join(charts)}</div>') if charts else None
    return Section("Training", [shown or Text("None of these runs has metrics.")])
