"""The commands of the comparison, in order: data, encoders, pre-trainings, then the arms and their scores."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mini_paper.arms import ARMS, HERE, PATCH, RATE, SIZES, WIDTH, Arm, Scale
from showo_dist.mini import CONFIGS, TEXT_TOKENS
from showo_dist.recipe import Stage, launched, tool

RANKS = 2
SIDE_BY_SIDE = 2
SKEW = 0.6
SHARD = 1_000


@dataclass(frozen=True)
class Step:
    """A stage, and its seconds on two idle cores for the first estimate of the time left."""

    stage: Stage
    seconds: float


@dataclass(frozen=True)
class Paper:
    """All steps of a comparison.

    Attributes:
        out: folder of data, runs and results.
        scale: how large it is.
        arms: to compare.
        finished: names of runs whose results exist, by any choice of arms.
    """

    out: Path
    scale: Scale
    arms: tuple[Arm, ...] = field(default=ARMS)
    finished: frozenset[str] = frozenset()

    def steps(self) -> Iterator[Step]:
        """All steps in order: seeds outside, so that what exists when it is stopped has all arms."""
        yield from self.shared_steps()
        yield from self._clips()
        yield from self._starts()
        for seed in range(self.scale.seeds):
            ablations = seed < self.scale.ablation_seeds
            arms = [arm for arm in self.arms if ablations or not arm.ablation]
            for trained in (False, True):
                chosen = [arm for arm in arms if (arm.changes is not None) == trained]
                runs = [(a, seed) for a in chosen if f"{a.name}-{seed}" not in self.finished]
                for first in range(0, len(runs), SIDE_BY_SIDE):
                    yield from self._side_by_side(runs[first : first + SIDE_BY_SIDE])

    def shared_steps(self) -> Iterator[Step]:
        """Data, tokenizers and image codes."""
        yield from self._data()
        yield from self._codes()

    def curve_steps(self, count: int) -> Iterator[Step]:
        """Pre-trainings that differ in their seed, 1 to ``count``."""
        for seed in range(1, count + 1):
            changes = [f"training.seed={seed}"]
            yield self._train(f"curve-{seed}", "pretrain", self.scale.pretrain_steps, changes)

    @property
    def _used(self) -> set[str]:
        """The pre-trainings that the arms begin with, and the one that all others begin with."""
        return {"pretrain", *(arm.start for arm in self.arms)}

    @property
    def _sizes(self) -> list[int]:
        return [size for size in SIZES if f"adapt-{size}" in self._used]

    def result(self, arm: Arm, seed: int) -> Path:
        """The JSON file with the result of a run."""
        return self.out / "results" / f"{arm.name}-{seed}.json"

    def shards(self, folder: str, name: str = "train") -> str:
        count = {"train": self.scale.images // SHARD, "text": 4}.get(name, 1)
        return f"{self.out}/{folder}/{name}-{{000000..{count - 1:06d}}}.tar"

    def _data(self) -> Iterator[Step]:
        images = ["--images", str(self.scale.images), "--skew", str(SKEW)]
        for captions in ("sparse", "complete"):
            command = tool("mini-data", f"{self.out}/{captions}", *images, "--captions", captions)
            yield Step(Stage(f"data, {captions} captions", [command]), 2 + self.scale.images / 700)
        texts = [self.shards("sparse"), self.shards("complete"), self.shards("sparse", "text")]
        tokenizer = tool(
            *("text-tokenizer", "--out", f"{self.out}/text_tokenizer", "--size", str(TEXT_TOKENS)),
            *("--texts", *texts, "--conversations", texts[0]),
        )
        yield Step(Stage("text tokenizer", [tokenizer]), 8)
        prompts = [*self._own("prompts"), "--out", f"{self.out}/prompts.jsonl"]
        yield Step(Stage("prompts", [prompts]), 10)

    def _codes(self) -> Iterator[Step]:
        scale = self.scale
        tokenizer = self._torchrun(
            *("showo_dist.tokenizer", f"config={CONFIGS}/tokenizer.yaml"),
            f"experiment.output_dir={self.out}/tokenizer",
            f"training.max_train_steps={scale.tokenizer_steps}",
            f"dataset.shards={self.shards('sparse', 'patchwork')}",
            f"dataset.validation_shards={self.shards('sparse', 'val')}",
        )
        yield Step(Stage("image tokenizer", [tokenizer]), 20 + 0.075 * scale.tokenizer_steps)
        for captions in ("sparse", "complete"):
            encode = self._torchrun(
                *("showo_dist.cli", "encode", self.shards(captions), "--keep-images"),
                *("--out", f"{self.out}/encoded-{captions}"),
                *("--tokenizer", f"{self.out}/tokenizer/final"),
            )
            seconds = 10 + scale.images / 600
            yield Step(Stage(f"encode, {captions} captions", [encode]), seconds)

    def _clips(self) -> Iterator[Step]:
        scale = self.scale
        for size in self._sizes:
            clip = [*self._own("clip"), "--size", str(size)]
            clip += [
                "--shards",
                self.shards("complete"),
                "--held-out",
                self.shards("sparse", "val"),
            ]
            clip += ["--tokenizer", f"{self.out}/text_tokenizer", "--steps", str(scale.clip_steps)]
            clip += ["--out", f"{self.out}/clip-{size}"]
            yield Step(
                Stage(f"CLIP {size} px", [clip]), 10 + 0.3 * scale.clip_steps * (size / 64) ** 2
            )

    def _starts(self) -> Iterator[Step]:
        scale = self.scale
        # As many updates as an arm has in all, a tenth of the samples being reconstructions.
        recon = ["training.batch_size_recon=3", "dataset.recon_type=journeydb", self._flow("recon")]
        for name, steps, changes in (
            ("pretrain", scale.pretrain_steps, []),
            ("pretrain-recon", scale.pretrain_steps + scale.steps, recon),
        ):
            if name in self._used:
                yield self._train(name, "pretrain", steps, changes)
        for size in self._sizes:
            start = f"experiment.init_from={self._checkpoint('pretrain')}"
            changes = [start, *self._clip(size), "training.batch_size_mmu=10"]
            yield self._train(f"adapt-{size}", "pretrain", scale.adapt_steps, changes)

    def _side_by_side(self, runs: Sequence[tuple[Arm, int]]) -> Iterator[Step]:
        """Train, evaluate and score some runs at the same time, each in one process on a core of its own.

        So small a model loses less in one process than in two that wait for each other.
        """
        names = ", ".join(f"{arm.name}-{seed}" for arm, seed in runs)
        trainings = [self._train_arm(*run) for run in runs if run[0].changes is not None]
        scale = self.scale
        if trainings:
            seconds = 20 + 0.3 * scale.steps * len(trainings)
            yield Step(Stage(f"{names}: train", trainings), seconds)
        generated = min(300, 11 * scale.limit) * len(runs)
        evaluations = [self._evaluate(*run) for run in runs]
        yield Step(Stage(f"{names}: evaluate", evaluations), 15 + 0.006 * scale.rounds * generated)
        scores = [self._score(*run) for run in runs]
        seconds = 8 + 0.1 * scale.reconstructed * len(runs)
        yield Step(Stage(f"{names}: score", scores), seconds)

    def _train_arm(self, arm: Arm, seed: int) -> list[str]:
        settings = self._settings(f"{arm.name}-{seed}", "reca", self.scale.steps, arm.captions)
        changes = [
            f"experiment.init_from={self._checkpoint(arm.start)}",
            f"training.seed={seed}",
            *("training.batch_size_mmu=20", "training.batch_size_recon=20"),
            self._flow("recon"),
            *(self._clip(arm.clip) if arm.clip else ()),
            RATE,
            *(arm.changes or ()),
        ]
        return self._torchrun(*settings, *changes, ranks=1)

    def _asked(self, seed: int) -> list[str]:
        asked = ["--prompts", f"{self.out}/prompts.jsonl", "--limit", str(self.scale.limit)]
        return [*asked, "--shards", self.shards("sparse", "val"), "--seed", str(seed)]

    def _trained(self, arm: Arm, seed: int) -> str:
        if arm.changes is None:
            return self._checkpoint(arm.start)
        return f"{self.out}/runs/{arm.name}-{seed}/checkpoint-{self.scale.steps:06d}"

    def _evaluation(self, arm: Arm, seed: int) -> str:
        return f"{self.out}/evaluations/{arm.name}-{seed}"

    def _evaluate(self, arm: Arm, seed: int) -> list[str]:
        return self._torchrun(
            *("showo_dist.cli", "evaluate", "--framework", "mini", self._trained(arm, seed)),
            *(*self._asked(seed), "--steps", str(self.scale.rounds)),
            *("--out", self._evaluation(arm, seed)),
            ranks=1,
        )

    def _score(self, arm: Arm, seed: int) -> list[str]:
        evaluation = ["--evaluation", self._evaluation(arm, seed)]
        score = [*self._own("score"), self._trained(arm, seed), *evaluation, *self._asked(seed)]
        score += ["--images", str(self.scale.reconstructed), "--arm", arm.name]
        return [*score, "--out", str(self.result(arm, seed))]

    def _train(self, name: str, config: str, steps: int, changes: list[str]) -> Step:
        command = self._torchrun(*self._settings(name, config, steps), *changes)
        return Step(Stage(f"{name}: train", [command]), 20 + 0.35 * steps)

    def _settings(self, name: str, config: str, steps: int, captions: str = "sparse") -> list[str]:
        val = self.shards("sparse", "val")
        return [
            *("showo_dist.train", f"config={CONFIGS}/{config}.yaml", f"experiment.name={name}"),
            f"experiment.output_dir={self.out}/runs/{name}",
            f"training.max_train_steps={steps}",
            f"experiment.eval_every={max(10, steps // 5)}",
            "dataset.params.validation_samples=128",
            f"experiment.save_every={max(steps // 4, 100)}",
            *("experiment.generate_every=0", "experiment.keep_last=1", "wandb.mode=disabled"),
            f"model.vq_model.vq_model_name={self.out}/tokenizer/final",
            f"model.showo.tokenizer_path={self.out}/text_tokenizer",
            *(self._flow("t2i", captions), self._flow("mmu")),
            f"dataset.params.train_lm_shards_path_or_url={self.shards('sparse', 'text')}",
            *(
                f"dataset.params.validation_{f}_shards_path_or_url={val}"
                for f in ("t2i", "mmu", "recon")
            ),
        ]

    def _flow(self, flow: str, captions: str = "sparse") -> str:
        return (
            f"dataset.params.train_{flow}_shards_path_or_url={self.shards(f'encoded-{captions}')}"
        )

    def _clip(self, size: int) -> list[str]:
        return [
            "model.showo.w_clip_vit=true",
            # No system prompt as in the tuning phase: with this tokenizer it leaves no room for answers.
            "dataset.und_type=llava_pretrain",
            "optimizer.trained=all",
            f"model.clip_model_name={self.out}/clip-{size}",
            f"model.showo.clip_dim={WIDTH}",
            f"model.showo.clip_tokens={(size // PATCH) ** 2}",
        ]

    def _checkpoint(self, name: str) -> str:
        scale = self.scale
        steps = {
            "pretrain": scale.pretrain_steps,
            "pretrain-recon": scale.pretrain_steps + scale.steps,
            **{f"adapt-{size}": scale.adapt_steps for size in SIZES},
        }[name]
        return f"{self.out}/runs/{name}/checkpoint-{steps:06d}"

    def _own(self, part: str) -> list[str]:
        return [sys.executable, str(HERE.with_suffix(".py")), part]

    def _torchrun(self, module: str, *arguments: str, ranks: int = RANKS) -> list[str]:
        start = ["torchrun", "--standalone", "--nproc-per-node", str(ranks), "-m", module]
        return launched(start, *arguments)
