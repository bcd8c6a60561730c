"""Tensors that travel together arrive as they were."""

import pytest
import torch

from showo_data import MicroBatch, Sample, Skipped, loader
from showo_data.samples import TENSORS


@pytest.fixture(autouse=True, params=["shared", "copied"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "copied":
        monkeypatch.setattr(loader, "_SPARE", 2.0)  # more than there is


def _carried(batch: MicroBatch) -> MicroBatch:
    parcel = loader._packed(batch)
    assert bool(parcel.copied) == (loader._SPARE > 1)
    return parcel.opened()


def test_everything_arrives_where_it_belongs() -> None:
    bad = [Skipped("t2i", 5, "a.tar", "k", "no-text")]
    batch = MicroBatch(
        {
            "t2i": [
                Sample("t2i", i, f"k{i}", image_3HW=torch.full((3, 2, 2), i)) for i in range(3)
            ],
            "recon": [
                Sample("recon", 7, "r", codes_N=torch.arange(4), condition_codes_G=torch.arange(2)),
                Sample("recon", 8, "s", image_3HW=torch.rand(3, 4, 4)),
                Sample("recon", 9, "u", codes_N=torch.arange(4), features_SC=torch.rand(2, 3)),
            ],
            "lm": [Sample("lm", 1, "t", text="words")],
            "mmu": [],
        },
        bad,
    )
    carried = _carried(batch)
    assert carried.skipped == bad
    assert list(carried.samples) == ["t2i", "recon", "lm", "mmu"]
    for flow, group in batch.samples.items():
        for mine, theirs in zip(group, carried.samples[flow], strict=True):
            assert (mine.position, mine.key, mine.text) == (
                theirs.position,
                theirs.key,
                theirs.text,
            )
            for name in TENSORS:
                sent, came = getattr(mine, name), getattr(theirs, name)
                assert (sent is None) == (came is None)
                assert sent is None or (sent.dtype == came.dtype and torch.equal(sent, came))


def test_sending_leaves_the_batch_as_it_was() -> None:
    batch = MicroBatch({"t2i": [Sample("t2i", 0, "k", image_3HW=torch.ones(3, 1, 1))]})
    _carried(batch)
    assert batch.samples["t2i"][0].image_3HW is not None


def test_tensors_of_a_type_share_one_buffer() -> None:
    samples = [Sample("t2i", i, "k", codes_N=torch.arange(5)) for i in range(4)]
    carried = _carried(MicroBatch({"t2i": samples}))
    storages = {s.codes_N.untyped_storage().data_ptr() for s in carried.samples["t2i"]}
    assert len(storages) == 1


def test_tensors_of_every_type_arrive() -> None:
    for dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ):
        image = (torch.rand(3, 2, 5) * 9).to(dtype)
        carried = _carried(MicroBatch({"t2i": [Sample("t2i", 0, "k", image_3HW=image)]}))
        came = carried.samples["t2i"][0].image_3HW
        assert came is not None and came.dtype == dtype and torch.equal(came, image)
        came.zero_()  # it can be written to
