"""Sections about training: losses, the image tokenizer, throughput."""

from pathlib import Path

from showo_dist.models.magvitv2.model import read_config
from showo_dist.models.weights.folder import CONFIG_NAME
from showo_dist.report.curves import curves_of, loss_curves, save_plot
from showo_dist.report.document import Block, Figure, Missing, Section, Table, Text
from showo_dist.report.inputs import (
    STAGES,
    TOKENIZER,
    Record,
    Runs,
    column,
    count,
    duration,
    last,
    mean,
    metrics_path,
    number,
    percent,
    read_runs,
    tally,
)


def no_metrics(runs: Runs, name: str) -> Missing:
    """The notice that a run has no metrics."""
    return Missing(f"{metrics_path(runs.root, name)} (no metrics of this run)")


def loss_blocks(runs: Runs, path: Path) -> list[Block]:
    """A plot of the losses, one panel per stage and one curve per flow."""
    panels = {
        f"{title[0].upper()}{title[1:]}": loss_curves(runs.metrics[stage])
        for stage, title in STAGES.items()
        if runs.metrics[stage]
    }
    missing: list[Block] = [no_metrics(runs, stage) for stage in STAGES if not runs.metrics[stage]]
    if not panels:
        return missing
    save_plot(panels, "cross-entropy, nats", path)
    caption = (
        "Loss per flow, mean over the global batch; “loss” is their weighted sum. Dashed: on held-out "
        "data, with fixed masks."
    )
    return [Figure(path, caption), *missing]


def codebook_size(runs: Runs) -> int | None:
    """Codes of the trained tokenizer, by its ``config.json``."""
    folder = runs.root / TOKENIZER / "final"
    return read_config(folder).codebook_size if (folder / CONFIG_NAME).is_file() else None


def tokenizer_values(runs: Runs) -> dict[str, float]:
    """PSNR and codes in use, from the last evaluation if there was one, else from the last step."""
    lines = runs.metrics[TOKENIZER]
    values = {}
    for key in ("psnr", "codes_in_use", "code_perplexity"):
        measured = last(lines, f"eval/{key}")
        value = last(lines, key) if measured is None else measured
        if value is not None:
            values[key] = value
    return values


def tokenizer_section(runs: Runs, files: Path) -> Section:
    """How exactly the tokenizer reconstructs images, and how much of its codebook it uses."""
    lines = runs.metrics[TOKENIZER]
    if not lines:
        return Section("Image tokenizer", [no_metrics(runs, TOKENIZER)])
    blocks: list[Block] = [_tokenizer_table(runs)]
    path = files / "tokenizer.png"
    curves = curves_of(lines, ["codes_in_use", "code_perplexity"])
    if curves:
        save_plot({"": curves}, "codes", path)
        caption = (
            "Codes in use, and their perplexity: the number of equally frequent codes that have the "
            "same entropy."
        )
        blocks.append(Figure(path, caption))
    grids = sorted((runs.root / TOKENIZER / "images").glob("reconstruction-*.png"))
    if grids:
        blocks.append(Figure(grids[-1], "Images, and their reconstruction by the tokenizer."))
    else:
        blocks.append(Missing(f"{runs.root / TOKENIZER}/images/reconstruction-STEP.png"))
    return Section("Image tokenizer", blocks)


def _tokenizer_table(runs: Runs) -> Table:
    values, size = tokenizer_values(runs), codebook_size(runs)
    rows = [
        ["codes in use", count(values.get("codes_in_use"))],
        ["codes in the codebook", count(size)],
        ["perplexity of the codes", number(values.get("code_perplexity"))],
        ["PSNR", number(values.get("psnr"), "dB")],
        ["optimizer steps", count(runs.metrics[TOKENIZER][-1]["step"])],
    ]
    return Table(["", "value"], [row for row in rows if row[1] != "–"])


def elapsed_s(lines: list[Record]) -> float:
    """Seconds from the first to the last line of metrics."""
    return lines[-1]["time"] - lines[0]["time"]


def throughput_section(runs: Runs) -> Section:
    """Speed of each stage, from its metrics."""
    stages = {title: runs.metrics[stage] for stage, title in STAGES.items()}
    rows = [_throughput_row(title, lines) for title, lines in stages.items() if lines]
    blocks: list[Block] = [no_metrics(runs, stage) for stage in STAGES if not runs.metrics[stage]]
    if rows:
        header = ["stage", "steps", "tokens/s", "samples/s", "TFLOP/s", "MFU", "s/step"]
        header += ["data wait", "memory per rank", "first to last line"]
        words = (
            "Means over the logged lines without the first one, if there are several; the highest "
            "memory that was logged. Data wait is a share of the step."
        )
        blocks = [Table(header, rows), Text(words), *blocks]
    return Section("Throughput", blocks)


def _throughput_row(title: str, lines: list[Record]) -> list[str]:
    steady = lines[1:] or lines  # the first line includes warming up

    def average(key: str) -> float | None:
        return mean(column(steady, key)[1])

    step_s, wait_s, mfu = average("step_s"), average("data_wait_s"), average("mfu")
    memory = column(lines, "memory_gb")[1]
    return [
        title,
        count(lines[-1]["step"]),
        number(average("tokens_per_s")),
        number(average("samples_per_s")),
        number(average("tflops")),
        "–" if mfu is None else percent(mfu),
        number(step_s),
        "–" if wait_s is None or not step_s else percent(wait_s / step_s),
        number(max(memory, default=None), "GB"),
        duration(elapsed_s(lines)),
    ]


def backbone_section(runs: Runs) -> Section | None:
    """This backbone beside the mini world's own, if the folder above has its runs; else None."""
    above = runs.root.parent
    if not metrics_path(above, "pretrain").is_file():
        return None
    columns = [_backbone_column(found) for found in (read_runs(above), runs)]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    words = "One run of each with one seed, on the same data and image tokenizer."
    header = ["", f"{above}", f"{runs.root}"]
    return Section("Beside the mini world's own backbone", [Table(header, rows), Text(words)])


def _backbone_column(runs: Runs) -> dict[str, str]:
    lines, evaluation = runs.metrics["pretrain"], runs.evaluations.get("pretrain")
    scores: Record = evaluation.scores if evaluation else {}
    return {
        "pre-training steps": count(lines[-1]["step"]) if lines else "–",
        "s/step": number(mean(column(lines[1:], "step_s")[1])),
        "held-out loss of text to image": number(last(lines, "validation/t2i")),
        "held-out loss of understanding": number(last(lines, "validation/mmu")),
        "prompts, before RecA": tally(scores.get("prompts")),
        "questions, before RecA": tally(scores.get("questions", {}).get("total")),
    }
