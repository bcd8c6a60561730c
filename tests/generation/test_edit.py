"""Editing with a model: the sequences of training, the cache, guidance, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from showo_dist.cli import main
from showo_dist.generation import Edit, Pipeline, SamplingOptions, read_image
from showo_dist.sequences import builders
from tests.generation import oracles

TEXTS = ["make it red", "", "remove the ring " * 12]


@pytest.fixture(params=["codes", "clip"])
def any_pipeline(request: pytest.FixtureRequest) -> Pipeline:
    """Edits are laid out in image codes, for models that understand CLIP features too."""
    name = {"codes": "pipeline", "clip": "clip_pipeline"}[request.param]
    return request.getfixturevalue(name)


def _edits(images: list[Image.Image]) -> list[Edit]:
    return [Edit(image, text) for image, text in zip(images, TEXTS, strict=False)]


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_rounds_with_the_cache_are_those_without(
    any_pipeline: Pipeline, images: list[Image.Image], guidance: float
) -> None:
    pipeline, edits = any_pipeline, _edits(images)
    options = SamplingOptions(steps=4, guidance=guidance)
    sampler = pipeline.sampler(edits, options)
    vocabulary = pipeline.vocabulary
    blank_N = torch.full((16,), vocabulary.codebook)
    sources_BN = pipeline.encode([edit.image for edit in edits])
    halves = [TEXTS, [""] * 3] if guidance else [TEXTS]
    sequences = [
        builders.edit_prompt(pipeline.text.encode(text), source_N, blank_N, 24, vocabulary)
        for texts in halves
        for text, source_N in zip(texts, sources_BN, strict=True)
    ]
    for _ in sampler.rounds(torch.Generator().manual_seed(0)):
        codes_BN = sampler.codes_BN.repeat(len(halves), 1)
        wanted = oracles.image_logits(pipeline.model, vocabulary, sequences, codes_BN)
        torch.testing.assert_close(sampler.image_logits(), wanted, rtol=0, atol=1e-4)


def test_an_edit_depends_on_source_and_instruction_and_not_on_its_batch(
    pipeline: Pipeline, images: list[Image.Image]
) -> None:
    texts = ["make it red", "remove the ring", "make it red"]
    together = pipeline.edit(images[:3], texts, seed=3)
    parts = pipeline.edit(images[:3], texts, seed=3, batch=2)
    assert [a.tobytes() for a in together] == [b.tobytes() for b in parts]
    asked, unasked = pipeline.edit_sequences([Edit(images[0], "make it red")])
    other, _ = pipeline.edit_sequences([Edit(images[1], "make it red")])
    assert not torch.equal(asked[0].ids_L, other[0].ids_L)
    assert (
        unasked[0].ids_L.tolist()
        == builders.edit_prompt(
            [], pipeline.encode([images[0]])[0], torch.full((16,), 16), 24, pipeline.vocabulary
        ).ids_L.tolist()
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command(
    checkpoint: Path, pipeline: Pipeline, images: list[Image.Image], tmp_path: Path, capsys: Any
) -> None:
    """Options, or JSON lines with paths beside them; an image that cannot be read is left out."""
    for number in range(2):
        images[number].save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    common = ["--device", "cpu", "--steps", "2", "--guidance", "1"]
    options = ["--image", str(tmp_path / "0.png"), "--image", str(tmp_path / "1.png")]
    argv = ["edit", str(checkpoint), *options, "--prompt", "make it red", *common]
    assert main([*argv, "--out", str(tmp_path / "one")]) == 0
    lines = _lines(tmp_path / "one" / "images.jsonl")
    assert [line["prompt"] for line in lines] == ["make it red"] * 2
    sampling = SamplingOptions(steps=2, guidance=1.0)
    wanted = pipeline.edit(images[:2], ["make it red"] * 2, sampling, seed=0)
    for line, image in zip(lines, wanted, strict=True):
        assert read_image(tmp_path / "one" / line["file"]).tobytes() == image.tobytes()
    assert (tmp_path / "one" / "comparison.png").is_file()

    edits = tmp_path / "edits.jsonl"
    entries = [{"source": f"{n}.png", "instruction": f"do {n}", "target": "x"} for n in range(3)]
    edits.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    argv = ["edit", str(checkpoint), "--edits", str(edits), *common]
    assert main([*argv, "--out", str(tmp_path / "two")]) == 1
    assert "2.png" in capsys.readouterr().err
    lines = _lines(tmp_path / "two" / "images.jsonl")
    assert [line["prompt"] for line in lines] == ["do 0", "do 1"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"source": "a.png"}', "edit 1 has no 'instruction'"),
        ('{"instruction": "a"}', "edit 1 has no 'source'"),
        ("[1]", "edit 1 is not a JSON object of texts"),
        ('{"source": "a.png", "instruction": 3}', "edit 1 is not a JSON object of texts"),
        ("", "holds no prompt"),
    ],
)
def test_wrong_lines_are_named(
    checkpoint: Path, tmp_path: Path, line: str, words: str, capsys: Any
) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text(line)
    assert main(["edit", str(checkpoint), "--edits", str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(path) in said and words in said
