"""Sections about the results: images, answers and scores, before and after RecA."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from showo_dist.logging.grids import BACKGROUND, captioned_sheet, labelled_grid
from showo_dist.report.document import Block, Figure, Missing, Section, Table, Text
from showo_dist.report.inputs import (
    STAGES,
    Evaluation,
    Record,
    Runs,
    evaluation_folder,
    percent,
    share,
    tally,
)
from showo_dist.report.training import loss_blocks

_GRID_ROWS = 2  # prompts of each category in the grid at the top
_PER_TAG = 3  # prompts of each category on the sheet
_ANSWERS = 12
_GAP = 2  # pixels between images side by side
# Settings that may differ between evaluations that are compared.
_MAY_DIFFER = ("checkpoint", "batch")
# Rows of the table of scores that the report opens with, and their names there.
_HEADLINES = {
    "single object: colour": "colour of a single object",
    "single object: shape": "shape of a single object",
    "single object: no other colour": "no other colour, any number of objects",
    "prompts: all": "everything that the prompt asks for",
    "questions: all but descriptions": "answers about held-out images",
}


def opening_section(runs: Runs, grid: Path, losses: Path) -> Section:
    """A grid of images and the main scores before and after RecA, and the losses.

    Args:
        runs: to report.
        grid: PNG file to write.
        losses: PNG file to write.
    """
    blocks: list[Block] = []
    chosen = _common_images(runs, _GRID_ROWS)
    if chosen:
        # 256 colours, for two thirds of the bytes: the README shows this file.
        _save(_before_after(runs, chosen).quantize(256, dither=Image.Dither.NONE), grid)
        caption = "The first prompts of each category; each image is decoded from generated tokens."
        blocks.append(Figure(grid, caption, scrolls=True))
    if runs.evaluations:
        blocks.append(_main_scores(runs.evaluations))
    blocks += [*_missing_evaluations(runs), *loss_blocks(runs, losses)]
    return Section("Before and after RecA", blocks)


def _main_scores(evaluations: dict[str, Evaluation]) -> Table:
    rows = {stage: score_rows(evaluation) for stage, evaluation in evaluations.items()}
    cells = []
    for name, words in _HEADLINES.items():
        entries = [rows.get(stage, {}).get(name) for stage in STAGES]
        if any(entries):
            cells.append([words, *map(share, entries), _chance(entries) or "–"])
    return Table(["correct", "before RecA", "after RecA", "chance"], cells)


def _chance(entries: Sequence[Record | None]) -> str:
    return next((percent(entry["chance"]) for entry in entries if entry and "chance" in entry), "")


def _missing_evaluations(runs: Runs) -> list[Block]:
    missing = [stage for stage in STAGES if stage not in runs.evaluations]
    return [Missing(f"{evaluation_folder(runs.root, stage)}/scores.json") for stage in missing]


def _common_images(runs: Runs, per_tag: int) -> dict[str, list[list[Record]]]:
    """Category -> its first prompts that all evaluations hold, each as one record per evaluation."""
    stages = [
        {(record["tag"], record["prompt"], record["file"]): record for record in evaluation.images}
        for evaluation in runs.evaluations.values()
    ]
    chosen: dict[str, list[list[Record]]] = {}
    for key in stages[0] if stages else ():
        of_tag = chosen.setdefault(key[0], [])
        if len(of_tag) < per_tag and all(key in stage for stage in stages):
            of_tag.append([stage[key] for stage in stages])
    return {tag: prompts for tag, prompts in chosen.items() if prompts}


def _before_after(runs: Runs, chosen: dict[str, list[list[Record]]]) -> Image.Image:
    """A column per category; for each of its prompts a row per evaluation, the prompt as title."""
    titles = [f"after {STAGES[stage]}" for stage in runs.evaluations]
    grids = []
    for place in range(max(map(len, chosen.values()))):
        columns = [prompts[place] for prompts in chosen.values() if place < len(prompts)]
        rows = zip(*(_images(runs, records) for records in columns), strict=True)
        names = [records[0]["prompt"] for records in columns]
        grids.append(labelled_grid(list(rows), names, titles))
    return _joined(grids, across=False)


def _images(runs: Runs, records: Sequence[Record]) -> list[Image.Image]:
    """The images of one prompt, one per evaluation."""
    folders = [evaluation.folder for evaluation in runs.evaluations.values()]
    return [_open(folder / r["file"]) for folder, r in zip(folders, records, strict=True)]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _joined(images: Sequence[Image.Image], *, across: bool, gap: int = 0) -> Image.Image:
    """One image of several: side by side when ``across``, else below each other."""
    sides = [image.width if across else image.height for image in images]
    depth = max(image.height if across else image.width for image in images)
    length = sum(sides) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (length, depth) if across else (depth, length), BACKGROUND)
    start = 0
    for image, side in zip(images, sides, strict=True):
        sheet.paste(image, (start, 0) if across else (0, start))
        start += side + gap
    return sheet


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def image_section(runs: Runs, files: Path) -> Section:
    """Prompts of every category with their images and verdicts, before and after RecA side by side."""
    chosen = _common_images(runs, _PER_TAG)
    blocks: list[Block] = []
    if chosen:
        pairs = [
            (_joined(_images(runs, records), across=True, gap=_GAP), _verdicts(records))
            for prompts in chosen.values()
            for records in prompts
        ]
        path = files / "images.png"
        sheet = captioned_sheet(pairs, columns=_PER_TAG, tile=110 * len(runs.evaluations))
        _save(sheet, path)
        names = " | ".join(STAGES[stage] for stage in runs.evaluations)
        caption = f"{names}. One category per row, its first prompts; verdicts of the checker."
        blocks.append(Figure(path, caption, scrolls=True))
    return Section("Images", [*blocks, *_missing_evaluations(runs)])


def _verdicts(records: list[Record]) -> str:
    verdicts = " | ".join("correct" if record["correct"] else "wrong" for record in records)
    return f"{records[0]['prompt']}\n{verdicts}"


def answer_section(runs: Runs, files: Path) -> Section:
    """Questions about held-out images, with the answers of the last stage that was evaluated."""
    stage = next((s for s in reversed(STAGES) if s in runs.evaluations), None)
    if stage is None:
        return Section("Answered questions", _missing_evaluations(runs))
    evaluation = runs.evaluations[stage]
    chosen = _varied([record for record in evaluation.answers if "file" in record])
    if not chosen:
        return Section("Answered questions", [Missing(f"{evaluation.folder}/answers.jsonl")])
    path = files / "answers.png"
    pairs = [(_open(evaluation.folder / record["file"]), _answer_text(record)) for record in chosen]
    _save(captioned_sheet(pairs, columns=4, tile=170), path)
    figure = Figure(path, f"Held-out images, after {STAGES[stage]}.", scrolls=True)
    return Section("Answered questions", [figure])


def _answer_text(record: Record) -> str:
    verdict = "correct" if record["correct"] else f"wrong, expected: {record['wanted']}"
    return f"{record['question']}\n{record['answer'] or '(no answer)'}\n({verdict})"


def _varied(records: list[Record]) -> list[Record]:
    """Some records of as many types as possible: the first of each type, then the second, …"""
    rank: dict[str, int] = {}
    order = []
    for place, record in enumerate(records):
        rank[record["type"]] = rank.get(record["type"], 0) + 1
        order.append((rank[record["type"]], place))
    return [records[place] for _, place in sorted(order)[:_ANSWERS]]


def score_section(runs: Runs) -> Section:
    """All scores with their intervals in one table, a column per stage."""
    evaluations = runs.evaluations
    if not evaluations:
        return Section("Scores", _missing_evaluations(runs))
    rows = [score_rows(evaluation) for evaluation in evaluations.values()]
    cells = []
    for name in dict.fromkeys(name for stage in rows for name in stage):
        entries = [stage.get(name) for stage in rows]
        cells.append([name, *map(tally, entries), _chance(entries)])
    header = ["", *(f"after {STAGES[stage]}" for stage in evaluations), "chance"]
    blocks: list[Block] = [Table(header, cells), Text(_explanation(evaluations))]
    return Section("Scores", [*blocks, *_missing_evaluations(runs)])


def score_rows(evaluation: Evaluation) -> dict[str, Record]:
    """Name -> tally of each row of the table, in order."""
    scores = evaluation.scores
    rows = {f"prompts: {tag}": entry for tag, entry in scores["categories"].items()}
    rows["prompts: all"] = scores["prompts"]
    rows["single object: colour"] = scores["single_object_colour"]
    rows["single object: no other colour"] = scores["single_object_only_colour"]
    rows["single object: shape"] = scores["single_object_shape"]
    questions = scores["questions"]
    rows |= {f"questions: {kind}": entry for kind, entry in questions["types"].items()}
    rows["questions: all but descriptions"] = questions["total"]
    return {name: entry for name, entry in rows.items() if entry["total"]}


def _explanation(evaluations: dict[str, Evaluation]) -> str:
    settings = [evaluation.scores["settings"] for evaluation in evaluations.values()]
    first = settings[0]
    words = (
        "Correct ones of all, with the 95 % Wilson interval. An image is correct when it shows what "
        "the prompt asks for and nothing else; “no other colour” accepts any number of objects from "
        "one on. Answers are compared word by word. "
        f"Sampling: {first.get('steps', 'as many as codes')} rounds, "
        f"guidance {first['guidance']:g}, seed {first['seed']}"
        f"{', sampler ' + first['sampler'] if 'sampler' in first else ''}."
    )
    names = {name: None for s in settings for name in s if name not in _MAY_DIFFER}
    unlike = [name for name in names if any(s.get(name) != first.get(name) for s in settings)]
    if unlike:
        words += f" The columns are not comparable: they differ in {', '.join(unlike)}."
    return words
