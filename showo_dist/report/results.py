"""Sections about what the model can do: images, answers, scores before and after RecA.

The first paragraph: what was measured, in a few sentences."""

from pathlib import Path

from PIL import Image

from showo_dist.logging.grids import captioned_sheet
from showo_dist.report.inputs import (
    STAGES,
    Evaluation,
    Record,
    Runs,
    count,
    duration,
    evaluation_folder,
    number,
    percent,
    tally,
)
from showo_dist.report.training import codebook_size, elapsed_s, tokenizer_values
from showo_dist.report.writers import Block, Figure, Missing, Section, Table, Text

_PER_TAG = 3  # images of each category on the sheet
_ANSWERS = 12
# Settings that two evaluations must share to be compared.
_COMPARED = ("prompts", "shards", "seed", "steps", "guidance", "temperature")


def missing_evaluations(runs: Runs) -> list[Block]:
    """Says which evaluations were not there."""
    missing = [stage for stage in STAGES if stage not in runs.evaluations]
    return [Missing(f"{evaluation_folder(runs.root, stage)}/scores.json") for stage in missing]


def image_section(runs: Runs, files: Path) -> Section:
    """Prompts of every category with their images, before and after RecA side by side."""
    chosen = _chosen_images(runs)
    blocks: list[Block] = []
    if chosen:
        path = files / "images.png"
        _save(captioned_sheet(chosen, columns=_PER_TAG, tile=110 * len(runs.evaluations)), path)
        names = " | ".join(STAGES[stage] for stage in runs.evaluations)
        caption = f"{names}. One category per row, its first prompts; verdicts by the checker."
        blocks.append(Figure(path, caption, scrolls=True))
    return Section("Images", [*blocks, *missing_evaluations(runs)])


def _chosen_images(runs: Runs) -> list[tuple[Image.Image, str]]:
    """The first images of each category that every evaluation holds."""
    by_stage = [
        {(record["tag"], record["prompt"], record["file"]): record for record in evaluation.images}
        for evaluation in runs.evaluations.values()
    ]
    folders = [evaluation.folder for evaluation in runs.evaluations.values()]
    common = (
        [key for key in by_stage[0] if all(key in other for other in by_stage)] if by_stage else []
    )
    taken: dict[str, int] = {}
    chosen = []
    for key in common:
        tag, prompt, _ = key
        taken[tag] = taken.get(tag, 0) + 1
        if taken[tag] <= _PER_TAG:
            records = [stage[key] for stage in by_stage]
            chosen.append((_side_by_side(folders, records), _verdicts(prompt, records)))
    return chosen


def _side_by_side(folders: list[Path], records: list[Record]) -> Image.Image:
    images = [
        _open(folder / record["file"]) for folder, record in zip(folders, records, strict=True)
    ]
    gap = 2
    width = sum(image.width + gap for image in images) - gap
    pair = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        pair.paste(image, (left, 0))
        left += image.width + gap
    return pair


def _verdicts(prompt: str, records: list[Record]) -> str:
    return f"{prompt}\n" + " | ".join("right" if r["correct"] else "wrong" for r in records)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def answer_section(runs: Runs, files: Path) -> Section:
    """Questions about held-out images with the answers of the last stage that was evaluated."""
    stage = next((s for s in reversed(STAGES) if s in runs.evaluations), None)
    if stage is None:
        return Section("Answered questions", missing_evaluations(runs))
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
    verdict = "right" if record["correct"] else f"wrong, expected: {record['wanted']}"
    return f"{record['question']}\n{record['answer'] or '(no answer)'}\n({verdict})"


def _varied(records: list[Record]) -> list[Record]:
    """Some records, as many types as possible: the first of each type, then the second, …"""
    rank: dict[str, int] = {}
    order = []
    for place, record in enumerate(records):
        rank[record["type"]] = rank.get(record["type"], 0) + 1
        order.append((rank[record["type"]], place))
    return [records[place] for _, place in sorted(order)[:_ANSWERS]]


def score_section(runs: Runs) -> Section:
    """The checker's verdicts as one table, a column per stage."""
    evaluations = runs.evaluations
    if not evaluations:
        return Section("Scores", missing_evaluations(runs))
    rows = {stage: score_rows(evaluation) for stage, evaluation in evaluations.items()}
    names = list(dict.fromkeys(name for stage in rows.values() for name in stage))
    cells = []
    for name in names:
        entries = [stage.get(name) for stage in rows.values()]
        chance = next((entry["chance"] for entry in entries if entry and "chance" in entry), None)
        shown = "" if chance is None else percent(chance)
        cells.append([name, *map(tally, entries), shown])
    header = ["", *(f"after {STAGES[stage]}" for stage in evaluations), "chance"]
    blocks: list[Block] = [Table(header, cells), Text(_explanation(evaluations))]
    return Section("Scores", [*blocks, *missing_evaluations(runs)])


def score_rows(evaluation: Evaluation) -> dict[str, Record]:
    """Name of a row and its tally, in the order of the table."""
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
        "Right ones of all, and the 95 % Wilson interval. An image is right when it shows what the "
        "prompt asks for and nothing else; “no other colour” allows any number of objects but none. "
        "Answers are compared word by word. "
        f"Sampling: {first['steps']} rounds, guidance {first['guidance']:g}, seed {first['seed']}."
    )
    unlike = [name for name in _COMPARED if any(s[name] != first[name] for s in settings)]
    if unlike:
        words += f" The columns are not comparable: they differ in {', '.join(unlike)}."
    return words


# Rows of the table of scores that the summary names, and how.
_HEADLINES = {
    "single object: colour": "colour of a single object as asked",
    "single object: no other colour": "no other colour than the asked one, in any number of objects",
    "single object: shape": "shape of a single object as asked",
    "prompts: all": "all that the prompt asks for, over all categories",
    "questions: all but descriptions": "right answers to questions about held-out images",
}


def summary_section(runs: Runs) -> Section:
    """Only sentences whose numbers were found."""
    sentences = [*_score_sentences(runs), *_tokenizer_sentence(runs), *_training_sentences(runs)]
    if not sentences:
        return Section("Summary", [Missing(f"{runs.root} holds no results")])
    return Section("Summary", [Text(" ".join(sentences))])


def _score_sentences(runs: Runs) -> list[str]:
    rows = {stage: score_rows(evaluation) for stage, evaluation in runs.evaluations.items()}
    sentences = []
    for name, words in _HEADLINES.items():
        found = {
            stage: stage_rows[name] for stage, stage_rows in rows.items() if name in stage_rows
        }
        if found:
            parts = [f"{tally(entry)} after {STAGES[stage]}" for stage, entry in found.items()]
            sentences.append(f"{words[0].upper()}{words[1:]}: {', '.join(parts)}{_chance(found)}.")
    return sentences


def _chance(found: dict[str, Record]) -> str:
    chances = [entry["chance"] for entry in found.values() if "chance" in entry]
    return f" (chance {percent(chances[0])})" if chances else ""


def _tokenizer_sentence(runs: Runs) -> list[str]:
    values, size = tokenizer_values(runs), codebook_size(runs)
    parts = []
    if "codes_in_use" in values:
        of = "" if size is None else f" of {count(size)}"
        parts.append(f"uses {count(values['codes_in_use'])}{of} codes")
    if "psnr" in values:
        parts.append(f"reconstructs at {number(values['psnr'], 'dB')} PSNR")
    return [f"The image tokenizer {' and '.join(parts)}."] if parts else []


def _training_sentences(runs: Runs) -> list[str]:
    parts = [
        f"{title} {count(runs.metrics[stage][-1]['step'])} steps in "
        f"{duration(elapsed_s(runs.metrics[stage]))}"
        for stage, title in STAGES.items()
        if runs.metrics[stage]
    ]
    return [f"Training: {', '.join(parts)} (first to last logged line)."] if parts else []
