"""How much useful work a step did, and how fast this device could have done it."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from showo_dist.models.showo import ShowO
from showo_dist.sequences import PackedBatch

# Dense bf16 peaks in FLOP/s from the makers' data sheets, without sparsity; the first name found counts.
GPU_PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
}


@dataclass(frozen=True)
class Work:
    """Matrix work of one training step of a batch: forward and twice that for backward.

    Attributes:
        block_parameters: matrix parameters of all blocks and the projector.
        head_parameters: matrix parameters of the head.
        attention_width: layers times width: each visible pair costs 12 times this.
    """

    block_parameters: int
    head_parameters: int
    attention_width: int

    @classmethod
    def of(cls, model: ShowO) -> "Work":
        matrices = {n: p.numel() for n, p in model.named_parameters() if p.ndim == 2}
        head = matrices["showo.lm_head.weight"]
        table = matrices["showo.model.embed_tokens.weight"]
        width = model.config.num_hidden_layers * model.config.hidden_size
        return cls(sum(matrices.values()) - head - table, head, width)

    def flops(self, batch: PackedBatch) -> float:
        """FLOP needed: tokens through the blocks, labelled rows through the head, visible pairs only."""
        labels = int((batch.label_weights_P > 0).sum())
        matrices = 6 * (self.block_parameters * batch.real_tokens + self.head_parameters * labels)
        return matrices + 12 * self.attention_width * batch.visibility.pairs()


def _timed_product(a: Tensor, b: Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s that MFU is measured against: a known GPU's data sheet, else a large product's, timed here.

    On a CPU this is the best of a few products with the threads this rank may use, taken while the other
    ranks of the machine do the same.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in GPU_PEAKS.items():
            if known in name:
                return peak
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / min(_timed_product(a, a) for _ in range(5))
