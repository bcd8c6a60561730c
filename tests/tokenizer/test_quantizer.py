"""The look-up-free quantizer against its definition."""

import math
from itertools import product

import pytest
import torch

from showo_dist.models.magvitv2 import LookupFreeQuantizer
from showo_dist.models.magvitv2.quantizer import binary_entropy, mean_code_probability


@pytest.mark.parametrize("bits", [1, 2, 5, 13])
def test_code_is_the_number_its_positive_channels_spell(bits: int) -> None:
    latents = torch.randn(2, bits, 3, 4, generator=torch.Generator().manual_seed(bits))
    latents[0, 0, 0, 0] = 0.0  # not positive
    codes = LookupFreeQuantizer(bits).codes(latents).view(2, 3, 4)
    for b, y, x in product(range(2), range(3), range(4)):
        positive = [latents[b, c, y, x].item() > 0 for c in range(bits)]
        assert codes[b, y, x] == sum(2 ** (bits - 1 - c) for c in range(bits) if positive[c])


def test_lookup_gives_back_the_signs() -> None:
    quantizer, latents = LookupFreeQuantizer(6), torch.randn(2, 6, 4, 5)
    quantized, codes, _ = quantizer(latents)
    torch.testing.assert_close(quantizer.lookup(codes.view(2, 4, 5)), quantized)
    assert set(quantizer.lookup(codes.view(2, 4, 5)).unique().tolist()) == {-1.0, 1.0}


def test_gradient_passes_straight_through() -> None:
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4)
    quantized, _, _ = LookupFreeQuantizer(3)(latents)
    (quantized * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight)


def test_sample_entropy_drives_latents_away_from_zero() -> None:
    latents = torch.tensor([0.1, -0.1]).view(1, 2, 1, 1).requires_grad_()
    LookupFreeQuantizer(2)(latents)[2].sample_entropy.backward()
    assert latents.grad is not None
    assert torch.equal(torch.sign(-latents.grad), torch.sign(latents.detach()))


@pytest.mark.parametrize("term", ["codebook_entropy", "joint_entropy"])
def test_codebook_entropy_drives_a_bit_that_is_always_set_back(term: str) -> None:
    latents = torch.full((1, 2, 2, 2), 0.3).requires_grad_()
    getattr(LookupFreeQuantizer(2)(latents)[2], term).backward()
    assert latents.grad is not None and (latents.grad < 0).all()  # ascent lowers them


def test_entropies_of_certain_and_undecided_latents() -> None:
    quantizer = LookupFreeQuantizer(2)
    undecided = quantizer(torch.zeros(1, 2, 2, 2))[2]
    assert undecided.sample_entropy.item() == pytest.approx(math.log(2))
    all_codes = 20 * quantizer.embedding.T.reshape(1, 2, 2, 2)  # each of the four codes once
    certain = quantizer(all_codes)[2]
    assert certain.sample_entropy.item() == pytest.approx(0, abs=1e-6)
    assert certain.codebook_entropy.item() == pytest.approx(math.log(2))
    assert certain.joint_entropy.item() == pytest.approx(math.log(2))


def test_bits_that_repeat_each_other_show_in_the_joint_entropy_only() -> None:
    repeated = torch.tensor([20.0, -20.0]).repeat(2, 1).view(1, 2, 2, 1)
    losses = LookupFreeQuantizer(2)(repeated)[2]
    assert losses.codebook_entropy.item() == pytest.approx(math.log(2))
    assert losses.joint_entropy.item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_mean_code_probability_is_the_enumerated_one(bits: int) -> None:
    prob = torch.rand(7, bits, dtype=torch.float64)
    expected = [
        torch.stack([prob[:, c] if bit else 1 - prob[:, c] for c, bit in enumerate(code)])
        .prod(0)
        .mean()
        for code in product([False, True], repeat=bits)
    ]
    torch.testing.assert_close(mean_code_probability(prob), torch.stack(expected))


def test_entropy_of_certainty_has_a_finite_gradient() -> None:
    probability = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    entropy = binary_entropy(probability)
    entropy.sum().backward()
    torch.testing.assert_close(entropy.detach(), torch.tensor([0.0, 0.0, math.log(2)]))
    assert probability.grad is not None and probability.grad.isfinite().all()
