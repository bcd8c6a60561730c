"""A checkpoint of two ranks under one ZeRO stage resumes on any number of ranks under any other."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from showo_dist.checkpoint import CheckpointReader
from tests.checkpoints.group import on_ranks
from tests.checkpoints.jobs import gone_on, undisturbed

RANKS = 2


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks under ZeRO-2, never disturbed."""
    folder = tmp_path_factory.mktemp("elastic") / "run"
    reports = on_ranks(RANKS, undisturbed, folder, 2)
    assert [report["losses"] for report in reports] == [reports[0]["losses"]] * RANKS
    return {**reports[0], "held": [report["held"] for report in reports]}


def assert_same_state(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    for kind, tensors in wanted.items():
        assert list(found[kind]) == list(tensors)
        for name, tensor in tensors.items():
            scale = tensor.abs().max().clamp(min=1e-30)
            error = ((found[kind][name] - tensor).abs().max() / scale).item()
            assert error <= tolerance, (kind, name, error)


def test_the_save_is_of_the_step_it_was_asked_at(first: dict[str, Any]) -> None:
    """Training went on meanwhile."""
    reader = CheckpointReader(first["folder"])
    for kind, tensors in first["state"].items():
        assert set(reader.names(kind)) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(kind, name), tensor), (kind, name)


def test_every_rank_writes_its_own_part_alone(first: dict[str, Any]) -> None:
    total = sum(tensor.numel() for named in first["state"].values() for tensor in named.values())
    assert sum(first["held"]) == total
    assert max(first["held"]) < 0.51 * total
    names = {path.name for path in Path(first["folder"]).glob("*.safetensors")}
    ends = [f"-{rank + 1:05d}-of-{RANKS:05d}.safetensors" for rank in range(RANKS)]
    assert names == {f"{part}{end}" for part in ("model", "optimizer") for end in ends}


def test_ranges_are_put_together_from_slices(first: dict[str, Any]) -> None:
    """A parameter that two ranks share is read across the cut."""
    reader = CheckpointReader(first["folder"])
    cut = [
        (kind, name)
        for kind, named in reader.index.tensors.items()
        for name, stored in named.items()
        if len(stored.slices) > 1
    ]
    assert cut
    for kind, name in cut:
        flat = first["state"][kind][name].flatten()
        place = reader.index.tensors[kind][name].slices[0].stop
        for start, stop in ((0, len(flat)), (place - 1, place + 1), (place, place + 1)):
            assert torch.equal(reader.read_range(kind, name, start, stop), flat[start:stop])
        assert len(flat) == prod(reader.shape(kind, name))


@pytest.mark.parametrize(
    ("ranks", "stage", "micro_steps"),
    [(1, 0, 1), (1, 2, 2), (4, 3, 1), (3, 1, 1), (2, 3, 1)],
    ids=lambda value: str(value),
)
def test_goes_on_elsewhere(first: dict[str, Any], ranks: int, stage: int, micro_steps: int) -> None:
    for report in on_ranks(ranks, gone_on, first["folder"], stage, micro_steps):
        assert_same_state(report["state"], first["state"], 1e-6)
        assert report["losses"] == pytest.approx(first["losses"], rel=1e-4)


def test_goes_on_bit_by_bit_on_the_same_ranks(first: dict[str, Any]) -> None:
    for report in on_ranks(RANKS, gone_on, first["folder"], 2, 1):
        assert report["losses"] == first["losses"]


@pytest.mark.parametrize(("ranks", "stage"), [(3, 3), (3, 0)])
def test_other_stages_save_as_well(
    first: dict[str, Any], tmp_path: Path, ranks: int, stage: int
) -> None:
    """Saved under ZeRO-3 or ZeRO-0, gone on under ZeRO-2."""
    saved = on_ranks(ranks, undisturbed, tmp_path / "run", stage)
    assert max(report["held"] for report in saved) < 0.4 * sum(r["held"] for r in saved)
    report = on_ranks(1, gone_on, saved[0]["folder"], 2, 1)[0]
    assert_same_state(report["state"], saved[0]["state"], 1e-6)
    assert report["losses"] == pytest.approx(first["losses"], rel=1e-4)


@pytest.mark.parametrize(("stage", "what"), [(2, ["optimizer"]), (3, ["optimizer", "param"])])
def test_state_in_host_memory_saves_and_goes_on(
    first: dict[str, Any], tmp_path: Path, stage: int, what: list[str]
) -> None:
    """Saved under ZeRO-Offload and gone on without; and the other way round."""
    offload = tuple((f"distributed.offload_{part}", "cpu") for part in what)
    offload += (("distributed.offload_pin_memory", False),)
    saved = on_ranks(RANKS, undisturbed, tmp_path / "run", stage, offload)
    without = on_ranks(1, gone_on, saved[0]["folder"], 0, 1)
    assert_same_state(without[0]["state"], saved[0]["state"], 1e-6)
    within = on_ranks(RANKS, gone_on, first["folder"], stage, 1, offload)
    assert_same_state(within[0]["state"], first["state"], 1e-6)
    for report in (*saved, *without, *within):
        assert report["losses"] == pytest.approx(first["losses"], rel=1e-4)


BF16 = (("training.mixed_precision", "bf16"), ("training.ema.decay", 0.9))


def test_the_optimizer_of_zero_1_in_bf16(first: dict[str, Any], tmp_path: Path) -> None:
    """Another class of DeepSpeed's sums gradients in fp32 there: exact and elastic resume, with averages."""
    saved = on_ranks(RANKS, undisturbed, tmp_path / "run", 1, BF16)
    folder = saved[0]["folder"]
    assert any(path.name.startswith("ema-") for path in Path(folder).iterdir())
    same = on_ranks(RANKS, gone_on, folder, 1, 1, BF16)
    assert same[0]["losses"] == saved[0]["losses"]
    other = on_ranks(1, gone_on, folder, 3, 1, BF16)
    back = on_ranks(3, gone_on, first["folder"], 1, 1, BF16[:1])
    for report, source in ((same[0], saved[0]), (other[0], saved[0]), (back[0], first)):
        assert_same_state(report["state"], source["state"], 1e-6)
    assert other[0]["losses"] == pytest.approx(saved[0]["losses"], rel=1e-2)
    assert back[0]["losses"] == pytest.approx(first["losses"], rel=1e-2)
