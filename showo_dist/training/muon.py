"""Muon for the matrices of the blocks and the projector, AdamW for everything else, in one optimizer.

Muon's update needs whole matrices, but ZeRO 1 to 3 keeps flat partitions of them. Momentum and weights are
updated where they are; only the parts of a direction travel: to the rank that orthogonalises it, and back,
in the format of the iteration, so nothing is lost.

The iteration runs in the number format of the forward pass. torch.optim.Muon always takes bf16, where one
rounded bit of a gradient changes the update by several per cent: the curve of an fp32 run would depend on
the number of ranks.

DeepSpeed 0.19.8 has a Muon of its own, which is not used: it measures and clips the gradient's norm after
the orthogonalisation, orthogonalises with another iteration in another format, and updates by AdamW without
a word where parameters were made under ``zero.Init``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from showo_dist.models.backbone import block_of

MOMENTUM = "momentum_buffer"  # torch.optim.Muon's name
Shape = tuple[int, ...]
_TOGETHER = 8  # matrices that are iterated at once; all of a large model's would take its memory


def by_muon(name: str, shape: Shape) -> bool:
    """Whether a parameter is a matrix of a block or of the projector; embeddings and head are not."""
    return len(shape) == 2 and (block_of(name) is not None or "mm_projector." in name)


def first_update_line(model: nn.Module, done: int) -> str:
    """The line for the log about the first update.

    Args:
        model: of the run, sharded or not.
        done: matrices that the optimizer orthogonalised in that update.
    """
    shapes = {
        name: tuple(getattr(p, "ds_shape", p.shape))
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    wanted = sum(by_muon(name, shape) for name, shape in shapes.items())
    # A matrix that a wrapper hid from Muon would be trained by nothing, or by AdamW at Muon's rate.
    assert done == wanted, (
        f"optimizer.name = muon: the first update orthogonalised {done} of {wanted} matrices"
    )
    return f"Muon orthogonalised {done} matrices in the first update"


def orthogonalisation_flops(shapes: Iterable[Shape], iterations: int) -> float:
    """FLOPs of orthogonalising matrices of these shapes once."""
    sides = ((min(shape), max(shape)) for shape in shapes)
    # Per iteration: the Gram matrix, its square, and its product with the matrix.
    return sum(iterations * (4.0 * short**2 * long + 2.0 * short**3) for short, long in sides)


@dataclass(frozen=True)
class Share:
    """The part of a matrix that a flat partition holds.

    Attributes:
        shape: of the whole matrix.
        values_N: the elements of the partition, a view; empty if it holds none of them.
        offset: index of the first element in the partition.
        sizes: elements on every rank; ranks hold them in the order of ranks.
    """

    shape: Shape
    values_N: Tensor
    offset: int
    sizes: tuple[int, ...]

    def of(self, partition_N: Tensor) -> Tensor:
        """The same elements of another tensor that is laid out like the partition."""
        return partition_N[self.offset : self.offset + len(self.values_N)]


class Muon(AdamW):
    """AdamW, with the groups marked ``muon`` updated by Muon.

    Args:
        groups: parameter groups; those with a true ``muon`` also have ``momentum``, ``ns_steps`` and
            ``adjust_lr``.
        device: where matrices are put together, also when the partitions are in host memory.
        dtype: in which they are orthogonalised and sent.
        settings: of AdamW.

    Attributes:
        shares: for each flat partition of Muon's matrices, the matrices in it: the same list in the same
            order on all ranks. Tensors without an entry are whole matrices.
        orthogonalised: matrices orthogonalised since the optimizer was made, over all ranks.
    """

    def __init__(
        self, groups: list[dict], device: torch.device, dtype: torch.dtype, **settings: Any
    ) -> None:
        super().__init__(groups, **settings)
        self.device, self.dtype = device, dtype
        self.shares: dict[Tensor, list[Share]] = {}
        self.orthogonalised = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._update([t for t in group["params"] if t.grad is not None], group)
        # DeepSpeed calls step with one group at a time, and changes the list itself in the same way.
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _update(self, tensors: list[Tensor], group: dict[str, Any]) -> None:
        whole_shares: list[Share] = []
        whole_directions: list[Tensor] = []
        for tensor in tensors:
            shares, directions = self._directions(tensor, group)
            if tensor not in self.shares or dist.get_world_size() == 1:
                whole_shares += shares
                whole_directions += directions
            else:
                self._apply_together(shares, directions, group)
            self.orthogonalised += len(shares)
        self._apply_alone(whole_shares, whole_directions, group)

    def _directions(
        self, tensor: Tensor, group: dict[str, Any]
    ) -> tuple[Sequence[Share], list[Tensor]]:
        """Update the momentum and decay the weights; Nesterov's directions of this rank's parts."""
        gradient, state, rate = tensor.grad, self.state[tensor], group["lr"]
        assert gradient is not None
        state["step"] += 1
        momentum = state[MOMENTUM].lerp_(gradient, 1 - group["momentum"])
        tensor.mul_(1 - rate * group["weight_decay"])
        shares = self.shares.get(tensor) or [
            Share(tuple(tensor.shape), tensor.view(-1), 0, (tensor.numel(),))
        ]
        gradient_N, momentum_N = gradient.view(-1), momentum.view(-1)
        directions = [
            share.of(gradient_N).lerp(share.of(momentum_N), group["momentum"]).to(self.dtype)
            for share in shares
        ]
        return shares, directions

    def _place(self, tensor: Tensor) -> torch.device:
        """Where to orthogonalise: on the run's device if the tensor is in host memory, else where it is."""
        return self.device if tensor.device.type == "cpu" else tensor.device

    def _apply_alone(
        self, shares: Sequence[Share], directions: Sequence[Tensor], group: dict[str, Any]
    ) -> None:
        matrices = [
            direction_N.view(share.shape).to(self._place(direction_N))
            for share, direction_N in zip(shares, directions, strict=True)
        ]
        for k, update in orthogonal(matrices, group["ns_steps"]):
            _subtract(shares[k], update.view(-1), group)

    def _apply_together(
        self, shares: Sequence[Share], directions: Sequence[Tensor], group: dict[str, Any]
    ) -> None:
        """Rank r orthogonalises matrices r, r + world, …; two messages bring their parts there and back."""
        rank, world = dist.get_rank(), dist.get_world_size()
        owned = [range(owner, len(shares), world) for owner in range(world)]
        by_owner = [k for matrices in owned for k in matrices]
        own_sizes = [sum(shares[k].sizes[rank] for k in matrices) for matrices in owned]
        # Parts of this rank's matrices: on every rank, in the order of matrices.
        part_sizes = [[shares[k].sizes[source] for k in owned[rank]] for source in range(world)]
        sizes = [sum(parts) for parts in part_sizes]

        directions_N = torch.cat([directions[k] for k in by_owner]).to(self._place(directions[0]))
        received = _exchange(directions_N, own_sizes, sizes).split(sizes)
        parts = [part_N.split(each) for part_N, each in zip(received, part_sizes, strict=True)]
        matrices = [
            torch.cat([part[n] for part in parts]).view(shares[k].shape)
            for n, k in enumerate(owned[rank])
        ]
        found = dict(orthogonal(matrices, group["ns_steps"]))
        updates = [found[n].view(-1).split(shares[k].sizes) for n, k in enumerate(owned[rank])]
        sent = [update[target] for target in range(world) for update in updates]
        updates_N = _exchange(torch.cat([directions_N[:0], *sent]), sizes, own_sizes)
        own = updates_N.split([shares[k].sizes[rank] for k in by_owner])
        for k, update_N in zip(by_owner, own, strict=True):
            _subtract(shares[k], update_N, group)


def _exchange(values_N: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send every rank its consecutive part of the values; the parts from all ranks, in their order."""
    result = values_N.new_empty(sum(received))
    dist.all_to_all_single(result, values_N, received, sent)
    return result


def orthogonal(matrices: Sequence[Tensor], iterations: int) -> Iterator[tuple[int, Tensor]]:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, as torch.optim.Muon does it in bf16.

    Matrices of equal sides are iterated together: small ones wait for calls more than for products.

    Args:
        matrices: of any float format, which is that of the results.
        iterations: 5 bring singular values between 0.7 and 1.2.

    Yields:
        The index of a matrix and its result, some matrices at a time.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, matrix in enumerate(matrices):
        alike.setdefault(tuple(sorted(matrix.shape)), []).append(number)
    for numbers in alike.values():
        for first in range(0, len(numbers), _TOGETHER):
            chosen = numbers[first : first + _TOGETHER]
            wide = [m.T if m.size(0) > m.size(1) else m for m in (matrices[k] for k in chosen)]
            found = _iterated(torch.stack([x / x.norm().clamp(min=1e-7) for x in wide]), iterations)
            for number, x in zip(chosen, found, strict=True):
                yield number, (x if x.shape == matrices[number].shape else x.T).contiguous()


def _iterated(x_BRC: Tensor, iterations: int) -> Tensor:
    """The iteration itself, of wide matrices."""
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(iterations):
        gram_BRR = x_BRC @ x_BRC.mT
        polynomial_BRR = torch.baddbmm(gram_BRR, gram_BRR, gram_BRR, beta=b, alpha=c)
        x_BRC = torch.baddbmm(x_BRC, polynomial_BRR, x_BRC, beta=a)
    return x_BRC


def rate_factor(shape: Shape, rule: str) -> float:
    """Factor of the learning rate of a matrix; see ``optimizer.muon.adjust_lr``."""
    rows, columns = shape
    if rule == "match_rms_adamw":
        return 0.2 * sqrt(max(rows, columns))
    return sqrt(max(1.0, rows / columns))


def _subtract(share: Share, update_N: Tensor, group: dict[str, Any]) -> None:
    """Move this rank's part of a matrix along its part of the orthogonalised update."""
    rate = group["lr"] * rate_factor(share.shape, group["adjust_lr"])
    share.values_N.add_(update_N.to(share.values_N.device), alpha=-rate)
