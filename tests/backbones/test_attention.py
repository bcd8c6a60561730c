"""Every family computes Show-o's mask, by every attention backend, as its own eager attention does."""

from collections.abc import Sequence as Seq
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from showo_dist.models.showo import ShowO
from showo_dist.sequences import FLOWS, PackedBatch, Sequence, Vocabulary, pack
from showo_dist.sequences.builders import lm, t2i
from showo_dist.sequences.masking import MaskedCodes
from showo_kernels import AttentionPlan, Visibility, build_plan
from tests.families import FAMILIES
from tests.kernels.layouts import NATIVE
from tests.kernels.test_attention import plan_for
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch

families = pytest.mark.parametrize("family", FAMILIES)
ONE_PER_FLOW = slice(None, None, 4)


@cache
def tiny(family: str) -> ShowO:
    return build_tiny(family=family)


def packed(sequences: Seq[Sequence], model: ShowO, multiple_of: int = 1) -> PackedBatch:
    return pack(
        sequences,
        pad_id=VOCABULARY.pad,
        feature_width=model.feature_width,
        multiple_of=multiple_of,
    )


def logits(model: ShowO, batch: PackedBatch, plan: AttentionPlan | None = None) -> Tensor:
    """Logits (rows, V) of the rows that hold tokens."""
    with torch.no_grad():
        return model(batch, logit_rows=torch.arange(batch.real_tokens), plan=plan)


def eager_gradients(family: str, sequences: Seq[Sequence]) -> dict[str, Tensor]:
    """Gradients of the sum of all flows' means: each sequence alone, through the family's own attention."""
    model = build_tiny(family=family)
    model.config._attn_implementation = "eager"
    sums = dict.fromkeys(FLOWS, torch.zeros(()))
    counts = dict.fromkeys(FLOWS, 0)
    for sequence in sequences:
        batch = packed([sequence], model)
        seen_LL = Visibility.from_documents([sequence.spans]).dense()
        hidden_LD = model.showo.get_decoder()(
            inputs_embeds=model._embed(batch)[None],
            position_ids=batch.position_ids_T[None],
            attention_mask=torch.zeros(seen_LL.shape).masked_fill(~seen_LL, -torch.inf)[None, None],
        ).last_hidden_state[0]
        flow = FLOWS[int(batch.label_flow_P[0])]
        logits_PV = model.head(hidden_LD[batch.label_rows_P])
        sums[flow] = sums[flow] + F.cross_entropy(logits_PV, batch.targets_P, reduction="sum")
        counts[flow] += len(batch.targets_P)
    torch.stack([sums[flow] / counts[flow] for flow in FLOWS if counts[flow]]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@families
def test_one_pass_gives_the_gradients_of_each_sequence_alone(family: str) -> None:
    sequences = global_batch()[ONE_PER_FLOW]
    wanted = eager_gradients(family, sequences)
    model = build_tiny(family=family)
    batch = packed(sequences, model)
    counts = [(batch.label_flow_P == i).sum() for i in range(len(FLOWS))]
    scale_F = 1 / torch.stack(counts).clamp(min=1)
    model(batch, flow_scale_F=scale_F)[0].backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    for name, gradient in wanted.items():
        error = float((found[name] - gradient).abs().max() / gradient.abs().max())
        assert error < 2e-5, (name, error)


@families
@pytest.mark.parametrize("backend", ["sdpa", "flash", NATIVE])
def test_every_backend_gives_the_numbers_of_dense(family: str, backend: str) -> None:
    """Logits, and gradients of all weights."""
    model = build_tiny(family=family)
    batch = packed(global_batch()[ONE_PER_FLOW], model)

    def computed(plan: AttentionPlan) -> list[Tensor]:
        model.zero_grad()
        found = model(batch, logit_rows=batch.label_rows_P, plan=plan)
        F.cross_entropy(found, batch.targets_P).backward()
        return [found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    wanted = computed(build_plan("dense", batch.visibility))
    for one, other in zip(computed(plan_for(backend, batch.visibility)), wanted, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-4


@families
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_gives_the_logits_of_dense(family: str) -> None:
    batch = packed(global_batch()[ONE_PER_FLOW], tiny(family), multiple_of=128)
    found = logits(tiny(family), batch, build_plan("flex", batch.visibility))
    wanted = logits(tiny(family), batch, build_plan("dense", batch.visibility))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def influenced(visibility: Visibility, layers: int) -> Tensor:
    """(T, T): whether a change of token k moves row q, through so many blocks."""
    seen_TT = visibility.dense().float()
    return torch.linalg.matrix_power(seen_TT, layers) > 0


@families
def test_a_token_moves_the_rows_that_see_it_and_no_other(family: str) -> None:
    """Text before and behind the image, the image's two sides, and another sequence of the row."""
    check_influence(tiny(family))


def check_influence(model: ShowO) -> None:
    """Fail unless a changed token moves exactly the rows that see it."""
    codes_N = torch.arange(9)
    masked = MaskedCodes(codes_N, codes_N.clone(), None, 1.0)
    text = list(range(5, 21))
    sequences = [t2i(text[:9], masked, 16, VOCABULARY), lm(text, 16, VOCABULARY)]
    batch = packed(sequences, model)
    rows_TT = influenced(batch.visibility, model.config.num_hidden_layers)
    before = logits(model, batch)
    image = int((batch.ids_N == VOCABULARY.soi).nonzero())
    for token in (3, image, image + 1, image + 9, image + 10, len(sequences[0]), len(before) - 2):
        changed = packed(sequences, model)
        changed.ids_N[token] = VOCABULARY.text - 1
        moved_T = (logits(model, changed) != before).any(1)
        assert torch.equal(moved_T, rows_TT[: len(before), token]), token


@families
def test_only_the_order_within_a_sequence_counts(family: str) -> None:
    """A sequence has the same logits alone and behind another one: positions begin anew."""
    model, text = tiny(family), list(range(5, 21))
    vocabulary: Vocabulary = VOCABULARY
    first, second = lm(text, 16, vocabulary), lm(text[::-1], 16, vocabulary)
    both = logits(model, packed([first, second], model))
    alone = logits(model, packed([second], model))
    torch.testing.assert_close(both[-len(alone) :], alone, atol=1e-5, rtol=1e-5)
    assert float((both[: len(alone)] - alone).abs().max()) > 0.01
