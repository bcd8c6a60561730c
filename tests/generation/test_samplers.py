"""Samplers of image codes: what is masked after a round, and which distribution is sampled."""

import argparse
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from showo_dist.cli import main
from showo_dist.generation import Pipeline, SamplingOptions
from showo_dist.generation.samplers import SAMPLERS, halton_rank, nucleus
from showo_dist.generation.sampling import ImageSampler, add_sampling_options, sample_codes
from showo_dist.sequences.masking import mask_schedule

TEXTS = ["a red circle", "", "two blue squares left of a ring"]
TOKENS = 16
OPTIONS = SamplingOptions(steps=8, guidance=1.5, remask=0.3)


def _sampler(pipeline: Pipeline, options: SamplingOptions, **more: Any) -> ImageSampler:
    prompts = [pipeline.text.encode(text) for text in TEXTS]
    return ImageSampler(
        *(pipeline.model, pipeline.vocabulary, prompts),
        **{"budget": 24, "options": options, "tokens": TOKENS, **more},
    )


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_and_keeps_what_was_given(pipeline: Pipeline, name: str) -> None:
    codebook = pipeline.vocabulary.codebook
    codes_BN = torch.full((3, TOKENS), codebook)
    codes_BN[:, :5] = torch.arange(15).view(3, 5)
    codes_BN[1, 5:9] = 3
    sampler = _sampler(pipeline, replace(OPTIONS, sampler=name), codes_BN=codes_BN.clone())
    masked = [11]
    for guess_BN in sampler.rounds(_generator()):
        assert int(guess_BN.max()) < codebook
        kept_BN = sampler.codes_BN != codebook
        assert torch.equal(guess_BN[kept_BN], sampler.codes_BN[kept_BN])
        given_BN = codes_BN != codebook
        assert torch.equal(guess_BN[given_BN], codes_BN[given_BN])
        masked.append(int((~kept_BN).sum(dim=1).max()))
    assert len(masked) - 1 == (11 if name == "one-by-one" else 8)
    if name != "refine":
        assert masked == sorted(masked, reverse=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(pipeline: Pipeline, name: str) -> None:
    options = replace(OPTIONS, sampler=name, top_p=0.9)
    together = sample_codes(_sampler(pipeline, options), [_generator(seed) for seed in range(3)])
    for index, text in enumerate(TEXTS):
        alone = ImageSampler(
            *(pipeline.model, pipeline.vocabulary, [pipeline.text.encode(text)]),
            budget=24,
            options=options,
            tokens=TOKENS,
        )
        assert torch.equal(sample_codes(alone, [_generator(index)])[0], together[index])


@pytest.mark.parametrize("name", ["halton", "random", "remdm"])
def test_the_schedule_is_kept(pipeline: Pipeline, name: str) -> None:
    options = replace(OPTIONS, sampler=name, schedule=mask_schedule("linear"))
    sampler = _sampler(pipeline, options)
    masked = [set((~known_BN).sum(dim=1).tolist()) for known_BN in _known(sampler)]
    assert masked == [{14}, {12}, {10}, {8}, {6}, {4}, {2}, {1}]


def _known(sampler: ImageSampler) -> list[Tensor]:
    """Which places are generated after each round."""
    codebook = sampler.vocabulary.codebook
    return [sampler.codes_BN != codebook for _ in sampler.rounds(_generator())]


def test_only_some_samplers_mask_generated_places_again(pipeline: Pipeline) -> None:
    for name in SAMPLERS:
        known = _known(_sampler(pipeline, replace(OPTIONS, sampler=name)))
        lost = sum(int((a & ~b).sum()) for a, b in pairwise(known))
        assert (lost > 0) == (name in ("remdm", "refine")), name


def test_refining_masks_the_least_likely_codes(pipeline: Pipeline) -> None:
    """Against the probabilities at the time each code was drawn, kept here by hand."""
    sampler = _sampler(pipeline, replace(OPTIONS, sampler="refine", steps=12, guidance=0.0))
    codes = slice(pipeline.vocabulary.image_offset, pipeline.vocabulary.mask)
    chosen_BN = torch.zeros(3, TOKENS)
    rounds = sampler.rounds(_generator())
    for step in range(12):
        unknown_BN = sampler.codes_BN == pipeline.vocabulary.codebook
        p_BNK = sampler.image_logits(codes).float().softmax(-1)
        guess_BN = next(rounds)
        own_BN = p_BNK.gather(-1, guess_BN[..., None]).squeeze(-1)
        chosen_BN = own_BN.where(unknown_BN, chosen_BN)
        if step >= 9:  # ten rounds, and two that correct
            lowest_B4 = chosen_BN.topk(4, largest=False).indices
            masked_BN = sampler.codes_BN == pipeline.vocabulary.codebook
            assert torch.equal(masked_BN, torch.zeros_like(masked_BN).scatter(1, lowest_B4, True))


def test_refining_masks_a_share_of_the_generated_codes_alone(pipeline: Pipeline) -> None:
    codes_BN = torch.full((3, TOKENS), pipeline.vocabulary.codebook)
    codes_BN[0, :6] = codes_BN[1, :9] = 3
    options = replace(OPTIONS, sampler="refine", steps=6)
    sampler = _sampler(pipeline, options, codes_BN=codes_BN)
    masked = [(~known_BN).sum(dim=1).tolist() for known_BN in _known(sampler)]
    assert masked[4:] == 2 * [[3, 2, 4]]  # 30 % of 10, 7 and 16 codes


def test_guidance_by_round(pipeline: Pipeline) -> None:
    linear = SamplingOptions(guidance=2.0, guidance_schedule="linear")
    assert [linear.weight(step, 5) for step in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    middle = SamplingOptions(guidance=2.0, guidance_interval=(0.25, 0.5))
    assert [middle.weight(step, 5) for step in range(5)] == [0.0, 2.0, 2.0, 0.0, 0.0]
    never = replace(OPTIONS, guidance_interval=(0.99, 0.995))
    guided, without, unguided = (
        sample_codes(_sampler(pipeline, options), _generator())
        for options in (OPTIONS, never, replace(OPTIONS, guidance=0.0))
    )
    assert torch.equal(without, unguided) and not torch.equal(guided, unguided)


@pytest.mark.parametrize(
    "changes", [{"guidance_schedule": "linear"}, {"guidance_interval": (0, 0.5)}]
)
def test_guidance_of_an_image_does_not_depend_on_its_batch(
    pipeline: Pipeline, changes: dict[str, Any]
) -> None:
    """One by one, an image with few places to fill has fewer rounds than the others of its batch."""
    options = replace(OPTIONS, sampler="one-by-one", **changes)
    codes_BN = torch.full((3, TOKENS), pipeline.vocabulary.codebook)
    codes_BN[0, :12] = codes_BN[1, :5] = 3
    together = sample_codes(
        _sampler(pipeline, options, codes_BN=codes_BN), [_generator(n) for n in range(3)]
    )
    for row in range(3):
        prompts = [pipeline.text.encode(TEXTS[row])]
        alone = ImageSampler(
            *(pipeline.model, pipeline.vocabulary, prompts),
            budget=24,
            options=options,
            codes_BN=codes_BN[row : row + 1],
        )
        assert torch.equal(sample_codes(alone, [_generator(row)]), together[row : row + 1])


def test_halton_order() -> None:
    """The first points are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)."""
    rank_N = halton_rank(16)
    assert [int((rank_N == i).nonzero()) for i in range(4)] == [2 * 4 + 1, 1 * 4 + 2, 3 * 4, 0 + 1]
    for side in (4, 8, 16, 32):
        rank_N = halton_rank(side * side)
        assert sorted(rank_N.tolist()) == list(range(side * side))
        # A quarter of the places is spread over all quarters of the grid.
        first = (rank_N < side * side // 4).view(2, side // 2, 2, side // 2).sum(dim=(1, 3))
        assert int(first.max() - first.min()) <= max(2, side // 8)
    with pytest.raises(ValueError, match="12 image codes are no square grid"):
        halton_rank(12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 0.999))
def test_nucleus(seed: int, top_p: float) -> None:
    p_BNK = (3 * torch.randn(2, 3, 7, generator=_generator(seed))).softmax(-1)
    kept_BNK = nucleus(p_BNK, top_p)
    assert torch.equal(kept_BNK[kept_BNK > 0], p_BNK[kept_BNK > 0])
    for p, kept in zip(p_BNK.flatten(0, 1), kept_BNK.flatten(0, 1), strict=True):
        assert kept.sum() >= top_p - 1e-5
        assert kept.sum() - kept[kept > 0].min() < top_p + 1e-5
        assert p.masked_fill(kept > 0, 0).max() <= kept[kept > 0].min()


class _Exact(ImageSampler):
    """A model of four binary codes that knows its joint distribution: logits are exact conditionals."""

    joint: dict[tuple[int, ...], float]

    def image_logits(self, ids: slice = slice(None)) -> Tensor:
        p_BNK = torch.zeros(*self.codes_BN.shape, self.vocabulary.codebook)
        for row, codes_N in enumerate(self.codes_BN.tolist()):
            fitting = {
                codes: p
                for codes, p in self.joint.items()
                if all(
                    c in (self.vocabulary.codebook, own)
                    for c, own in zip(codes_N, codes, strict=True)
                )
            }
            for place, code in product(range(4), range(2)):
                p_BNK[row, place, code] = sum(
                    p for codes, p in fitting.items() if codes[place] == code
                )
        return p_BNK.log()


@pytest.mark.parametrize(("name", "exact"), [("one-by-one", True), ("random", False)])
def test_one_place_per_round_samples_the_exact_distribution(
    pipeline: Pipeline, name: str, exact: bool
) -> None:
    """Neighbours agree nine times in ten, which codes that are generated together cannot know."""
    weights = {
        codes: 0.9 ** sum(a == b for a, b in pairwise(codes))
        * 0.1 ** sum(a != b for a, b in pairwise(codes))
        for codes in product(range(2), repeat=4)
    }
    total = sum(weights.values())
    count = 4000
    options = SamplingOptions(steps=2, guidance=0.0, sampler=name)
    sampler = _Exact(
        *(pipeline.model, pipeline.vocabulary, [[1]] * count),
        budget=24,
        options=options,
        tokens=4,
    )
    sampler.joint = {codes: weight / total for codes, weight in weights.items()}
    found = Counter(map(tuple, sample_codes(sampler, _generator(1)).tolist()))
    away = sum(abs(found[codes] / count - p) for codes, p in sampler.joint.items()) / 2
    # Of 4,000 true samples, the total variation is 0.02 on average and hardly ever above 0.04.
    assert (away < 0.04) == exact, away


def test_records_hold_what_decides_the_codes() -> None:
    """One by one, the number of rounds is that of the codes, whatever ``steps`` is."""
    assert replace(OPTIONS, sampler="halton", top_p=0.5).record() == {
        "steps": 8,
        "guidance": 1.5,
        "sampler": "halton",
        "top_p": 0.5,
        "remask": 0.3,
    }
    few, many = (SamplingOptions(steps=steps, sampler="one-by-one") for steps in (3, 30))
    assert few.record() == many.record() and "steps" not in few.record()
    assert few.record() == replace(few, temperature=3.0).record(), "confidences do not matter"
    assert SamplingOptions(temperature=3.0).record()["temperature"] == 3.0


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--top-p", "2"], "top_p = 2.0: expected above 0, at most 1"),
        (["--guidance-interval", "0.9", "0.2"], "guidance_interval = (0.9, 0.2): expected two"),
        (["--remask", "0.3"], "--remask 0.3: without effect with --sampler confidence"),
        (["--steps", "9", "--sampler", "one-by-one"], "steps = 9: one-by-one has as many rounds"),
        (["--guidance", "-1"], "guidance = -1.0: expected 0 or more"),
        (["--temperature", "-3"], "temperature = -3.0: expected 0 or more"),
        (
            ["--temperature", "2", "--sampler", "halton"],
            "--temperature 2: without effect with --sampler halton",
        ),
        (
            ["--guidance", "0", "--guidance-schedule", "linear"],
            "--guidance-schedule: without effect with guidance 0",
        ),
        (
            ["--guidance-interval", "0.4", "0.6", "--steps", "4"],
            "--guidance-interval: none of the 4 rounds has guidance",
        ),
        (
            ["--guidance-schedule", "linear", "--steps", "1"],
            "--guidance-schedule: none of the 1 rounds has guidance",
        ),
    ],
)
def test_options_that_are_wrong_or_without_effect(given: list[str], line: str) -> None:
    parser = argparse.ArgumentParser()
    add_sampling_options(parser)
    with pytest.raises(ValueError, match=re.escape(line)):
        SamplingOptions().changed(parser.parse_args(given))


def test_the_command_records_its_sampler(checkpoint: Any, tmp_path: Any, capsys: Any) -> None:
    command = ["generate", str(checkpoint), "--prompt", "a ring", "--device", "cpu"]
    changed = ["--sampler", "refine", "--top-p", "0.9", "--guidance-interval", "0", "0.8"]
    assert main([*command, *changed, "--out", str(tmp_path)]) == 0
    line = (tmp_path / "images.jsonl").read_text()
    assert '"sampler": "refine", "top_p": 0.9, "guidance_interval": [0.0, 0.8]' in line
    assert main([*command, "--top-p", "0", "--out", str(tmp_path)]) == 2
    assert "training.generation_top_p = 0.0: expected above 0" in capsys.readouterr().err
    without_effect = ["--sampler", "one-by-one", "--steps", "9", "--out", str(tmp_path)]
    assert main([*command, *without_effect]) == 2
    assert "steps = 9: one-by-one has as many rounds" in capsys.readouterr().err
