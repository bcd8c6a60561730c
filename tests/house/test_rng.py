"""Generators give the same numbers in every version: results and initial weights depend on them."""

import torch

from showo_dist.runtime.numerics import hashed_seed, image_generator, named_generator

CPU = torch.device("cpu")


def _first(generator: torch.Generator) -> list[int]:
    return torch.randint(2**31, (3,), generator=generator).tolist()


def test_image_generators_are_pinned() -> None:
    assert _first(image_generator(0, [0], CPU)) == [820510290, 191909657, 1615959214]
    assert _first(image_generator(7, [3], CPU)) == [944045554, 726762727, 773171636]
    assert _first(image_generator(7, [3, 1], CPU)) == [2115815794, 1055431483, 1443548620]


def test_named_generators_are_pinned() -> None:
    assert _first(named_generator(0, "showo.lm_head.weight")) == [1428288937, 623260194, 656204685]
    assert _first(named_generator(7, "mm_projector.0.weight")) == [1922662258, 747009220, 258080935]


def test_hashed_seeds_are_pinned() -> None:
    assert hashed_seed(b"5\x01\x02") == 4794815161986606864
