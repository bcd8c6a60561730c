"""Blocks of another family under ``torch.compile``: one graph, with our attention as an operator inside."""

import pytest
import torch
from torch import Tensor

from showo_dist.sequences import FLOWS, pack
from tests.single_pass.batches import FEATURE_WIDTH, VOCABULARY, build_tiny, global_batch
from tests.training.test_compiled import no_compiler


def trained(family: str, compiled: bool) -> list[Tensor]:
    """The loss and the gradients of all weights."""
    model = build_tiny(family=family)
    if compiled:
        model.compile_blocks()
    sequences = global_batch()[::4]
    batch = pack(sequences, pad_id=VOCABULARY.pad, feature_width=FEATURE_WIDTH, multiple_of=128)
    loss, _ = model(batch, flow_scale_F=torch.ones(len(FLOWS)))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@no_compiler
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama"])
def test_a_compiled_family_computes_the_same(family: str) -> None:
    for one, other in zip(trained(family, True), trained(family, False), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5
