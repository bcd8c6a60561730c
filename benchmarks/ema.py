"""Measure what the averages of the weights (training.ema) add to a training step.

    OMP_NUM_THREADS=1 python benchmarks/ema.py [--size mini] [--repeats 9] [--json FILE]

One process of the torch engine, which has all averages; under ZeRO 1 to 3 each rank has its share of them.
Steps with and without averages alternate with the update of the averages alone, whose CPU time relative to
the step's is the finding: the difference of two whole steps is within the noise of a busy machine.
"""

from typing import Any

import torch
from common import Clock, Timing, arguments, interleaved, report
from single_pass import SIZES, Sizes, build_model, make_sequence
from torch.optim.lr_scheduler import LambdaLR

from showo_dist.sequences import pack
from showo_dist.training.step import Stepper
from showo_dist.training.torch_engine import TorchEngine

DECAY = 0.999
# The model of the mini world, and about as many tokens as a rank of `make train` has in a step.
MINI = Sizes(4, 192, 3, 0, 16, image=64, text_tokens=512, codebook=512, clip_tokens=36, budget=64)
ALL_SIZES = {"mini": MINI, "small": SIZES["small"], "show-o": SIZES["show-o"]}


class Loop:
    """Training of a model of one size on one batch of reconstruction samples."""

    def __init__(self, sizes: Sizes, device: torch.device, bf16: bool, decay: float | None) -> None:
        model = build_model(sizes, device, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        self.engine = TorchEngine(
            *(model, optimizer, LambdaLR(optimizer, lambda step: 1.0)),
            micro_steps=1,
            max_norm=1.0,
            bf16=bf16,
            ema_decay=decay,
        )
        self.stepper = Stepper(self.engine, {"recon": 1.0}, "global", device)
        sequences = [make_sequence("recon", i, sizes) for i in range(sizes.recon)]
        pad, width = sizes.vocabulary.pad, model.feature_width
        batch = pack(sequences, pad_id=pad, feature_width=width, multiple_of=model.token_multiple)
        self.window = [batch.to(device)]

    def __call__(self, clock: Clock) -> None:
        clock("step", lambda: self.stepper(self.window))

    def averages_alone(self, clock: Clock) -> None:
        """The part of the step that the averages add."""
        assert self.engine.ema is not None
        clock("step", self.engine.ema.update)


def _row(side: str, timing: Timing) -> dict[str, Any]:
    return {"side": side, "CPU ms": timing.cpu_s * 1e3, "elapsed ms": timing.wall_s * 1e3}


def main() -> None:
    options = arguments(__doc__, list(ALL_SIZES), repeats=9)
    device, sizes = torch.device(options.device), ALL_SIZES[options.size]
    bf16 = options.dtype == "bf16" or (options.dtype == "auto" and device.type == "cuda")
    without, averaging = (Loop(sizes, device, bf16, decay) for decay in (None, DECAY))
    sides = {
        "without averages": without,
        "with averages": averaging,
        "averages alone": averaging.averages_alone,
    }
    found = {
        name: stages["step"] for name, stages in interleaved(sides, device, options.repeats).items()
    }
    rows = [_row(name, timing) for name, timing in found.items()]
    time = "wall_s" if device.type == "cuda" else "cpu_s"
    step, whole, alone = (getattr(timing, time) for timing in found.values())
    findings = {
        "averages alone / step without": alone / step,
        "step with / step without": whole / step,
    }
    parameters = sum(p.numel() for p in without.engine.module.parameters())
    settings = {"size": options.size, "parameters": parameters, "repeats": options.repeats}
    report("averages of the weights", rows, findings, {**settings, "bf16": bf16}, options)


if __name__ == "__main__":
    main()
