"""Costs, parts and fusion: the ledger of small modules that can be counted by hand."""

import torch
from torch import nn

from showo_dist.plan.costs import Cost
from showo_dist.plan.fusion import schedule_of
from showo_dist.plan.ledger import Ledger
from showo_dist.plan.roofline import GPU_RATES, on_curve

ROWS, WIDTH = 512, 256


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.gelu(self.mlp(self.norm(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            x = block(x)
        return x


def ledger_of(compiled: bool) -> Ledger:
    with torch.device("meta"):
        model, x = Model(), torch.empty(ROWS, WIDTH)
    if compiled:
        for block in model.layers:
            block.compile()
    ledger = Ledger(torch.device("cuda"))
    with ledger, ledger.following(model), torch.compiler.set_stance("force_eager"):
        loss = model(x).sum()
        ledger.enter("backward")
        loss.backward()
    ledger.fuse()
    return ledger


def costs(ledger: Ledger, part: str) -> list[Cost]:
    return [entry.cost for entry in ledger.entries if entry.part == part]


def test_flops_bytes_and_parts_by_hand() -> None:
    ledger = ledger_of(compiled=False)
    products = [cost for cost in costs(ledger, "MLP") if cost.kind == "product"]
    # forward and two products in backward, per block; the first input needs no gradient, its norm does
    assert sum(cost.flops for cost in products) == 2 * 3 * 2 * ROWS * WIDTH**2
    first = products[0]
    assert first.read == 4 * (WIDTH + ROWS * WIDTH + WIDTH**2)
    assert first.written == 4 * ROWS * WIDTH
    # gelu and the sum belong to the block itself, forward and backward
    assert {entry.phase for entry in ledger.entries if entry.part == "residuals"} == {
        "forward",
        "backward",
    }


def test_fusion_shows_in_kernels_and_bytes() -> None:
    plain, fused = ledger_of(compiled=False), ledger_of(compiled=True)

    def products(ledger: Ledger) -> list[Cost]:
        return [e.cost for e in ledger.entries if e.cost.kind == "product"]

    assert products(plain) == products(fused)
    assert costs(fused, "compiled blocks") and not costs(fused, "residuals")
    before, after = (sum(e.cost.bytes for e in x.entries) for x in (plain, fused))
    assert after < before
    # In backward, long sums are two kernels each.
    before, after = (
        sum(e.cost.kernels for e in x.entries if e.phase == "forward") for x in (plain, fused)
    )
    assert after < before


def test_a_schedule_is_inductors_own() -> None:
    with torch.device("meta"):
        x = torch.empty(ROWS, WIDTH, requires_grad=True)
        found = schedule_of(nn.Sequential(nn.GELU(), nn.Tanh()), (x,), {})
    size = 4 * ROWS * WIDTH
    assert [(c.read, c.written) for c in found.forward] == [(size, size)]
    assert len(found.backward) == 1


def test_a_gpus_schedule_splits_long_sums() -> None:
    """A CPU sums over many rows in one loop; a GPU in two kernels, the first on many multiprocessors."""
    with torch.device("meta"):
        x = torch.empty(2**16, 64, requires_grad=True)

    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp().sum(0)

    found = {device: schedule_of(Sum(), (x,), {}, device).forward for device in ("cpu", "cuda:0")}
    assert len(found["cpu"]) == 1 and len(found["cuda:0"]) == 2
    assert found["cuda:0"][0].read == found["cpu"][0].read == 4 * x.numel()
    assert 0 < found["cuda:0"][1].read < 0.1 * found["cuda:0"][0].read


def test_roofline() -> None:
    assert on_curve({1.0: 10.0, 100.0: 1000.0}, 10.0) == 100.0
    assert on_curve({1.0: 10.0, 100.0: 1000.0}, 1e9) == 1000.0
    rates = GPU_RATES["h200"]
    assert rates.seconds(Cost("pass", read=8)) == rates.launch_s
    moved = Cost("pass", read=10**9, written=10**9)
    assert rates.seconds(moved) == 2e9 / rates.passes["pass"][1.0]
    narrow = Cost("product", 1e12, dtype=torch.bfloat16, least=64)
    wide = Cost("product", 1e12, dtype=torch.bfloat16, least=2048)
    assert rates.seconds(narrow) > 2 * rates.seconds(wide)
