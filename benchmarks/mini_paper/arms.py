"""What is compared: the arms, and how large the comparison is.

Every arm begins with the weights of one pre-training, takes as many updates as the others, and reads the
same skewed images with sparse captions. The CLIP variants have a start of their own: the same pre-training
after some updates that teach it to read CLIP features instead of codes.
"""

from dataclasses import dataclass
from pathlib import Path

# Sides of the images of the CLIP encoders, whose patches have 8×8 pixels, and the width of their features.
SIZES = (64, 32)
PATCH = 8
WIDTH = 128
CONTROL = "no-recon"
HERE = Path(__file__).parent


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
    pretrain_steps: int = 1_600
    adapt_steps: int = 400
    steps: int = 150
    seeds: int = 5
    ablation_seeds: int = 3
    rounds: int = 16
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
        captions: of its text-to-image samples.
        ablation: whether it has the seeds of ablations, and its place in their table.
        compared_with: name of the arm that differs in what is studied alone; empty: by its kind.
    """

    name: str
    title: str
    start: str = "pretrain"
    changes: tuple[str, ...] | None = ()
    captions: str = "sparse"
    ablation: bool = False
    compared_with: str = ""

    @property
    def control(self) -> str:
        """The arm that this one is compared with: without reconstruction, from the same start."""
        return self.compared_with or (f"{CONTROL}-clip-{self.clip}" if self.clip else CONTROL)

    @property
    def clip(self) -> int:
        """Side of the CLIP encoder's images; 0 without one."""
        return int(self.start.rpartition("-")[2]) if self.start.startswith("adapt") else 0


# In 100 steps on the ordinary mini world, 1e-5 leaves the loss of reconstruction where it is (dev/LOG.md).
RATE = "optimizer.params.learning_rate=1e-3"
_LOW_RATE = "optimizer.params.learning_rate=1e-4"
_NO_RECON = ("training.recon_coeff=0",)
_BESIDE = "training.batch_size_t2i=20"
_TEXT_TO_IMAGE = (*_NO_RECON, _BESIDE)
_ONE_PROMPT = (f"dataset.params.description_prompts_file={HERE}/one_prompt.txt",)
# As published for 512 px: a code's cell keeps 2×2 of its pixels.
_BLUR = ("training.down_scale=4", "training.resize_back=true")
ARMS = (
    Arm("before", "before", changes=None),
    Arm("reca", "RecA, VQ"),
    Arm("reca-blur", "RecA, VQ blur", changes=_BLUR),
    Arm(CONTROL, "without reconstruction", changes=_NO_RECON),
    Arm("reca-t2i", "RecA, VQ, beside sparse captions", changes=(_BESIDE,), compared_with="sparse"),
    Arm("sparse", "sparse captions", changes=_TEXT_TO_IMAGE),
    Arm(
        "supervised",
        "complete captions",
        changes=_TEXT_TO_IMAGE,
        captions="complete",
        compared_with="sparse",
    ),
    Arm("recon-10", "reconstruction 10 % from step 0", "pretrain-recon", None),
    *(
        arm
        for size in SIZES
        for arm in (
            Arm(f"before-clip-{size}", f"before, CLIP {size} px", f"adapt-{size}", None),
            Arm(f"reca-clip-{size}", f"RecA, CLIP {size} px", f"adapt-{size}"),
            Arm(
                f"{CONTROL}-clip-{size}",
                f"without reconstruction, CLIP {size} px",
                f"adapt-{size}",
                _NO_RECON,
            ),
        )
    ),
    Arm("copy", "condition at full resolution", changes=("training.down_scale=1",), ablation=True),
    Arm("rate-1e-4", "a tenth of the learning rate", changes=(_LOW_RATE,), ablation=True),
    Arm(
        "rate-1e-4-clip-64",
        "CLIP 64 px, a tenth of the learning rate",
        "adapt-64",
        (_LOW_RATE,),
        ablation=True,
    ),
    *(
        Arm(
            f"{arm}-clip-64",
            f"{title}, CLIP 64 px",
            "adapt-64",
            changes,
            ablation=True,
            compared_with="sparse-clip-64",
        )
        for arm, title, changes in (
            ("reca-t2i", "RecA beside sparse captions", (_BESIDE,)),
            ("sparse", "sparse captions", _TEXT_TO_IMAGE),
        )
    ),
    Arm("one-prompt", "one request for a description", changes=_ONE_PROMPT, ablation=True),
    Arm("recon-4", "reconstruction × 4", changes=("training.recon_coeff=4",), ablation=True),
)


# A quick comparison has one arm of each kind.
QUICK_ARMS = tuple(
    arm
    for arm in ARMS
    if arm.name in ("before", "reca", CONTROL, "supervised", f"{CONTROL}-clip-32", "reca-clip-32")
)
