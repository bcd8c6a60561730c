"""Inpainting and extrapolation keep every code that they were given."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from showo_dist.generation import Conversation, Pipeline, SamplingOptions, user
from showo_dist.generation.edits import extend_grid, growth, masked_places
from showo_dist.generation.sampling import ImageSampler, sample_codes


def _mask(box: tuple[int, int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("unknown", [1, 2, 15])
@pytest.mark.parametrize("temperature", [0.0, 1000.0])
def test_given_codes_stay(pipeline: Pipeline, unknown: int, temperature: float) -> None:
    """In every round, even where the noise is larger than every confidence."""
    generator = torch.Generator().manual_seed(unknown)
    start_BN = torch.randint(16, (3, 16), generator=generator)
    for row in start_BN:
        row[torch.randperm(16, generator=generator)[:unknown]] = 16
    given_BN = start_BN != 16
    options = SamplingOptions(steps=6, guidance=1.0, temperature=temperature)
    prompts = [pipeline.text.encode("a ring")] * 3
    sampler = ImageSampler(
        pipeline.model, pipeline.vocabulary, prompts, budget=24, options=options, codes_BN=start_BN
    )
    for guess_BN in sampler.rounds(generator):
        assert torch.equal(guess_BN[given_BN], start_BN[given_BN])
        assert guess_BN.max() < 16


def test_inpainting(
    pipeline: Pipeline, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [_mask((0, 0, 16, 32)), _mask((8, 8, 24, 16))]
    decoded: list[torch.Tensor] = []
    decode = Pipeline.decode
    monkeypatch.setattr(
        Pipeline, "decode", lambda self, codes: decoded.append(codes) or decode(self, codes)
    )
    made = pipeline.inpaint(images[:2], masks, ["a ring", ""], seed=3)
    assert [image.size for image in made] == [(32, 32)] * 2
    source_BN, (generated_BN,) = pipeline.encode(images[:2]), decoded
    covered_BN = torch.stack(
        [masked_places(m, p, 32, 4).flatten() for m, p in zip(masks, images, strict=False)]
    )
    assert covered_BN.sum(1).tolist() == [8, 2]
    assert torch.equal(generated_BN[~covered_BN], source_BN[~covered_BN])
    assert not torch.equal(generated_BN[covered_BN], source_BN[covered_BN])


def test_masks() -> None:
    image = Image.new("RGB", (96, 64))
    left = masked_places(_mask((0, 0, 32, 64), (96, 64)), image, 32, 4)
    assert left[:, 0].all() and not left[:, 1:].any()  # the crop leaves out a sixth at each side
    assert torch.equal(left, masked_places(_mask((0, 0, 16, 32), (48, 32)), image, 32, 4))
    coloured = _mask((0, 0, 32, 64), (96, 64)).convert("RGBA")
    assert torch.equal(left, masked_places(coloured, image, 32, 4))
    with pytest.raises(ValueError, match="32×32 pixels for an image of 96×64"):
        masked_places(_mask((0, 0, 32, 32)), image, 32, 4)
    with pytest.raises(ValueError, match="covers no code"):
        masked_places(Image.new("L", (96, 64), 0), image, 32, 4)


DIRECTIONS = ("left", "right", "up", "down")
PLACES = {
    "left": lambda grid, n: grid[:, :, n:],
    "right": lambda grid, n: grid[:, :, : grid.shape[2] - n],
    "up": lambda grid, n: grid[:, n:],
    "down": lambda grid, n: grid[:, : grid.shape[1] - n],
}


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("directions", list(itertools.product(DIRECTIONS, repeat=2)))
def test_growing_keeps_the_source(directions: tuple[str, str], offset: int) -> None:
    """Two steps in any directions: windows are upright, given codes stay, no place is left blank."""
    side, blank = 4, 99
    grid = torch.arange(32).view(2, 4, 4)
    grown = growth(side, offset)
    for direction in directions:
        before = grid

        def fill_window(window: torch.Tensor, before: torch.Tensor = before) -> torch.Tensor:
            assert window.shape == (2, side, side)
            known = window[window < 50]
            assert set(known.tolist()) <= set(before.flatten().tolist())
            for row in window[0].tolist():  # upright: codes of the source ascend along a row
                codes = [code for code in row if code < 50]
                assert codes == sorted(codes)
            return torch.where(window == blank, torch.full_like(window, 60), window)

        grid = extend_grid(before, direction, side, grown, blank, fill_window)
        assert torch.equal(PLACES[direction](grid, grown), before)
        assert (grid != blank).all()
    assert grid.numel() > 32


def test_offsets_have_limits() -> None:
    assert [growth(4, offset) for offset in (-1, 0, 1)] == [1, 2, 3]
    for offset in (-2, 2):
        with pytest.raises(ValueError, match=r"offset.*-1 to 1"):
            growth(4, offset)


def test_wide_images(pipeline: Pipeline, images: list[Image.Image]) -> None:
    (wide,) = pipeline.extrapolate(images[:1], ["left", "right", "down"], ["a ring"], seed=1)
    assert wide.size == (64, 48)
    again = pipeline.extrapolate(images[1:2] + images[:1], ["left"], ["a ring"], seed=1)
    assert [image.size for image in again] == [(48, 32)] * 2
    with pytest.raises(ValueError, match="'north'"):
        pipeline.extrapolate(images[:1], ["north"], ["a ring"])
    with pytest.raises(ValueError, match="2 directions and 3 texts"):
        pipeline.extrapolate(images[:1], ["up", "up"], ["a", "b", "c"])


def test_batches_and_seeds(pipeline: Pipeline, images: list[Image.Image]) -> None:
    """An image does not depend on the rest of its batch."""
    together = pipeline.reconstruct(images, seed=5)
    apart = pipeline.reconstruct(images[:2], seed=5) + pipeline.reconstruct(
        images[2:], seed=5, batch=2, first_index=2
    )
    assert [p.tobytes() for p in together] == [p.tobytes() for p in apart]
    other = pipeline.reconstruct(images, seed=6)
    assert [p.tobytes() for p in together] != [p.tobytes() for p in other]


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
def test_modes_and_odd_sizes(pipeline: Pipeline, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (37, 61, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    plain = pipeline.encode([image.convert("RGB")])
    assert torch.equal(pipeline.encode([image]), plain)
    assert plain.shape == (1, 16)


def test_exif_turns_the_image(pipeline: Pipeline) -> None:
    upright = Image.fromarray(
        np.random.default_rng(1).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    )
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # 6: turn by 270° counter-clockwise
    assert torch.equal(pipeline.encode([turned]), pipeline.encode([upright]))


def test_a_conversation_in_texts_and_images(pipeline: Pipeline, images: list[Image.Image]) -> None:
    talk = Conversation(pipeline)
    words = talk.ask(images[0], "what is shown?", max_new_tokens=5)
    assert words == pipeline.ask(images[:1], ["what is shown?"], max_new_tokens=5)[0]
    generated = talk.generate("the same beside", images[1], seed=2)
    assert generated.size == (32, 32)
    assert talk.turns[-1].parts == (generated,)
    talk.ask("and now?", max_new_tokens=3)
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 3
    (sequence,) = pipeline.question_sequences([talk.turns[:5]])
    assert sequence.ids_L.tolist().count(pipeline.vocabulary.soi) == 3


def test_turns_of_a_conversation_draw_numbers_of_their_own(
    pipeline: Pipeline, images: list[Image.Image]
) -> None:
    talk = Conversation(pipeline)
    for turn in (1, 3):
        words = talk.ask(*images[:1], "what is shown?", max_new_tokens=8, top_k=None, seed=4)
        asked = [talk.turns[:turn]]
        assert words == pipeline.reply(asked, 8, top_k=None, seed=4, place=[turn])[0]
        assert words != pipeline.reply(asked, 8, top_k=None, seed=5, place=[turn])[0]
        assert words != pipeline.reply(asked, 8, top_k=None, seed=4, place=[4 - turn])[0]


def test_clip_models_reconstruct_without_guidance(
    clip_pipeline: Pipeline, images: list[Image.Image]
) -> None:
    (made,) = clip_pipeline.reconstruct(images[:1])
    assert made.size == (32, 32)
    with pytest.raises(ValueError, match=r"guidance 1\.5"):
        clip_pipeline.reconstruct(images[:1], clip_pipeline.options)


def test_clip_models_generate_in_conversations(
    clip_pipeline: Pipeline, images: list[Image.Image]
) -> None:
    talk = Conversation(clip_pipeline)
    assert talk.generate("a ring").size == (32, 32)
    assert talk.generate("like this", images[0]).size == (32, 32)


def test_sampled_answers(pipeline: Pipeline, images: list[Image.Image]) -> None:
    ask = [user(images[0], "what?")]
    sampled = [
        pipeline.reply([ask], 8, top_k=None, temperature=5.0, seed=seed) for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_mask_that_covers_nothing_is_an_error_before_generation(
    pipeline: Pipeline, images: list[Image.Image]
) -> None:
    with pytest.raises(ValueError, match="covers no code"):
        pipeline.inpaint(images[:1], [Image.new("L", (32, 32))], ["a ring"])


def test_sample_codes_is_the_last_round(pipeline: Pipeline) -> None:
    one, other = (pipeline.sampler(["a ring"]) for _ in range(2))
    *_, last = one.rounds(torch.Generator().manual_seed(1))
    assert torch.equal(sample_codes(other, torch.Generator().manual_seed(1)), last)
