"""``showo-dist mini``: the whole pipeline on the mini world in one command, from data to report.

Every stage is one of the project's own commands, in processes of its own. A second call skips the stages that
were finished, and resumes a training stage from its last checkpoint. A finished training whose config has
changed is not trained again: a line names the folder to remove.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from showo_dist.recipe import Stage, StageRunner, launched, tool
from showo_dist.recipe.cli import as_arguments

CONFIGS = Path("configs/mini")
TEXT_TOKENS = 512
# The mini configs' batch sizes are for this many ranks; fewer ranks accumulate instead.
CONFIG_RANKS = 2
# Flows of each training, which get their data from the command line.
FLOWS_OF = {"pretrain": ("t2i", "mmu", "lm"), "reca": ("mmu", "recon")}


@dataclass(frozen=True)
class Places:
    """Folders relative to the working folder, so that reports can be moved.

    Attributes:
        data: shards, prompts and the text tokenizer.
        runs: trainings, evaluations and the report.
        tokenizer: the image tokenizer's run; all backbones share it.
    """

    data: Path
    runs: Path
    tokenizer: Path

    def shards(self, name: str, count: int) -> str:
        return f"{self.data}/{name}-{{000000..{count - 1:06d}}}.tar"


def _launched(ranks: int, module: str, *arguments: str) -> list[str]:
    start = ["deepspeed", "--quiet", "--num_gpus", str(ranks), "--module", module]
    return launched(start, *arguments)


def _torchrun(ranks: int, module: str, *arguments: str) -> list[str]:
    start = ["torchrun", "--standalone", "--nproc-per-node", str(ranks), "-m", module]
    return launched(start, *arguments)


def _train(ranks: int, config: str, places: Places, images: int, changes: list[str]) -> list[str]:
    """A training of Show-o on the data and networks of ``places``, whatever paths the config names."""
    settings = [
        f"config={CONFIGS}/{config}.yaml",
        f"experiment.output_dir={places.runs}/{config}",
        f"model.vq_model.vq_model_name={places.tokenizer}/final",
        f"model.showo.tokenizer_path={places.data}/text_tokenizer",
        # The same global batch, and so the same loss curve, on one rank as on two.
        f"training.gradient_accumulation_steps={CONFIG_RANKS // ranks}",
    ]
    encoded = replace(places, data=places.data / "encoded").shards("train", images // 1000)
    for flow in FLOWS_OF[config]:
        shards = places.shards("text", 4) if flow == "lm" else encoded
        settings.append(f"dataset.params.train_{flow}_shards_path_or_url={shards}")
        if flow != "lm":
            held_out = places.shards("val", 1)
            settings.append(f"dataset.params.validation_{flow}_shards_path_or_url={held_out}")
    return _launched(ranks, "showo_dist.train", *settings, *changes)


def _evaluate(places: Places, run: str, checkpoint: str, limit: int) -> list[str]:
    return tool(
        *("evaluate", "--framework", "mini", checkpoint),
        *("--prompts", f"{places.data}/prompts.jsonl", "--shards", places.shards("val", 1)),
        *("--out", f"{places.runs}/eval-{run}", "--limit", str(limit)),
    )


def common_stages(places: Places, ranks: int, images: int) -> Iterator[Stage]:
    """The stages that all backbones share: data and tokenizers; arguments as of :func:`stages`."""
    train, encoded = places.shards("train", images // 1000), places.data / "encoded"
    yield Stage("data", [tool("mini-data", str(places.data), "--images", str(images))])
    text_tokenizer = tool(
        *("text-tokenizer", "--out", f"{places.data}/text_tokenizer"),
        *("--size", str(TEXT_TOKENS), "--texts", train, places.shards("text", 4)),
        *("--conversations", train),
    )
    yield Stage("text tokenizer", [text_tokenizer])
    settings = [
        *(f"config={CONFIGS}/tokenizer.yaml", f"experiment.output_dir={places.tokenizer}"),
        f"dataset.shards={places.shards('patchwork', images // 1000)}",
        f"dataset.validation_shards={places.shards('val', 1)}",
    ]
    # Not by deepspeed: on one host it passes no signal on, and would leave the ranks behind. torchrun would
    # give each of several ranks one thread.
    cores = max(1, len(os.sched_getaffinity(0)) // ranks)
    threads = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', cores)}"
    train_tokenizer = ["env", threads, *_torchrun(ranks, "showo_dist.tokenizer", *settings)]
    yield Stage("image tokenizer", [train_tokenizer], final=places.tokenizer / "final")
    encode = _torchrun(
        *(ranks, "showo_dist.cli", "encode", train, "--out", str(encoded)),
        *("--tokenizer", f"{places.tokenizer}/final", "--condition-scale", "2"),
    )
    yield Stage("encode", [encode])


def stages(
    places: Places, ranks: int, images: int, limit: int, changes: list[str]
) -> Iterator[Stage]:
    """The stages of one backbone, in order.

    Args:
        places: folders.
        ranks: processes of a training, 1 or 2.
        images: training images, a multiple of 1,000 (one shard each).
        limit: evaluation prompts per category, and held-out images to ask about.
        changes: ``key=value`` for pre-training and RecA.
    """
    final = {
        name: places.runs / name / f"checkpoint-{_steps(name, changes):06d}"
        for name in ("pretrain", "reca")
    }
    pretrain = _train(ranks, "pretrain", places, images, changes)
    yield Stage("pre-training", [pretrain], final=final["pretrain"])
    start = f"experiment.init_from={final['pretrain']}"
    reca = _train(ranks, "reca", places, images, [start, *changes])
    yield Stage("RecA", [reca], final=final["reca"])
    evaluations = [_evaluate(places, name, str(path), limit) for name, path in final.items()]
    yield Stage("evaluation", evaluations)
    report = tool("report", str(places.runs), "--out", f"{places.runs}/report.md")
    yield Stage("report", [report])


def backbone_changes(name: str) -> list[str]:
    """The ``key=value`` changes of ``configs/mini/backbones/NAME.yaml``.

    Raises:
        ValueError: no such file.
    """
    path = CONFIGS / "backbones" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ValueError(f"--backbone {name}: no {path}; there are {known}")
    return as_arguments(yaml.safe_load(path.read_text()))


def _steps(config: str, changes: list[str]) -> int:
    from showo_dist.config import TrainConfig, load

    arguments = [f"config={CONFIGS}/{config}.yaml", *changes]
    return load(arguments, TrainConfig, check=False).training.max_train_steps


def _digest(stage: Stage) -> str:
    """SHA-256 of a training's config and of the image tokenizer that it uses; empty for other stages."""
    if not stage.final:
        return ""
    from showo_dist.config import TrainConfig, load, to_yaml
    from showo_dist.tokenizer.config import TokenizerConfig

    (command,) = stage.commands
    start = next(i for i, word in enumerate(command) if word.startswith("config="))
    kind = TokenizerConfig if "showo_dist.tokenizer" in command else TrainConfig
    config = load(command[start:], kind, check=False)
    digest = hashlib.sha256(to_yaml(config).encode())
    if isinstance(config, TrainConfig):
        codes = Path(config.model.vq_model.vq_model_name) / "model.safetensors"
        if codes.is_file():
            digest.update(codes.read_bytes())
    return digest.hexdigest()


def main(argv: list[str]) -> int:
    """``showo-dist mini [--data DIR] [--runs DIR] [--ranks N] [--images N] [key=value …]``."""
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(prog="showo-dist mini", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/mini"), help="default %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"), help="default %(default)s")
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=min(2, gpus) if gpus else 2)
    parser.add_argument("--images", type=int, default=10_000, help="default %(default)s")
    parser.add_argument("--limit", type=int, default=100, help="of the evaluation (%(default)s)")
    parser.add_argument(
        "--backbone", help="a file of configs/mini/backbones, as qwen3; its runs are in RUNS/NAME"
    )
    parser.add_argument("changes", nargs="*", metavar="key=value", help="for pre-training and RecA")
    arguments = parser.parse_args(argv)
    if arguments.images < 1000 or arguments.images % 1000:
        raise ValueError(f"--images {arguments.images}: expected a multiple of 1000")
    if not CONFIGS.is_dir():
        raise ValueError(f"{CONFIGS}: no such folder; run this where the project's configs are")
    runs = arguments.runs / arguments.backbone if arguments.backbone else arguments.runs
    places = Places(arguments.data, runs, arguments.runs / "tokenizer")
    changes = backbone_changes(arguments.backbone) if arguments.backbone else []
    changes += arguments.changes
    start = time.perf_counter()
    try:
        runner = StageRunner(arguments.runs / "stages.json", _digest)
        for stage in common_stages(places, arguments.ranks, arguments.images):
            runner.run(stage)
        if arguments.backbone:
            runner = StageRunner(runs / "stages.json", _digest)
            runs.mkdir(exist_ok=True)
            if not (runs / "tokenizer").exists():  # for the report
                (runs / "tokenizer").symlink_to(Path("..", "tokenizer"))
        for stage in stages(places, arguments.ranks, arguments.images, arguments.limit, changes):
            runner.run(stage)
    except RuntimeError as error:
        print(f"showo-dist mini: {error}", file=sys.stderr)
        return 1
    minutes = (time.perf_counter() - start) / 60
    print(f"The report is {runs}/report.md (and report.html), after {minutes:.1f} minutes.")
    return 0
