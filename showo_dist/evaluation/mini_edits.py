"""The framework ``mini-edit``: edits of the mini world, scored by its exact checker."""

import argparse
from dataclasses import dataclass
from functools import partial
from glob import glob

from PIL import Image
from rich.console import Console
from rich.table import Table

from showo_data import FlowSpec
from showo_data.members import IMAGES, SOURCE, first_of, read_texts, within
from showo_data.mini import EDIT_KINDS, EditScore, SceneEdit, draw, score_edit
from showo_data.readers import ExactReader
from showo_data.text import parse_json
from showo_dist.evaluation.generating import ImageFile, generate_files
from showo_dist.evaluation.job import Job, Json, write_json
from showo_dist.evaluation.mini import write_lines
from showo_dist.evaluation.mini_scores import Tally, image_name
from showo_dist.evaluation.results import Outcome
from showo_dist.generation.output import save_image
from showo_dist.logging.grids import labelled_grid

HELP = "edits of the mini world, and what must stay untouched"
OWNED = ("images", "images.jsonl", "sheet.png", "scores.json")
_SHEET = 16  # edits on the sheet
_ASPECTS = ("edit", "untouched", "both")


@dataclass(frozen=True)
class Asked:
    """One edit of the shards, and its source image as stored."""

    edit: SceneEdit
    source: bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this framework."""
    parser.add_argument(
        "--shards", required=True, help="of mini-edits, e.g. 'data/edits/val-*.tar'"
    )
    parser.add_argument("--limit", type=int, help="only so many edits, a fixed choice")
    parser.set_defaults(replace=True)


def read_edits(pattern: str, limit: int | None) -> list[Asked]:
    """Read the edits of shards, a glob or brace pattern, in their order.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: a sample is no edit of the mini world.
    """
    urls = tuple(sorted(glob(pattern))) or (pattern,)
    spec = FlowSpec(flow="edits", kind="edit", urls=urls, batch=1, streams=1, window=1)
    reader = ExactReader(spec)
    return [_read(reader, position) for position in range(min(len(reader), limit or len(reader)))]


def _read(reader: ExactReader, position: int) -> Asked:
    raw = reader.read(position)
    source, record = first_of(within(SOURCE, raw.read), IMAGES), raw.read("json")
    try:
        (instruction,) = read_texts(raw.read)
        edit = SceneEdit.from_json(parse_json((record or b"").decode()), instruction)
    except Exception as error:
        raise ValueError(
            f"{raw.shard}, {raw.key!r}: no edit of the mini world ({error!r}); write the shards with "
            "`showo-dist mini-edits`"
        ) from None
    return Asked(edit, source or b"")


def run(job: Job) -> Outcome:
    """Edit and score; write all results into ``job.out`` and print a table.

    Writes ``scores.json``, ``images.jsonl`` with ``images/*.png``, and ``sheet.png``: instruction, source,
    edited and wanted image side by side.

    Raises:
        ValueError, FileNotFoundError: the shards cannot be read.
    """
    asked = read_edits(job.arguments.shards, job.arguments.limit)
    settings = {
        "checkpoint": job.checkpoint,
        "shards": job.arguments.shards,
        **job.sampling_settings(),
    }
    job.claim(settings, [[a.edit.instruction, a.edit.to_json()] for a in asked], OWNED)
    files = [
        ImageFile(
            image_name(index),
            item.edit.instruction,
            ((index,),),
            {"kind": item.edit.kind},
            partial(bytes, item.source),
        )
        for index, item in enumerate(asked)
    ]
    generate_files(job, files, settings)
    job.ranks.first_alone(lambda: _conclude(job, [item.edit for item in asked], settings))
    return Outcome(job.checkpoint, job.out)


def _conclude(job: Job, edits: list[SceneEdit], settings: Json) -> None:
    images = []
    for index in range(len(edits)):
        with Image.open(job.out / image_name(index)) as file:
            images.append(file.convert("RGB"))
    verdicts = [score_edit(image, edit) for image, edit in zip(images, edits, strict=True)]
    # The wanted images through the image tokenizer alone: the most that a model can reach.
    decoded = job.pipeline.tokenizer_roundtrip([draw(edit.after) for edit in edits])
    reachable = [score_edit(image, edit) for image, edit in zip(decoded, edits, strict=True)]
    write_lines(job.out / "images.jsonl", map(_record, range(len(edits)), edits, verdicts))
    scores = {
        "framework": "mini-edit",
        "settings": settings,
        "edits": edit_scores(edits, verdicts),
        "tokenizer_alone": edit_scores(edits, reachable),
    }
    write_json(job.out / "scores.json", scores, indent=2)
    save_image(_sheet(edits, images, verdicts), job.out / "sheet.png", {})
    Console().print(_table(scores))


def _record(index: int, edit: SceneEdit, verdict: EditScore) -> Json:
    return {
        "file": image_name(index),
        "instruction": edit.instruction,
        **edit.to_json(),
        "edit": verdict.edit,
        "untouched": verdict.untouched,
        "reason": verdict.reason,
    }


def edit_scores(edits: list[SceneEdit], verdicts: list[EditScore]) -> Json:
    """Per kind and for all: edits as asked, images whose rest is untouched, and both."""
    tallies = {kind: {name: Tally() for name in _ASPECTS} for kind in (*EDIT_KINDS, "all")}
    for edit, verdict in zip(edits, verdicts, strict=True):
        values = verdict.edit, verdict.untouched, verdict.edit and verdict.untouched
        for kind in (edit.kind, "all"):
            for name, right in zip(_ASPECTS, values, strict=True):
                tallies[kind][name].add(right)
    return {
        kind: {name: tally.to_json() for name, tally in aspects.items()}
        for kind, aspects in tallies.items()
        if aspects["both"].total
    }


def _sheet(
    edits: list[SceneEdit], images: list[Image.Image], verdicts: list[EditScore]
) -> Image.Image:
    """Source, edited and wanted image of the first edits, a row each."""
    shown = list(zip(edits, images, verdicts, strict=True))[:_SHEET]
    rows = [[draw(edit.before), image, draw(edit.after)] for edit, image, _ in shown]
    words = [verdict.reason.partition(":")[0] or "right" for _, _, verdict in shown]
    titles = [
        f"{edit.instruction}\n({word})" for (edit, _, _), word in zip(shown, words, strict=True)
    ]
    return labelled_grid(rows, ["source", "edited", "wanted"], titles)


def _table(scores: Json) -> Table:
    """All scores of one evaluation, for the terminal."""
    shown = Table(title=scores["settings"]["checkpoint"], title_justify="left")
    headings = ("", "of", "edit right", "untouched", "both", "tokenizer alone")
    for heading in headings:
        shown.add_column(heading, justify="right" if heading else "left")
    for kind, aspects in scores["edits"].items():
        cells = [
            f"{value['accuracy']:.1%} ({value['low']:.0%}–{value['high']:.0%})"
            for value in aspects.values()
        ]
        most = scores["tokenizer_alone"][kind]["both"]["accuracy"]
        shown.add_row(kind, str(aspects["both"]["total"]), *cells, f"{most:.1%}")
    return shown
