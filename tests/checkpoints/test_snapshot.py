"""Training goes on while its state is copied, but does not change it."""

import threading

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from showo_dist.checkpoint.slices import KINDS, Piece, TensorIndex, even_share
from showo_dist.checkpoint.snapshot import Snapshot
from showo_dist.training.torch_engine import TorchEngine


def _piece(name: str, size: int, start: int = 0, whole: int | None = None) -> Piece:
    return Piece("weight", name, (whole or size,), start, torch.arange(float(size)) + start)


def test_an_update_waits_for_the_copy() -> None:
    snapshot, piece = Snapshot(), _piece("a", 8)
    snapshot.before_update()  # nothing to wait for
    snapshot.begin([piece])
    update = threading.Thread(target=snapshot.before_update)
    update.start()
    update.join(0.2)
    assert update.is_alive()
    copy = snapshot.take()[0]
    update.join(10)
    assert not update.is_alive()
    piece.values_N.zero_()
    assert torch.equal(copy.values_N, torch.arange(8.0))


def test_the_memory_is_used_again() -> None:
    snapshot, places = Snapshot(), set()
    for _ in range(3):
        snapshot.begin([_piece("a", 6), _piece("b", 3)])
        places.add(snapshot.take()[0].values_N.data_ptr())
    assert len(places) == 1


def test_the_optimizer_step_asks_first() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    engine = TorchEngine(model, optimizer, schedule, micro_steps=2, max_norm=None, bf16=False)
    asked: list[torch.Tensor] = []
    engine.before_update(lambda: asked.append(model.weight.detach().clone()))
    before = model.weight.detach().clone()
    for _ in range(2):
        engine.backward(engine(torch.ones(1, 2)).sum())
        engine.step()
    assert len(asked) == 1 and torch.equal(asked[0], before)
    assert not torch.equal(model.weight, before)


def test_replicated_state_is_shared_out_evenly() -> None:
    pieces = [_piece(name, size) for name, size in zip("abcd", (5, 1, 11, 2), strict=True)]
    for world in (1, 2, 3, 5, 19, 30):
        shares = [even_share(pieces, rank, world) for rank in range(world)]
        sizes = [sum(len(piece.values_N) for piece in share) for share in shares]
        assert sum(sizes) == 19 and max(sizes) - min(sizes) <= 1
        index = TensorIndex.of(piece.placed_in("f") for share in shares for piece in share)
        assert set(index.tensors) == set(KINDS) and list(index.tensors["weight"]) == list("abcd")
        for piece in (piece for share in shares for piece in share):
            wanted = torch.arange(float(piece.start), float(piece.stop))
            assert torch.equal(piece.values_N, wanted)
