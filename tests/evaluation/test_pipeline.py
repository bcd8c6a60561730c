"""Texts to images, questions to answers, images to codes and back, with random weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from showo_data import vq_transform
from showo_data.images import to_images
from showo_data.mini import draw, scene
from showo_dist.generation.conversation import user
from showo_dist.generation.pipeline import Pipeline

TEXTS = ["a red circle", "two squares", "a ring", "", "a white cross and a blue ring"]


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return Pipeline.load(checkpoint, device="cpu")


def _same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [p.tobytes() for p in one] == [p.tobytes() for p in other]


def test_options_come_from_the_checkpoint(pipeline: Pipeline) -> None:
    assert (pipeline.options.steps, pipeline.options.guidance) == (3, 1.5)
    assert (pipeline.resolution, pipeline.budget, pipeline.tokens) == (64, 32, 64)
    assert not pipeline.model.training


def test_seed_and_index_decide_the_images(pipeline: Pipeline) -> None:
    whole = pipeline.generate(TEXTS, seed=7, batch=2)
    assert [p.size for p in whole] == [(64, 64)] * len(TEXTS)
    torch.manual_seed(123)  # the global generator must not matter
    parts = [
        image
        for start in range(0, len(TEXTS), 2)
        for image in pipeline.generate(TEXTS[start : start + 2], seed=7, first_index=start)
    ]
    assert _same(whole, parts)
    assert not _same(whole, pipeline.generate(TEXTS, seed=8, batch=2))
    first = pipeline.generate([TEXTS[0]], seed=7)
    assert not _same(first, pipeline.generate([TEXTS[0]], seed=7, first_index=1))


def test_options_are_obeyed(pipeline: Pipeline) -> None:
    own = pipeline.generate(TEXTS[:2], seed=1)
    stronger = replace(pipeline.options, guidance=30.0)
    assert not _same(own, pipeline.generate(TEXTS[:2], stronger, seed=1))
    assert _same(own, pipeline.generate(TEXTS[:2], pipeline.options, seed=1))


def test_question_has_the_layout_of_training(pipeline: Pipeline) -> None:
    image, vocabulary = draw(scene(0, 1)), pipeline.vocabulary
    (codes_N,) = pipeline.encode([image])
    long_question = "what is shown? " * 30
    tuned = replace(pipeline, question_style="llava")
    (sequence,) = tuned.question_sequences([[user(image, long_question)]])
    ids = sequence.ids_L.tolist()
    assert ids[:2] == [vocabulary.mmu, vocabulary.soi]
    assert ids[2:66] == [vocabulary.image_offset + code for code in codes_N.tolist()]
    assert ids[66] == vocabulary.eoi
    assert pipeline.text.decode(ids[67:]) == f"USER: {long_question.strip()} ASSISTANT:"
    assert len(sequence.label_rows_P) == 0


def test_answers_do_not_depend_on_the_batch(pipeline: Pipeline) -> None:
    images = [draw(scene(0, index)) for index in range(5)]
    questions = [f"{'what ' * (index + 1)}is shown?" for index in range(5)]
    together = pipeline.ask(images, questions, max_new_tokens=4)
    assert together == pipeline.ask(images, questions, max_new_tokens=4, batch=2)
    assert together == [
        pipeline.ask([image], [question], max_new_tokens=4)[0]
        for image, question in zip(images, questions, strict=True)
    ]
    assert any(together)


def test_reconstruction_is_the_tokenizer_alone(pipeline: Pipeline) -> None:
    images = [draw(scene(0, index)).resize((96, 64)) for index in range(3)]
    pixels_B3HW = torch.stack([vq_transform(64)(image) for image in images])
    wanted = to_images(pipeline.vq.decode(pipeline.vq.encode(pixels_B3HW)))
    assert _same(pipeline.tokenizer_roundtrip(images, batch=2), wanted)


def test_every_byte_survives_pixels() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    (back,) = to_images(vq_transform(16)(Image.fromarray(values))[None])
    assert np.array_equal(np.asarray(back), values)
    (clipped,) = to_images(torch.full((1, 3, 2, 2), -3.0))
    assert clipped.getpixel((0, 0)) == (0, 0, 0)


def test_what_is_missing_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.config\.yaml: missing"):
        Pipeline.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no-such-vq"):
        Pipeline.load(checkpoint, device="cpu", vq_model=str(tmp_path / "no-such-vq"))
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        Pipeline.load(tmp_path / "copy", device="cpu")
