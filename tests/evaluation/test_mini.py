"""Scores of known images, and a whole evaluation of a checkpoint."""

import io
import json
import random
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from showo_data.mini import Object, Scene, draw, questions, scene, score
from showo_data.mini.writing import image_sample
from showo_data.shards import write_shard
from showo_dist.evaluation.cli import main
from showo_dist.evaluation.mini import read_prompts
from showo_dist.evaluation.mini_scores import (
    OTHER,
    Generated,
    MiniQuestion,
    image_scores,
    normalised,
    question_scores,
    read_questions,
    wilson,
)
from showo_dist.report.cli import _evaluate_commands
from showo_dist.report.inputs import read_runs
from tests.holding import refused_then_done

RED_CIRCLE = Object("circle", "red", "large", (48, 48))
BLUE_TRIANGLE = Object("triangle", "blue", "small", (16, 16))


def _generated(tag: str, image: Image.Image, *include: dict[str, Any]) -> Generated:
    prompt = {"tag": tag, "include": list(include), "prompt": "-"}
    return Generated(0, prompt, image, score(image, prompt))


def test_scores_of_drawn_images() -> None:
    one, both = draw(Scene((RED_CIRCLE,))), draw(Scene((RED_CIRCLE, BLUE_TRIANGLE)))
    pair = draw(Scene((RED_CIRCLE, replace(RED_CIRCLE, centre=BLUE_TRIANGLE.centre))))
    circle, triangle = {"class": "circle", "count": 1}, {"class": "triangle", "count": 1}
    generated = [
        _generated("single_object", one, circle),
        _generated("single_object", one, triangle),
        _generated("colors", one, {**circle, "color": "red"}),
        _generated("colors", one, {**circle, "color": "blue"}),
        _generated("colors", one, {**triangle, "color": "red"}),
        _generated("colors", pair, {**circle, "color": "red"}),
        _generated("colors", both, {**circle, "color": "red"}),
        _generated("colors", draw(Scene(())), {**circle, "color": "red"}),
        _generated("two_object", both, circle, triangle),
        _generated("two_object", one, circle, triangle),
    ]
    scores = image_scores(generated)
    counts = {tag: (v["correct"], v["total"]) for tag, v in scores["categories"].items()}
    assert counts == {"single_object": (1, 2), "colors": (1, 6), "two_object": (1, 2)}
    assert (scores["prompts"]["correct"], scores["prompts"]["total"]) == (3, 10)
    colour, shape = scores["single_object_colour"], scores["single_object_shape"]
    assert (colour["correct"], colour["total"], colour["chance"]) == (2, 6, 1 / 6)
    only = scores["single_object_only_colour"]
    assert (only["correct"], only["total"], only["chance"]) == (3, 6, 1 / 6)
    assert (shape["correct"], shape["total"], shape["chance"]) == (3, 8, 1 / 4)


def test_total_of_questions_leaves_descriptions_out() -> None:
    kinds = [("count", True), ("count", False), ("description", False), ("colour", True)]
    scores = question_scores([{"type": kind, "correct": right} for kind, right in kinds])
    assert (scores["total"]["correct"], scores["total"]["total"]) == (2, 3)
    assert scores["types"]["count"]["accuracy"] == 0.5
    assert scores["types"]["description"]["total"] == 1


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # E. B. Wilson's interval as tabulated: 0/10, 5/10, 10/10, 81/263 (Newcombe 1998, method 3).
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)  # fmt: skip
def test_wilson_by_published_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(case: tuple[int, int]) -> None:
    low, high = wilson(*case)
    assert 0 <= low <= case[0] / case[1] + 1e-12
    assert case[0] / case[1] - 1e-12 <= high <= 1
    assert wilson(0, 0) == (0, 1)


def test_every_question_of_the_world_has_a_type() -> None:
    kinds = set()
    for index in range(200):
        for question, _ in questions(scene(1, index), random.Random(index)):
            kind = MiniQuestion("", Image.new("RGB", (1, 1)), question, "").kind
            assert kind != OTHER, question
            kinds.add(kind)
    assert kinds == {
        "description", "count", "colour", "shape", "presence", "size", "place", "relation"
    }  # fmt: skip
    assert MiniQuestion("", Image.new("RGB", (1, 1)), "why?", "").kind == OTHER


def test_normalised() -> None:
    assert normalised("  The  Red\ncircle. ") == "the red circle"
    assert normalised("no") != normalised("not")


def test_questions_are_those_of_the_shards(world: Path) -> None:
    found = read_questions(str(world / "val-*.tar"), 64, limit=None)
    keys = [question.key for question in found]
    assert len(set(keys)) == 12
    for question in found:
        drawn = scene(0, int(question.key))
        assert question.image.tobytes() == draw(drawn).tobytes()
        assert "<image>" not in question.text and question.text.endswith("?")
        turns = image_sample(0, int(question.key))["json"]["conversations"]
        rounds = [(q["value"], a["value"]) for q, a in zip(turns[::2], turns[1::2], strict=True)]
        assert any(question.text in q and question.wanted == a for q, a in rounds)
    limited = read_questions(str(world / "val-*.tar"), 64, limit=3)
    assert len({question.key for question in limited}) == 3
    with pytest.raises(ValueError, match=r"none-.*nothing matches it"):
        read_questions(str(world / "none-*.tar"), 64, None)


def test_questions_about_images_beside_their_codes(world: Path, tmp_path: Path) -> None:
    codes = io.BytesIO()
    np.save(codes, np.zeros(16, np.uint16))
    sample = image_sample(0, 5)
    write_shard(tmp_path / "plain.tar", [sample])
    write_shard(tmp_path / "encoded.tar", [{**sample, "codes.npy": codes.getvalue()}])
    plain, encoded = (
        read_questions(str(tmp_path / f"{name}.tar"), 64, None) for name in ("plain", "encoded")
    )
    assert [(q.text, q.wanted) for q in encoded] == [(q.text, q.wanted) for q in plain] != []


def test_broken_prompts_are_named(tmp_path: Path, world: Path) -> None:
    assert len(read_prompts(world / "prompts.jsonl", None)) == 12
    limited = read_prompts(world / "prompts.jsonl", 1)
    assert len({prompt["tag"] for prompt in limited}) == len(limited) == 6
    path = tmp_path / "prompts.jsonl"
    for text, wanted in [
        (
            '{"tag": "a", "include": [], "prompt": "p"}\n{"tag": "a"}',
            r"prompts\.jsonl:2: .*include",
        ),
        ("hello", r"prompts\.jsonl:1: not a JSON object"),
        ("", "holds no prompts"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=wanted):
            read_prompts(path, None)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_complete_evaluation(
    checkpoint: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval"
    data = ["--prompts", str(world / "prompts.jsonl"), "--shards", str(world / "val-*.tar")]
    options = ["--steps", "2", "--seed", "5", "--batch", "8", "--out", str(out), "--device", "cpu"]
    assert main(["--framework", "mini", str(checkpoint), *data, *options]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["settings"]["steps"] == 2 and scores["settings"]["guidance"] == 1.5
    images, answers = _lines(out / "images.jsonl"), _lines(out / "answers.jsonl")
    assert len(images) == scores["prompts"]["total"] == 12
    for record in images:
        with Image.open(out / record["file"]) as image:
            assert image.size == (64, 64)
            assert image.info["prompt"] == record["prompt"]
            assert image.info["seed"] == "5" and image.info["steps"] == "2"
            again = score(image, _prompt(world, record["prompt"]))
        assert again.correct == record["correct"] and again.reason == record["reason"]
    asked = [record["type"] != "description" for record in answers]
    assert scores["questions"]["total"]["total"] == sum(asked) > 0
    assert len({record["key"] for record in answers}) == 12
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 8 * 144
    shown = capsys.readouterr().out
    assert "generation: batch 2/2" in shown
    assert "colour of a single object" in shown and "16.7%" in shown


def _prompt(world: Path, text: str) -> dict[str, Any]:
    return next(p for p in _lines(world / "prompts.jsonl") if p["prompt"] == text)


def test_two_checkpoints_get_a_folder_each(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), str(checkpoint.parent), "--out", str(tmp_path)]
    prompts = ["--prompts", str(world / "prompts.jsonl"), "--limit", "1", "--steps", "1"]
    with pytest.raises(ValueError, match=r"config\.yaml: missing"):
        main([*arguments, *prompts])
    (done,) = tmp_path.iterdir()
    assert done.name == f"{checkpoint.parent.name}-checkpoint-000003"
    assert json.loads((done / "scores.json").read_text())["questions"]["types"] == {}


def test_wrong_numbers_are_named(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), "--prompts", str(world / "prompts.jsonl"), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="--steps 0"):
        main([*arguments, "--steps", "0"])


def test_one_evaluation_writes_to_a_folder(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "out", str(world / "prompts.jsonl")
    arguments = ["--framework", "mini", str(checkpoint), "--out", str(out), "--device", "cpu"]
    arguments += ["--prompts", prompts, "--limit", "1", "--steps", "1"]
    refused_then_done(out, lambda: main(arguments))
    assert (out / "scores.json").is_file()


def test_the_reports_command_repeats_an_evaluation(
    checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval-pretrain"
    data = ["--prompts", str(world / "prompts.jsonl"), "--shards", str(world / "val-*.tar")]
    sampling = ["--limit", "1", "--sampler", "halton", "--steps", "2", "--precision", "fp32"]
    assert main([str(checkpoint), *data, *sampling, "--device", "cpu", "--out", str(out)]) == 0
    before = (out / "scores.json").read_text()
    (command,) = _evaluate_commands(read_runs(tmp_path))
    shutil.rmtree(out)
    assert main([*shlex.split(command)[2:], "--device", "cpu"]) == 0
    assert (out / "scores.json").read_text() == before


def test_an_evaluation_resumes_or_starts_over(
    checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    prompts = ["--prompts", str(world / "prompts.jsonl"), "--limit", "1", "--steps", "1"]
    arguments = [str(checkpoint), *prompts, "--device", "cpu", "--out", str(tmp_path)]

    def images() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("images/*")}

    assert main(arguments) == 0
    before = images()
    assert main(arguments) == 0 and images() == before, "generated twice"
    assert main([*arguments, "--seed", "1"]) == 0
    after = images()
    assert after.keys() == before.keys() and not set(after.values()) & set(before.values())
