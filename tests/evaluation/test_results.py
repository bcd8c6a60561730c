"""Scores are read from the result files that the scorers write."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from showo_dist.evaluation import dpg, geneval, job, wise
from showo_dist.evaluation.cli import IMAGES
from showo_dist.evaluation.text_to_image import Chances

# The end of what DPG-Bench's scorer appends after one line per image.
DPG_TAIL = (
    "Model: images\nL1 category scores:\n\tentity: 81.25\n\tglobal: 70.0\n"
    "L2 category scores:\n\tentity - whole: 80.0\nImage path: images\n"
    "Save results to: results.txt\nDPG-Bench score: 77.125\n"
)


def test_nothing_was_scored(tmp_path: Path) -> None:
    for benchmark in (geneval, dpg, wise):
        assert benchmark.scores(tmp_path, 1, 1) == {}


def test_geneval_is_the_mean_over_categories(tmp_path: Path) -> None:
    verdicts = [("a", True), ("a", True), ("a", False), ("a", False), ("b", True)]
    lines = [json.dumps({"tag": tag, "correct": right}) for tag, right in verdicts]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    assert geneval.scores(tmp_path, 5, 1) == {"overall": 75.0, "a": 50.0, "b": 100.0}
    with pytest.raises(ValueError, match="5 of 6 images"):
        geneval.scores(tmp_path, 3, 2)


def test_dpg_score_needs_all_images(tmp_path: Path) -> None:
    path = tmp_path / "results.txt"
    rows = "/x/1.png, 0.5, 1.0, 0.25, 1.0, 0.6875\n/x/2.png, 1.0, 1.0, 1.0, 1.0, 1.0\n"
    path.write_text(rows + DPG_TAIL)
    assert dpg.scores(tmp_path, 2, 4) == {"overall": 77.125, "entity": 81.25, "global": 70.0}
    with pytest.raises(ValueError, match="2 of 3 images"):
        dpg.scores(tmp_path, 3, 4)
    path.write_text(rows)
    with pytest.raises(ValueError, match="has not finished"):
        dpg.scores(tmp_path, 2, 4)


def test_chances_of_the_samples(tmp_path: Path) -> None:
    """Each sample of all prompts is a score of its own; their mean is the score."""
    verdicts = {"00000/samples/00000": ("a", 1), "00000/samples/00001": ("a", 0)}
    verdicts |= {"00001/samples/00000": ("a", 0), "00001/samples/00001": ("a", 0)}
    verdicts |= {"00002/samples/00000": ("b", 1), "00002/samples/00001": ("b", 1)}
    lines = [
        json.dumps({"filename": f"/x/{name}.png", "tag": tag, "correct": bool(right)})
        for name, (tag, right) in verdicts.items()
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(reversed(lines)))
    found = geneval.chances(tmp_path)
    assert found.what == "samples" and found.scores == [75.0, 50.0]
    assert fmean(found.scores) == geneval.scores(tmp_path, 3, 2)["overall"]
    rows = "/x, y.png, 0.5, 1.0, 0.25, 1.0, 0.6875\n/x/2.png, 1.0, 1.0, 1.0, 1.0, 1.0\n"
    (tmp_path / "results.txt").write_text(rows + DPG_TAIL)
    assert dpg.chances(tmp_path).scores == [75.0, 100.0, 62.5, 100.0]


def test_interval_of_chances() -> None:
    # Student's t for 3 degrees of freedom is 3.182; the standard deviation of 1, 2, 3, 4 is 1.290994.
    low, high = Chances("samples", [51.0, 52.0, 53.0, 54.0]).interval() or (0, 0)
    assert (low, high) == pytest.approx((52.5 - 2.0540, 52.5 + 2.0540), abs=1e-3)
    assert Chances("prompts", [0.0] * 30 + [100.0]).interval() == pytest.approx(
        (0, 9.814), abs=1e-2
    )
    assert Chances("prompts", [3.0] * 200).interval() == (3.0, 3.0)
    assert Chances("samples", [3.0]).interval() is None


def _marks(number: int, *values: float) -> str:
    names = ("consistency", "realism", "aesthetic_quality")
    return json.dumps({"prompt_id": number, **dict(zip(names, values, strict=True))})


def test_wise_weighs_the_marks(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "one_scores.jsonl").write_text(_marks(1, 2, 2, 2) + "\n" + _marks(2, 2, 0, 0))
    (folder / "two_scores.jsonl").write_text(_marks(3, 0, 1, 1))
    wanted = 100 * (1.0 + 0.7 + 0.15) / 3
    assert wise.scores(tmp_path, 3, 1) == {"overall": pytest.approx(wanted)}
    assert wise.chances(tmp_path).scores == pytest.approx([100.0, 70.0, 15.0])
    # A leftover without a verdict counts for neither.
    (folder / "old_scores.jsonl").write_text(_marks(4, 999, 999, 999))
    assert wise.scores(tmp_path, 3, 1) == {"overall": pytest.approx(wanted)}
    assert len(wise.chances(tmp_path).scores) == 3
    (folder / "two_scores.jsonl").write_text(_marks(3, 999, 999, 999))
    with pytest.raises(ValueError, match="2 of 3 images"):
        wise.scores(tmp_path, 3, 1)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("geneval", "results.jsonl"),
        ("dpg", "results.txt"),
        ("wise", "results/a_scores.jsonl"),
        ("gedit", "scores/a.csv"),
    ],
)
def test_replacing_an_evaluation_deletes_its_scores(tmp_path: Path, name: str, result: str) -> None:
    """Else the scores of other weights would be read as those of the new images."""
    owned = list(IMAGES[name].owned)
    job._claim_folder(tmp_path, {"weights": "a"}, owned, replace=False)
    (tmp_path / result).parent.mkdir(exist_ok=True)
    (tmp_path / result).write_text("scores of a")
    job._claim_folder(tmp_path, {"weights": "a"}, owned, replace=True)
    assert (tmp_path / result).is_file()
    job._claim_folder(tmp_path, {"weights": "b"}, owned, replace=True)
    assert not (tmp_path / result).exists()
