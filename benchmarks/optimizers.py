"""Compare Muon with AdamW on the mini world, at equal steps and at equal time.

    python benchmarks/optimizers.py [--steps 1100] [--seeds 1 2 3] [--out runs/optimizers] [--json FILE]

Needs the data and the image tokenizer of `make train`. Every run is pre-training as the config has it, with
the learning rates and batch of Muon's config; AdamW has the same rate as Muon's embeddings, 3e-3, which is
what AdamW's own config had. AdamW's longer runs have as many steps as fit the time of Muon's, by the median
step of the first seed's two runs, so nothing else may run meanwhile. A second call resumes.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common import report
from mini_paper.tables import paired

from showo_dist.logging.records import read_metrics
from showo_dist.mini import CONFIGS
from showo_dist.recipe import Stage, StageRunner, launched

RANKS = 2
MUON, ADAMW, LONGER = "Muon", "AdamW, equal steps", "AdamW, equal time"
FOLDERS = {MUON: "muon", ADAMW: "adamw", LONGER: "adamw-longer"}
LOSSES = {"held-out t2i": "validation/t2i", "held-out mmu": "validation/mmu"}


def torchrun(module: str, *arguments: str) -> list[str]:
    start = ["torchrun", "--standalone", "--nproc-per-node", str(RANKS), "-m", module]
    return launched(start, *arguments)


def run_folder(options: argparse.Namespace, arm: str, seed: int) -> Path:
    return options.out / f"{FOLDERS[arm]}-{seed}"


def stages(options: argparse.Namespace, arm: str, seed: int, steps: int) -> Iterator[Stage]:
    """Train, then generate and score the prompts."""
    folder = run_folder(options, arm, seed)
    train = torchrun(
        *("showo_dist.train", f"config={CONFIGS}/pretrain.yaml", f"experiment.output_dir={folder}"),
        f"optimizer.name={'muon' if arm == MUON else 'adamw'}",
        *(f"training.seed={seed}", f"training.max_train_steps={steps}", "wandb.mode=disabled"),
        *(f"experiment.eval_every={steps}", f"experiment.save_every={max(1, steps // 2)}"),
        *("experiment.generate_every=0", "experiment.keep_last=1"),
        *options.changes,
    )
    yield Stage(f"{folder.name}: train", [train])
    evaluate = torchrun(
        *("showo_dist.cli", "evaluate", "--framework", "mini", f"{folder}/checkpoint-{steps:06d}"),
        *("--prompts", str(options.prompts), "--out", str(folder / "evaluation")),
        *("--steps", str(options.rounds), "--limit", str(options.limit)),
    )
    yield Stage(f"{folder.name}: evaluate", [evaluate])


def step_s(options: argparse.Namespace, arm: str) -> float:
    """Median seconds per step of the first seed's run."""
    lines = read_metrics(run_folder(options, arm, options.seeds[0]) / "metrics.jsonl")
    return median(line["step_s"] for line in lines)


def result(options: argparse.Namespace, arm: str, seed: int) -> dict[str, float]:
    """Held-out losses of the last step, and the share of prompts that are right, in percent."""
    folder = run_folder(options, arm, seed)
    last = read_metrics(folder / "metrics.jsonl")[-1]
    scores = json.loads((folder / "evaluation" / "scores.json").read_text())
    losses = {name: last[key] for name, key in LOSSES.items()}
    return losses | {"prompts right, %": 100 * scores["prompts"]["accuracy"]}


def compared(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Means of each arm, and Muon's differences by seed with their 95 % intervals."""

    def column(arm: str, name: str) -> dict[int, float]:
        return {row["seed"]: row[name] for row in rows if row["optimizer"] == arm}

    names = [name for name in rows[0] if name not in ("optimizer", "seed", "steps")]
    yield from ((f"{n}: {arm}", fmean(column(arm, n).values())) for n in names for arm in FOLDERS)
    for name, arm in product(names, (ADAMW, LONGER)):
        difference = paired(column(MUON, name), column(arm, name))
        assert difference is not None
        yield f"{name}: Muon - {arm}", difference.mean
        if difference.half is not None:
            yield f"{name}: Muon - {arm}, ±", difference.half


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of every training")
    parser.add_argument("--steps", type=int, default=1100, help="of Muon's runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--prompts", type=Path, default=Path("data/mini/prompts.jsonl"))
    parser.add_argument("--limit", type=int, default=20, help="prompts of each category")
    parser.add_argument("--rounds", type=int, default=64, help="per image")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.set_defaults(device="cpu")
    options = parser.parse_intermixed_args()
    runner = StageRunner(options.out / "stages.json", lambda _: "")
    steps = {MUON: options.steps, ADAMW: options.steps}
    rows: list[dict[str, Any]] = []
    for seed, arm in product(options.seeds, FOLDERS):
        if arm not in steps:  # once the first runs of both are timed
            steps[arm] = round(options.steps * step_s(options, MUON) / step_s(options, ADAMW))
        for stage in stages(options, arm, seed, steps[arm]):
            runner.run(stage)
        about = {"optimizer": arm, "seed": seed, "steps": steps[arm]}
        rows.append(about | result(options, arm, seed))
    findings = dict(compared(rows))
    findings["step of Muon / step of AdamW"] = step_s(options, MUON) / step_s(options, ADAMW)
    report("optimizers", rows, findings, {"rounds": options.rounds}, options)


if __name__ == "__main__":
    main()
