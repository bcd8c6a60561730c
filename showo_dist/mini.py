"""``showo-dist mini``: the whole story in one command, from drawing the pictures to the report.

Every stage is one of the project's own commands in processes of its own; a second call goes on behind the
last stage that was finished, and inside a training stage from its last checkpoint.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

CONFIGS = Path("configs/mini")
TEXT_TOKENS = 512
# The mini configs' batch sizes are for this many ranks; fewer ranks accumulate instead.
CONFIG_RANKS = 2


@dataclass(frozen=True)
class Stage:
    """One step of the story.

    Attributes:
        name: what it is called in the log and in the file of finished stages.
        commands: run side by side; the stage fails if one fails.
    """

    name: str
    commands: list[list[str]]


@dataclass(frozen=True)
class Places:
    """Where things lie. All paths are relative to the working folder, so that reports can be moved."""

    data: Path
    runs: Path

    def shards(self, name: str, count: int) -> str:
        return f"{self.data}/{name}-{{000000..{count - 1:06d}}}.tar"


def _tool(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "showo_dist.cli", *arguments]


def _launched(ranks: int, module: str, *arguments: str) -> list[str]:
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    start = [deepspeed, "--quiet", "--num_gpus", str(ranks), "--module", module]
    return [*start, *arguments]


def _torchrun(ranks: int, module: str, *arguments: str) -> list[str]:
    torchrun = str(Path(sys.executable).parent / "torchrun")
    start = [torchrun, "--standalone", "--nproc-per-node", str(ranks), "-m", module]
    return [*start, *arguments]


def _train(ranks: int, config: str, places: Places, changes: list[str]) -> list[str]:
    accumulation = f"training.gradient_accumulation_steps={CONFIG_RANKS // ranks}"
    where = f"experiment.output_dir={places.runs}/{config}"
    return _launched(
        ranks, "showo_dist.train", f"config={CONFIGS}/{config}.yaml", where, accumulation, *changes
    )


def _evaluate(places: Places, run: str, checkpoint: str, limit: int) -> list[str]:
    return _tool(
        *("evaluate", "--framework", "mini", checkpoint),
        *("--prompts", f"{places.data}/prompts.jsonl", "--shards", places.shards("val", 1)),
        *("--out", f"{places.runs}/eval-{run}", "--limit", str(limit)),
    )


def stages(
    places: Places, ranks: int, pictures: int, limit: int, changes: list[str]
) -> Iterator[Stage]:
    """The story in order.

    Args:
        places: folders.
        ranks: training processes, 1 or 2.
        pictures: training pictures, a multiple of 1,000 (one shard each).
        limit: evaluation prompts per category, and held-out pictures to ask about.
        changes: ``key=value`` for both Show-o trainings.
    """
    train, encoded = places.shards("train", pictures // 1000), places.data / "encoded"
    yield Stage(
        "draw the world", [_tool("mini-data", str(places.data), "--pictures", str(pictures))]
    )
    text_tokenizer = _tool(
        *("text-tokenizer", "--out", f"{places.data}/text_tokenizer"),
        *("--size", str(TEXT_TOKENS), "--texts", train, places.shards("text", 4)),
        *("--conversations", train),
    )
    yield Stage("text tokenizer", [text_tokenizer])
    tokenizer = f"{places.runs}/tokenizer"
    settings = [f"config={CONFIGS}/tokenizer.yaml", f"experiment.output_dir={tokenizer}"]
    yield Stage("image tokenizer", [_launched(ranks, "showo_dist.tokenizer", *settings)])
    encode = _torchrun(
        *(ranks, "showo_dist.cli", "encode", train, "--out", str(encoded)),
        *("--tokenizer", f"{tokenizer}/final", "--condition-scale", "2"),
    )
    yield Stage("encode", [encode])
    finished = {
        name: f"{places.runs}/{name}/checkpoint-{_steps(name, changes):06d}"
        for name in ("pretrain", "reca")
    }
    yield Stage("pre-training", [_train(ranks, "pretrain", places, changes)])
    start = f"experiment.init_from={finished['pretrain']}"
    yield Stage("RecA", [_train(ranks, "reca", places, [start, *changes])])
    evaluations = [_evaluate(places, name, path, limit) for name, path in finished.items()]
    yield Stage("evaluation", evaluations)
    report = _tool("report", str(places.runs), "--out", f"{places.runs}/report.md")
    yield Stage("report", [report])


def _steps(config: str, changes: list[str]) -> int:
    from showo_dist.config import TrainConfig, load

    arguments = [f"config={CONFIGS}/{config}.yaml", *changes]
    return load(arguments, TrainConfig, check=False).training.max_train_steps


class Story:
    """Runs stages and remembers the finished ones.

    Args:
        record: JSON file of the finished stages: name to command lines and seconds.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.done: dict[str, dict] = json.loads(record.read_text()) if record.is_file() else {}

    def run(self, stage: Stage) -> None:
        """Run a stage unless it was finished with the same commands and config files.

        Raises:
            RuntimeError: a command of it failed.
        """
        lines = [shlex.join(command) for command in stage.commands]
        made_by = {"commands": lines, "configs": _digest(lines)}
        if made_by.items() <= self.done.get(stage.name, {}).items():
            print(f"== {stage.name}: done before", flush=True)
            return
        print(f"== {stage.name}", flush=True)
        start = time.perf_counter()
        _run_side_by_side(stage)
        seconds = time.perf_counter() - start
        print(f"== {stage.name}: {seconds:.0f} s", flush=True)
        self.done[stage.name] = {**made_by, "seconds": round(seconds, 1)}
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.record.write_text(json.dumps(self.done, indent=1) + "\n")


def _digest(lines: list[str]) -> str:
    """Of the config files, for stages that read one: a changed config is another stage."""
    if not any("config=" in line for line in lines):
        return ""
    contents = b"".join(path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml")))
    return hashlib.sha256(contents).hexdigest()


def _threads(processes: int) -> dict[str, str]:
    """An environment in which side-by-side processes share the cores evenly."""
    cores = len(os.sched_getaffinity(0))
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes))}


def _run_side_by_side(stage: Stage) -> None:
    alone = len(stage.commands) == 1
    environment = dict(os.environ) if alone else _threads(len(stage.commands))
    running = [subprocess.Popen(command, env=environment) for command in stage.commands]
    codes = [process.wait() for process in running]
    for command, code in zip(stage.commands, codes, strict=True):
        if code:
            raise RuntimeError(f"{stage.name}: exit code {code} of {shlex.join(command)}")


def main(argv: list[str]) -> int:
    """``showo-dist mini [--data DIR] [--runs DIR] [--ranks N] [--pictures N] [key=value …]``."""
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(prog="showo-dist mini", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/mini"), help="default %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"), help="default %(default)s")
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=min(2, gpus) if gpus else 2)
    parser.add_argument("--pictures", type=int, default=10_000, help="default %(default)s")
    parser.add_argument("--limit", type=int, default=100, help="of the evaluation (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="for the Show-o trainings")
    arguments = parser.parse_args(argv)
    if arguments.pictures < 1000 or arguments.pictures % 1000:
        raise ValueError(f"--pictures {arguments.pictures}: expected a multiple of 1000")
    if not CONFIGS.is_dir():
        raise ValueError(f"{CONFIGS}: no such folder; run this where the project's configs are")
    story = Story(arguments.runs / "stages.json")
    places = Places(arguments.data, arguments.runs)
    start = time.perf_counter()
    try:
        for stage in stages(
            places, arguments.ranks, arguments.pictures, arguments.limit, arguments.changes
        ):
            story.run(stage)
    except RuntimeError as error:
        print(f"showo-dist mini: {error}", file=sys.stderr)
        return 1
    minutes = (time.perf_counter() - start) / 60
    print(
        f"The report is {arguments.runs}/report.md (and report.html), after {minutes:.1f} minutes."
    )
    return 0
