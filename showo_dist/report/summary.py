"""The first paragraph: what was measured, in a few sentences."""

from showo_dist.report.blocks import Missing, Section, Text
from showo_dist.report.inputs import STAGES, Record, Runs
from showo_dist.report.results import score_rows
from showo_dist.report.training import codebook_size, elapsed_s, tokenizer_values
from showo_dist.report.words import count, duration, number, percent, tally

# Rows of the table of scores that the summary names, and how.
_HEADLINES = {
    "single object: colour": "colour of a single object as asked",
    "single object: no other colour": "no other colour than the asked one, in any number of objects",
    "single object: shape": "shape of a single object as asked",
    "prompts: all": "all that the prompt asks for, over all categories",
    "questions: all but descriptions": "right answers to questions about held-out pictures",
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
