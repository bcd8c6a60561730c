"""The commands from a command line: files that record their settings, and one line about a mistake."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from showo_dist.cli import main
from showo_dist.generation import Conversation, Pipeline, SamplingOptions, read_image
from showo_dist.generation.request import image_paths, read_parts, read_prompts
from showo_dist.sequences.masking import mask_schedule


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path, images: list[Image.Image]) -> Path:
    """A folder with two images and a text file that is named like an image."""
    folder = tmp_path / "files"
    folder.mkdir()
    images[0].save(folder / "a.png")
    images[1].resize((61, 37)).save(folder / "b.png")
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


@pytest.fixture
def mask(tmp_path: Path) -> str:
    path = tmp_path / "mask.png"
    image = Image.new("L", (64, 64), 0)
    image.paste(255, (0, 0, 32, 64))
    image.save(path)
    return str(path)


def test_generate(checkpoint: Path, pipeline: Pipeline, tmp_path: Path, capsys: Any) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ring\n\na square\n")
    options = ["--prompt", "a red circle", "--prompt", "", "--prompts-file", str(prompts)]
    sampling = ["--samples", "2", "--seeds", "4", "5", "--steps", "2", "--guidance", "0.5"]
    argv = [
        "generate",
        str(checkpoint),
        *options,
        *sampling,
        "--batch",
        "3",
        "--schedule",
        "linear",
    ]
    assert main([*argv, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    lines = _lines(tmp_path / "out" / "images.jsonl")
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        (prompt, seed)
        for seed in (4, 5)
        for prompt in ("a red circle", "", "a ring", "a square")
        for _ in range(2)
    ]
    with Image.open(tmp_path / "out" / lines[5]["file"]) as image:
        assert image.text["prompt"] == "a ring" and image.text["steps"] == "2"
        assert image.text["schedule"] == "linear" and image.text["seed"] == "4"
        how = SamplingOptions(steps=2, guidance=0.5, schedule=mask_schedule("linear"))
        (alone,) = pipeline.generate(["a ring"], how, seed=4, first_index=5)
        assert image.tobytes() == alone.tobytes()
    assert (tmp_path / "out" / "sheet.png").is_file()
    assert "prompt 2 is empty" in capsys.readouterr().err


def test_published_command_lines(
    checkpoint: Path, tmp_path: Path, files: Path, mask: str, capsys: Any
) -> None:
    """``mode=…`` and its keys at top level, after a config file."""
    config = f"config={checkpoint / 'config.yaml'}"
    common = [f"pretrained_model_path={checkpoint}", "batch_size=1", "guidance_scale=1.75"]
    common += ["generation_timesteps=2", config]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ring\n")
    out = ["--device", "cpu", "--out"]
    t2i = [*common, "mode=t2i", f"validation_prompts_file={prompts}"]
    assert main(["generate", *t2i, *out, str(tmp_path / "t2i")]) == 0
    assert len(_lines(tmp_path / "t2i" / "images.jsonl")) == 1
    inpainting = [
        *common,
        "mode=inpainting",
        "prompt=a blue ring: #1",
        f"image_path={files / 'a.png'}",
    ]
    inpainting.append(f"inpainting_mask_path={mask}")
    assert main(["generate", *inpainting, *out, str(tmp_path / "in")]) == 0
    (line,) = _lines(tmp_path / "in" / "images.jsonl")
    assert line["prompt"] == "a blue ring: #1" and line["guidance"] == 1.75
    wide = [*common, "mode=extrapolation", "extra_direction=left *** up", "offset=1"]
    wide += ["prompt=a hill *** a cloud", f"image_path={files / 'a.png'}"]
    assert main(["generate", *wide, *out, str(tmp_path / "wide")]) == 0
    with Image.open(tmp_path / "wide" / "00000-seed0.png") as image:
        assert image.size == (32 + 24, 32 + 24)
    mmu = [*common, "max_new_tokens=3", f"mmu_image_root={files}", "question=what? *** where?"]
    assert main(["understand", *mmu, *out, str(tmp_path / "mmu")]) == 1
    lines = _lines(tmp_path / "mmu" / "answers.jsonl")
    assert [(Path(line["image"]).name, line["question"]) for line in lines] == [
        (name, question) for name in ("a.png", "b.png") for question in ("what?", "where?")
    ]
    assert "broken.png: not an image" in capsys.readouterr().err


def test_rounds_and_several_images(
    checkpoint: Path, pipeline: Pipeline, files: Path, tmp_path: Path
) -> None:
    images = ["--image", str(files / "a.png"), "--image", str(files / "b.png")]
    asked = [
        "--question",
        "what?",
        "--question",
        "why?",
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    ]
    argv = ["understand", str(checkpoint), *images, *asked]
    assert main([*argv, "--rounds", "--together", "--out", str(tmp_path / "talk")]) == 0
    lines = _lines(tmp_path / "talk" / "answers.jsonl")
    assert [(line["round"], line["question"]) for line in lines] == [(0, "what?"), (1, "why?")]
    talk = Conversation(pipeline)
    both = [read_image(files / name) for name in ("a.png", "b.png")]
    assert talk.ask(*both, "what?", max_new_tokens=4) == lines[0]["answer"]
    assert talk.ask("why?", max_new_tokens=4) == lines[1]["answer"]


def test_sampled_answers_differ_between_batches(
    checkpoint: Path, files: Path, tmp_path: Path
) -> None:
    """Four times the same question, one at a time."""
    image = [word for _ in range(4) for word in ("--image", str(files / "a.png"))]
    sampling = ["--top-k", "50", "--temperature", "5", "--max-new-tokens", "8", "--batch", "1"]
    argv = ["understand", str(checkpoint), *image, "--question", "what?", *sampling]
    found = []
    for name in ("one", "two"):
        assert main([*argv, "--device", "cpu", "--out", str(tmp_path / name)]) == 0
        found.append([x["answer"] for x in _lines(tmp_path / name / "answers.jsonl")])
    assert len(set(found[0])) == 4
    assert found[0] == found[1]


def test_a_bad_input_is_reported_and_the_rest_is_done(
    checkpoint: Path, files: Path, mask: str, tmp_path: Path, capsys: Any
) -> None:
    """A broken image, a missing one, and a mask of other proportions are named; the rest is generated."""
    names = ["a.png", "broken.png", "missing.png", "b.png"]
    images = [word for name in names for word in ("--image", str(files / name))]
    argv = ["inpaint", str(checkpoint), *images, "--mask", mask, "--device", "cpu", "--steps", "2"]
    assert main([*argv, "--out", str(tmp_path / "in")]) == 1
    (line,) = _lines(tmp_path / "in" / "images.jsonl")
    assert line["image"].endswith("a.png")
    errors = capsys.readouterr().err
    assert "broken.png: not an image" in errors and "missing.png: cannot be read" in errors
    assert "mask of 64×64 pixels for an image of 61×37" in errors
    argv = [
        "reconstruct",
        str(checkpoint),
        "--image",
        str(files),
        "--device",
        "cpu",
        "--steps",
        "2",
    ]
    assert main([*argv, "--out", str(tmp_path / "re")]) == 1
    lines = _lines(tmp_path / "re" / "images.jsonl")
    assert [line["guidance"] for line in lines] == [0.0, 0.0]
    assert (tmp_path / "re" / "comparison.png").is_file()


def test_parts(clip_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    """Images among the text, with a model that reads CLIP features."""
    good = [{"text": "like"}, {"image": str(files / "a.png")}, {"text": "but red"}]
    bad = [{"image": str(files / "broken.png")}]
    parts = tmp_path / "parts.jsonl"
    parts.write_text("\n".join(json.dumps(row) for row in (bad, good)) + "\n")
    common = [str(clip_checkpoint), "--parts", str(parts), "--device", "cpu", "--out"]
    assert main(["generate", *common, str(tmp_path / "g"), "--guidance", "0", "--steps", "2"]) == 1
    assert len(_lines(tmp_path / "g" / "images.jsonl")) == 1
    # Without the option there is no guidance from images as CLIP features.
    assert main(["generate", *common, str(tmp_path / "free"), "--steps", "2"]) == 1
    images = [tmp_path / name / "00000-seed0.png" for name in ("g", "free")]
    assert len({Image.open(path).tobytes() for path in images}) == 1
    assert {image.info["guidance"] for image in map(Image.open, images)} == {"0.0"}
    assert [line["guidance"] for line in _lines(tmp_path / "free" / "images.jsonl")] == [0.0]
    assert main(["understand", *common, str(tmp_path / "u"), "--max-new-tokens", "2"]) == 1
    (line,) = _lines(tmp_path / "u" / "answers.jsonl")
    assert line["question"] == "but red"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate"], "no model"),
        (["generate", "{model}"], "no prompt"),
        (["generate", "{model}", "steps=3"], "steps = 3: unknown key"),
        (["generate", "{model}", "--prompt", "a", "--steps", "0"], "generation_timesteps = 0"),
        (["generate", "{model}", "--prompt", "a", "--schedule", "steep"], "mask_schedule"),
        (["generate", "{model}", "other", "--prompt", "a"], "one model at most"),
        (["generate", "/nowhere/at/all", "--prompt", "a"], "config.yaml: missing"),
        (["inpaint", "{model}"], "--image is missing"),
        (
            ["generate", "{model}", "--parts", "x", "--prompt", "a"],
            "--parts and --prompt: only one",
        ),
        (
            ["understand", "{model}", "--parts", "x", "--image", "a"],
            "--parts and --image: only one",
        ),
        (
            ["reconstruct", "{model}", "--image", "x", "--guidance-schedule", "linear"],
            "--guidance-schedule: without effect with guidance 0",
        ),
        (["edit", "{model}", "--edits", "x", "--image", "a"], "--edits and --image: only one"),
        (["extrapolate", "{model}", "--image", "x.png", "--direction", "north"], "'north'"),
        (["understand", "{model}", "--image", "x.png"], "--question is missing"),
        (["generate", "{model}", "--prompt", "a", "--seeds", "0", "-1"], "--seeds -1: expected 0"),
        (["understand", "{model}", "--image", "x", "--seeds", "-1"], "--seeds -1: expected 0"),
        (["generate", "{model}", "--prompt", "a", "inference.seeds=[-7]"], "--seeds -7"),
        (["generate", "{model}", "--prompt", "caf\udce9"], "'caf\\udce9': not UTF-8"),
        (["generate", "{model}", "--out", "caf\udce9"], "'caf\\udce9': not UTF-8"),
        (
            ["extrapolate", "{model}", "--image", "x", "--direction", "up", "--offset", "9"],
            "offset",
        ),
    ],
)
def test_mistakes(argv: list[str], words: str, checkpoint: Path, capsys: Any) -> None:
    argv = [word.format(model=checkpoint) for word in argv]
    assert main([*argv, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa ring\r\n\r\na\xe2\x80\xa8square\r\n", ["a ring", "a\u2028square"]),
        (b"a ring\xc2\x85x", ["a ring\x85x"]),
        ("a ring".encode("utf-16"), "not UTF-8 (UTF-16); save it as UTF-8"),
        (b"a\nb\ncaf\xe9", "not UTF-8 (line 3); save it as UTF-8"),
        (b"\xef\xbb\xbf\n", "holds no prompt"),
    ],
)
def test_prompt_files(tmp_path: Path, data: bytes, expected: list[str] | str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    if isinstance(expected, list):
        assert read_prompts(path) == expected
    else:
        with pytest.raises(ValueError, match=re.escape(f"{path}: {expected}")):
            read_prompts(path)


@pytest.mark.parametrize(
    "line",
    ['[{"text": null}]', '[{"image": 3}]', '[{"text": "\\ud83d"}]', "[" * 100_000, "7" * 5000],
    ids=range(5),
)
def test_parts_that_are_no_texts_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "parts.jsonl"
    path.write_text(f'[{{"text": "good"}}]\n{line}\n')
    with pytest.raises(ValueError, match=r"^.*parts\.jsonl: prompt 2 is not a JSON list .*$"):
        read_parts(path)


def test_files_of_macos_are_no_images(files: Path) -> None:
    (files / "._a.png").write_bytes(b"\0\5\x16\7")
    assert [path.name for path in image_paths([str(files)])] == ["a.png", "b.png", "broken.png"]


def test_long_prompts_are_cut_and_reported(
    checkpoint: Path, pipeline: Pipeline, tmp_path: Path, capsys: Any
) -> None:
    text = "ring " * 40
    argv = ["generate", str(checkpoint), "--prompt", text, "--device", "cpu", "--steps", "2"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert "cut to 24" in capsys.readouterr().err
    ids = pipeline.text.encode(text)
    kept = pipeline.text.decode(ids[:22])  # with the task token and bos: 24
    one, other = (pipeline.generate([t], seed=1)[0].tobytes() for t in (text, kept))
    assert one == other


def test_sixteen_bit_grey_and_transparent_files(tmp_path: Path) -> None:
    grey = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getextrema()[0] == (0, 255)
    Image.new("RGBA", (5, 3), (255, 0, 0, 128)).save(tmp_path / "clear.png")
    image = read_image(tmp_path / "clear.png")
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_a_released_folder(checkpoint: Path, encoders: Path, tmp_path: Path) -> None:
    """Weights and ``config.json`` alone, the tokenizers named on the command line."""
    released = tmp_path / "released"
    released.mkdir()
    for name in ("config.json", "model.safetensors"):
        (released / name).write_bytes((checkpoint / name).read_bytes())
    named = ["--vq-model", str(encoders / "vq"), "--tokenizer", str(encoders / "text")]
    argv = ["generate", str(released), "--prompt", "a", "--steps", "2", *named, "--device", "cpu"]
    sizes = ["model.vq_model.downsample=8"]
    assert main([*argv, *sizes, "--out", str(tmp_path / "o")]) == 0
    (line,) = _lines(tmp_path / "o" / "images.jsonl")
    assert (line["steps"], line["guidance"]) == (2, 1.75)
