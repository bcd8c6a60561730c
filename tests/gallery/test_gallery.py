"""The generated images, the contents of the page, and how it is served."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from showo_dist.generation.networks import read_model_config
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import sample_codes
from showo_dist.report.curves import Curve, svg_chart, thinned_curve, ticks
from showo_dist.report.gallery.checkpoints import find_runs, thinned
from showo_dist.report.gallery.cli import Gallery, build, main
from showo_dist.report.gallery.generating import Generated, Settings
from showo_dist.runtime.numerics import image_generator
from tests.gallery.conftest import PROMPTS

_LIMIT_S = 400


def test_runs_and_their_checkpoints(runs: Path, tmp_path: Path) -> None:
    one, two = find_runs([runs], columns=4)
    assert [c.label for c in one.checkpoints] == ["one, step 3", "one, step 6"]
    assert [c.label for c in two.checkpoints] == ["two, step 3"]
    (alone,) = find_runs([runs / "one" / "checkpoint-000006"], columns=4)
    assert [c.label for c in alone.checkpoints] == ["one, step 6"]
    (last,) = find_runs([runs / "one"], columns=1)
    assert [c.step for c in last.checkpoints] == [6]
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_runs([runs / "nowhere"], columns=4)
    with pytest.raises(ValueError, match="neither a run"):
        find_runs([tmp_path], columns=4)


@pytest.mark.parametrize(("count", "columns"), [(1, 4), (4, 4), (5, 4), (9, 4), (100, 7), (3, 1)])
def test_thinning_keeps_the_last(runs: Path, count: int, columns: int) -> None:
    (checkpoint, *_) = find_runs([runs], 1)[0].checkpoints
    many = [replace(checkpoint, step=step) for step in range(count)]
    steps = [c.step for c in thinned(many, columns)]
    assert len(steps) == min(count, columns) and steps[-1] == count - 1
    assert steps == sorted(set(steps))


def _pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_images_are_those_of_the_prompts_and_seed(gallery: Gallery) -> None:
    generated = gallery.generated[0]
    pipeline = Pipeline.load(generated.checkpoint.folder, device="cpu")
    options = gallery.settings.options(pipeline.options)
    sampler = pipeline.sampler(PROMPTS[:2], options)
    codes_BN = sample_codes(sampler, [image_generator(1, (n,), pipeline.device) for n in range(2)])
    for codes_N, file in zip(codes_BN, generated.images, strict=False):
        # One at a time: on some processors a convolution of two images rounds otherwise than one of one.
        (image,) = pipeline.decode(codes_N[None])
        assert image.tobytes() == _pixels(gallery.out / file)


def test_rounds_uncover_the_image(gallery: Gallery) -> None:
    for generated in gallery.generated:
        assert (generated.side, len(generated.frames), len(generated.masks)) == (8, 2, 2)
        for place in range(2):
            masks = generated.masks[place]
            assert [len(mask) for mask in masks] == [64] * 4
            hidden = [mask.count("1") for mask in masks]
            assert hidden == sorted(hidden, reverse=True) and hidden[0] < 64 and hidden[-1] == 0
            last = gallery.out / generated.frames[place][-1]
            assert _pixels(last) == _pixels(gallery.out / generated.images[place])


def test_a_sampler_with_rounds_of_its_own(runs: Path, tmp_path: Path) -> None:
    config = tmp_path / "run" / "checkpoint-000003" / "config.yaml"
    shutil.copytree(runs / "two" / "checkpoint-000003", config.parent)
    text = config.read_text()
    config.write_text(
        text.replace("generation_sampler: confidence", "generation_sampler: one-by-one")
    )
    found = find_runs([tmp_path / "run"], columns=1)
    settings = Settings(PROMPTS[:1], seed=1, frames=1)
    (generated,) = build(found, settings, tmp_path / "page", "cpu").generated
    hidden = [mask.count("1") for mask in generated.masks[0]]
    assert hidden == [*range(63, 0, -1), 0]
    with pytest.raises(ValueError, match="--steps 4: without effect"):
        build(found, replace(settings, steps=4), tmp_path / "page", "cpu")


def _times(generated: Generated, out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / generated.folder).iterdir()}


def test_images_are_generated_once(gallery: Gallery, tmp_path: Path) -> None:
    before = [_times(generated, gallery.out) for generated in gallery.generated]
    again = build(gallery.runs, gallery.settings, gallery.out, "cpu")
    assert [_times(generated, gallery.out) for generated in again.generated] == before
    other = build(gallery.runs[1:], replace(gallery.settings, seed=2), gallery.out, "cpu")
    assert other.generated[0].folder != again.generated[-1].folder
    gallery.write()


def test_page_loads_its_own_files_alone(gallery: Gallery) -> None:
    text = (gallery.out / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|url\(", text)
    files = re.findall(r'src="(images/[^"]+)"', text)
    assert len(files) == 3 * (3 + 2) and all((gallery.out / file).is_file() for file in files)
    assert "two &lt;b&gt;blue&lt;/b&gt; squares &amp; a ring" in text and "<b>blue" not in text
    for data in re.findall(r'<script type="application/json">(.*?)</script>', text):
        values = json.loads(data)
        assert len(values["frames"]) == len(values["masks"]) == 4
        assert all((gallery.out / file).is_file() for file in values["frames"])


def test_export_of_given_prompts(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ring\n\na square\n")
    options = ["--steps", "1", "--columns", "1", "--device", "cpu", "--frames", "0"]
    with pytest.raises(ValueError, match="names no prompts: add --prompts"):
        main([str(runs / "two"), "--out", str(tmp_path / "out"), *options])
    out = tmp_path / "out"
    assert main([str(runs / "two"), "--out", str(out), "--prompts", str(prompts), *options]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out / "index.html"))
    assert len(list(out.glob("images/*/*.webp"))) == 2
    with pytest.raises(ValueError, match="--columns 0: expected 1 or more"):
        main([str(runs / "two"), "--columns", "0"])


def test_networks_at_other_paths(runs: Path, tmp_path: Path) -> None:
    """A checkpoint from another machine, its tokenizers named: the same images."""
    source = runs / "two" / "checkpoint-000003"
    config = read_model_config(source)
    text, vq = str(config.text_tokenizer), config.model.vq_model.vq_model_name
    moved = tmp_path / "moved" / source.name
    shutil.copytree(source, moved)
    written = (source / "config.yaml").read_text()
    (moved / "config.yaml").write_text(written.replace(text, "/no/text").replace(vq, "/no/vq"))
    made = []
    for folder, networks in [(source, []), (moved, ["--tokenizer", text, "--vq-model", vq])]:
        out = tmp_path / f"of-{folder.parent.name}"
        options = ["--prompt", "a ring", "--frames", "0", "--device", "cpu", "--out", str(out)]
        assert main([str(folder), *options, *networks]) == 0
        made += [_pixels(path) for path in out.glob("images/*/000.webp")]
    assert len(made) == 2 and made[0] == made[1]
    with pytest.raises((ValueError, OSError), match="/no/text"):
        main([str(moved), "--prompt", "a ring", "--out", str(tmp_path / "none")])


def test_chart_is_drawn_within_its_frame() -> None:
    steps = list(range(1, 1000))
    drawing = svg_chart([Curve("loss <t2i>", steps, [10 / s for s in steps])], "Loss")
    svg = ElementTree.fromstring(drawing[: drawing.index("<ul")])
    (line,) = svg.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(points) <= 300
    assert all(0 <= x <= 640 and 0 <= y <= 280 for x, y in points)
    assert [y for _, y in points] == sorted(y for _, y in points), "a falling loss falls"
    assert "loss <t2i> from" in svg.attrib["aria-label"]
    assert thinned_curve(Curve("flat", [5], [2.0])) == Curve("flat", [5], [2.0])
    assert "NaN" not in svg_chart([Curve("flat", [5], [0.0])], "Loss")


@pytest.mark.parametrize(("low", "high"), [(0, 1.4), (0, 1400), (-3, 8), (0, 1e-4), (2.9, 3.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert all(len(f"{value:.6g}") <= 6 for value in found)


def test_served_on_loopback_only_and_read_only(runs: Path, gallery: Gallery) -> None:
    command = [sys.executable, "-m", "showo_dist.cli", "gallery", str(runs / "two"), "--port", "0"]
    options = ["--prompt", "a ring", "--steps", "1", "--frames", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A test run in the background ignores Ctrl-C, and its child processes would inherit that.
    obey = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=obey
    ) as server:
        try:
            assert server.stdout is not None
            address = next(m[0] for m in map(re.compile(r"http://\S+/").search, server.stdout) if m)
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=_LIMIT_S) as answer:
                assert "a ring" in answer.read().decode()
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            for path in ("images/", "../checkpoint-000003/config.yaml", "evil"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(address + path, timeout=_LIMIT_S)
            server.send_signal(signal.SIGINT)
            assert server.wait(_LIMIT_S) == 0
        finally:
            server.kill()
