"""Tensors that travel together arrive as they were."""

import pickle

import torch

from showo_data import MicroBatch, Sample, Skipped
from showo_data.samples import TENSORS


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
    carried = pickle.loads(pickle.dumps(batch))
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
    pickle.dumps(batch)
    assert batch.samples["t2i"][0].image_3HW is not None


def test_tensors_of_a_type_share_one_buffer() -> None:
    samples = [Sample("t2i", i, "k", codes_N=torch.arange(5)) for i in range(4)]
    carried = pickle.loads(pickle.dumps(MicroBatch({"t2i": samples})))
    storages = {s.codes_N.untyped_storage().data_ptr() for s in carried.samples["t2i"]}
    assert len(storages) == 1
