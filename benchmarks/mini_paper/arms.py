"""The runs of the comparison, in order: what each is trained on, and the commands that train and score it.

Every arm begins with the weights of one pre-training, takes as many updates as the others, and reads the
same skewed images with sparse captions. The CLIP variants have a start of their own: the same pre-training
after some updates that teach it to read CLIP features instead of codes.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from showo_dist.mini import CONFIGS, TEXT_TOKENS
from showo_dist.recipe import Stage, launched, tool

RANKS = 2
SKEW = 0.6
# Sides of the images of the CLIP encoders, whose patches have 8×8 pixels, and the width of their features.
SIZES = (64, 32)
PATCH = 8
WIDTH = 128
CONTROL = "no-recon"
HERE = Path(__file__).parent
SHARD = 1_000


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the comparison is; times in seconds are for the first estimate of the time left alone.

    Attributes:
        images: in each data set, a multiple of 1,000.
        tokenizer_steps, clip_steps, pretrain_steps, adapt_steps, steps: of trainings; the last: of an arm.
        seeds: of every main arm.
        ablation_seeds: of every ablation.
        rounds: per generated image.
        limit: most prompts of a category, and held-out images to ask about.
        reconstructed: held-out images to reconstruct.
    """

    images: int = 10_000
    tokenizer_steps: int = 2_000
    clip_steps: int = 400
    pretrain_steps: int = 2_200
    adapt_steps: int = 400
    steps: int = 150
    seeds: int = 5
    ablation_seeds: int = 3
    rounds: int = 24
    limit: int = 100
    reconstructed: int = 64


QUICK = Scale(
    images=2_000,
    tokenizer_steps=300,
    clip_steps=60,
    pretrain_steps=200,
    adapt_steps=40,
    steps=40,
    seeds=1,
    ablation_seeds=0,
    rounds=12,
    limit=8,
    reconstructed=16,
)


@dataclass(frozen=True)
class Arm:
    """One way to train on.

    Attributes:
        name: of its runs.
        title: in tables.
        start: pre-training it begins with.
        changes: of ``configs/mini/reca.yaml``; None: it is not trained.
        ablation: whether it has the seeds of ablations.
    """

    name: str
    title: str
    start: str = "pretrain"
    changes: tuple[str, ...] | None = ()
    ablation: bool = False

    @property
    def clip(self) -> int:
        """Side of the CLIP encoder's images; 0 without one."""
        return int(self.start.rpartition("-")[2]) if self.start.startswith("adapt") else 0


# In 100 steps on the ordinary mini world, 1e-5 leaves the loss of reconstruction where it is (dev/LOG.md).
RATE = "optimizer.params.learning_rate=1e-3"
_NO_RECON = ("training.recon_coeff=0",)
_SUPERVISED = ("training.recon_coeff=0", "training.batch_size_t2i=10")
# As published for 512 px: a code's cell keeps 2×2 of its pixels.
_BLUR = ("training.down_scale=4", "training.resize_back=true")
ARMS = (
    Arm("before", "before", changes=None),
    Arm("reca", "RecA, VQ"),
    Arm("reca-blur", "RecA, VQ blur", changes=_BLUR),
    Arm(CONTROL, "without reconstruction", changes=_NO_RECON),
    Arm("supervised", "complete captions", changes=_SUPERVISED),
    Arm("recon-10", "reconstruction 10 % from step 0", "pretrain-recon", None),
    *(
        arm
        for size in SIZES
        for arm in (
            Arm(f"before-clip-{size}", f"before, CLIP {size} px", f"adapt-{size}", None),
            Arm(f"reca-clip-{size}", f"RecA, CLIP {size} px", f"adapt-{size}"),
        )
    ),
    Arm("copy", "condition at full resolution", changes=("training.down_scale=1",), ablation=True),
    Arm(
        "rate-1e-4",
        "a tenth of the learning rate",
        changes=("optimizer.params.learning_rate=1e-4",),
        ablation=True,
    ),
    Arm("one-prompt", "one request for a description", ablation=True),
    Arm(
        "recon-0.25", "reconstruction × 0.25", changes=("training.recon_coeff=0.25",), ablation=True
    ),
    Arm("recon-4", "reconstruction × 4", changes=("training.recon_coeff=4",), ablation=True),
)


# A quick comparison has one arm of each kind.
QUICK_ARMS = tuple(
    arm
    for arm in ARMS
    if arm.name in ("before", "reca", CONTROL, "supervised", "before-clip-32", "reca-clip-32")
)


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
    """

    out: Path
    scale: Scale
    arms: tuple[Arm, ...] = field(default=ARMS)

    def steps(self) -> Iterator[Step]:
        """All steps in order: seeds outside, so that what exists when it is stopped has all arms."""
        yield from self.shared_steps()
        yield from self._clips()
        yield from self._starts()
        for seed in range(self.scale.seeds):
            for arm in self.arms:
                if seed < (self.scale.ablation_seeds if arm.ablation else self.scale.seeds):
                    yield from self._run(arm, seed)

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
        recon = ["training.batch_size_recon=3", "dataset.recon_type=mid", self._flow("recon")]
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

    def _run(self, arm: Arm, seed: int) -> Iterator[Step]:
        name, scale = f"{arm.name}-{seed}", self.scale
        trained = arm.start
        if arm.changes is not None:
            trained = name
            changes = [
                f"experiment.init_from={self._checkpoint(arm.start)}",
                f"training.seed={seed}",
                self._flow("recon"),
                *(self._clip(arm.clip) if arm.clip else ()),
                RATE,
                *arm.changes,
            ]
            if arm.name == "one-prompt":
                file = f"{HERE}/one_prompt.txt"
                changes.append(f"dataset.params.description_prompts_file={file}")
            yield self._train(name, "reca", scale.steps, changes)
        checkpoint, folder = self._checkpoint(trained), f"{self.out}/evaluations/{name}"
        asked = ["--prompts", f"{self.out}/prompts.jsonl", "--limit", str(scale.limit)]
        shards = ["--shards", self.shards("sparse", "val"), "--seed", str(seed)]
        evaluate = self._torchrun(
            *("showo_dist.cli", "evaluate", "--framework", "mini", checkpoint),
            *(*asked, *shards, "--steps", str(scale.rounds), "--out", folder),
        )
        generated = min(300, 11 * scale.limit)
        yield Step(Stage(f"{name}: evaluate", [evaluate]), 15 + 0.006 * scale.rounds * generated)
        score = [*self._own("score"), checkpoint, "--evaluation", folder]
        score += [*asked, *shards, "--images", str(scale.reconstructed), "--arm", arm.name]
        score += ["--out", str(self.result(arm, seed))]
        yield Step(Stage(f"{name}: score", [score]), 8 + 0.1 * scale.reconstructed)

    def _train(self, name: str, config: str, steps: int, changes: list[str]) -> Step:
        captions = "complete" if name.startswith("supervised") else "sparse"
        val = self.shards("sparse", "val")
        settings = [
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
        seconds = 20 + steps * (0.35 if config == "pretrain" else 0.3)
        return Step(Stage(f"{name}: train", [self._torchrun(*settings, *changes)]), seconds)

    def _flow(self, flow: str, captions: str = "sparse") -> str:
        return (
            f"dataset.params.train_{flow}_shards_path_or_url={self.shards(f'encoded-{captions}')}"
        )

    def _clip(self, size: int) -> list[str]:
        return [
            "model.showo.w_clip_vit=true",
            # No system prompt as in the tuning phase: with this tokenizer it leaves no room for answers.
            "dataset.und_type=llava_pretrain",
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
        }.get(name, scale.steps)
        return f"{self.out}/runs/{name}/checkpoint-{steps:06d}"

    def _own(self, part: str) -> list[str]:
        return [sys.executable, str(HERE.with_suffix(".py")), part]

    def _torchrun(self, module: str, *arguments: str) -> list[str]:
        start = ["torchrun", "--standalone", "--nproc-per-node", str(RANKS), "-m", module]
        return launched(start, *arguments)
