"""The backbone for TorchUMM, called with the arguments that its runner has for every backbone."""

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showo_data.mini import draw, scene
from showo_dist.evaluation.torchumm import ShowoBackbone
from showo_dist.generation.pipeline import Pipeline

# What its DPG-Bench runner gives to every model.
DPG = {"num_timesteps": 2, "cfg_text_scale": 4.0, "cfg_interval": [0, 1.0], "timestep_shift": 4.0}


@pytest.fixture
def backbone(checkpoint: Path) -> ShowoBackbone:
    made = ShowoBackbone()
    made.load({"model_path": str(checkpoint), "device": "cpu"})
    return made


def generated(backbone: ShowoBackbone, path: Path | None, **settings: Any) -> bytes:
    result = backbone.generation(
        prompt="a circle",
        output_path=path and str(path),
        generation_cfg={"generation_timesteps": 2, **settings},
    )
    if path is not None:
        assert result["output_path"] == str(path)
        with Image.open(path) as saved:
            assert saved.convert("RGB").tobytes() == result["image"].tobytes()
    pixels: bytes = result["image"].tobytes()
    return pixels


def test_samples_of_a_prompt_differ_and_repeat_in_another_process(
    checkpoint: Path, backbone: ShowoBackbone, tmp_path: Path
) -> None:
    """GenEval's samples have names of their own, DPG-Bench's no path at all, and a restart skips some."""
    paths = [tmp_path / "work" / f"{n:05d}.png" for n in range(3)]
    named = [generated(backbone, path) for path in paths]
    unnamed = [generated(backbone, None) for _ in range(3)]
    assert len({*named, *unnamed}) == 6
    again = ShowoBackbone()
    again.load({"model_path": str(checkpoint), "device": "cpu"})
    assert generated(again, paths[2]) == named[2]
    assert [generated(again, None) for _ in range(3)] == unnamed
    other = ShowoBackbone()
    other.load({"model_path": str(checkpoint), "device": "cpu", "seed": 1})
    assert generated(other, paths[2]) != named[2]
    assert generated(other, paths[1], seed=0) == named[1]


def test_options_have_their_effect_and_others_are_named(
    backbone: ShowoBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            backbone.generation(prompt="a circle", output_path=None, generation_cfg=DPG)
    (warning,) = caplog.messages
    assert warning.endswith("cfg_interval, cfg_text_scale, num_timesteps, timestep_shift")
    options, _ = backbone._settings("a circle", None, {"guidance_scale": 3.0, "top_p": 0.5})
    assert (options.guidance, options.top_p) == (3.0, 0.5)
    with pytest.raises(ValueError, match="top_p = 2"):
        generated(backbone, None, top_p=2)


def test_edits_and_answers_are_the_pipelines(
    checkpoint: Path, backbone: ShowoBackbone, tmp_path: Path
) -> None:
    image = draw(scene(0, 0))
    image.save(tmp_path / "source.png")
    cfg = {"steps": 2}
    for source in (str(tmp_path / "source.png"), image):
        out = tmp_path / f"{type(source).__name__}" / "edited.png"
        backbone.load({"model_path": str(checkpoint), "device": "cpu"})
        backbone.editing(
            prompt="make it red", images=[source], output_path=str(out), editing_cfg=cfg
        )
    assert len({path.read_bytes() for path in tmp_path.glob("*/edited.png")}) == 1
    answer = backbone.understanding(
        prompt="what is it?",
        images=[str(tmp_path / "source.png")],
        videos=[],
        understanding_cfg={"max_new_tokens": 5},
    )
    (wanted,) = Pipeline.load(checkpoint, device="cpu").ask([image], ["what is it?"], 5)
    assert answer == {"text": wanted}


def test_what_it_cannot_do_is_named(backbone: ShowoBackbone) -> None:
    with pytest.raises(ValueError, match=r"backbone_cfg: no model_path"):
        ShowoBackbone().load({"seed": 1})
    with pytest.raises(ValueError, match=r"backbone_cfg: unknown 'vae_path'; it takes"):
        ShowoBackbone().load({"model_path": "x", "vae_path": "y"})
    with pytest.raises(ValueError, match="2 images to edit"):
        backbone.editing(prompt="x", images=["a", "b"], output_path=None, editing_cfg={})
    with pytest.raises(ValueError, match="videos"):
        backbone.understanding(prompt="x", images=[], videos=["a.mp4"], understanding_cfg={})
