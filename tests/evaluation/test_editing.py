"""Edited images where the scorers of ImgEdit and GEdit-Bench read them; scores of the mini world's edits."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from showo_data.cli import main_edits
from showo_data.mini import EDIT_KINDS, EditScore, draw, sample_edit
from showo_dist.evaluation.cli import main
from showo_dist.evaluation.editing import read_gedit, read_imgedit
from showo_dist.evaluation.mini_edits import edit_scores

QUICK = ["--steps", "2", "--device", "cpu", "--seed", "3"]


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    for index, name in enumerate(("animal/1.png", "style/2.png")):
        path = folder / name
        path.parent.mkdir(parents=True)
        draw(sample_edit(0, index).before).resize((90, 64)).save(path)
    return folder


BASIC = {
    "1082": {"id": "animal/1.png", "prompt": "make the circle red", "edit_type": "adjust"},
    "673": {"id": "style/2.png", "prompt": "remove the square", "edit_type": "remove"},
}


def _evaluate(framework: str, checkpoint: Path, out: Path, *more: str) -> Path:
    arguments = ["--framework", framework, str(checkpoint), "--out", str(out), *QUICK, *more]
    assert main(arguments) == 0
    return out


def _imgedit(tmp_path: Path, originals: Path) -> list[str]:
    path = tmp_path / "basic_edit.json"
    path.write_text(json.dumps(BASIC))
    return ["--prompts", str(path), "--images", str(originals)]


def test_imgedit_names(checkpoint: Path, originals: Path, tmp_path: Path, capsys: Any) -> None:
    inputs = _imgedit(tmp_path, originals)
    out = _evaluate("imgedit", checkpoint, tmp_path / "out", *inputs, "--samples", "2")
    for folder in ("images", "images-1"):
        assert sorted(p.name for p in (out / folder).iterdir()) == ["1082.png", "673.png"]
    with Image.open(out / "images" / "673.png") as image:
        assert image.size == (64, 64) and image.info["prompt"] == "remove the square"
    printed = capsys.readouterr().out
    assert f"python basic_bench.py --result_img_folder {out.resolve()}/images" in printed


def test_another_source_is_another_evaluation(
    checkpoint: Path, originals: Path, tmp_path: Path
) -> None:
    inputs = _imgedit(tmp_path, originals)
    _evaluate("imgedit", checkpoint, tmp_path / "out", *inputs)
    draw(sample_edit(0, 7).before).save(originals / "style/2.png")
    with pytest.raises(ValueError, match="holds an evaluation with inputs"):
        _evaluate("imgedit", checkpoint, tmp_path / "out", *inputs)


def test_imgedit_mistakes_are_named(originals: Path, tmp_path: Path) -> None:
    path = tmp_path / "basic_edit.json"
    path.write_text(json.dumps({**BASIC, "5": {"id": "gone.png", "prompt": "a"}}))
    with pytest.raises(ValueError, match=r"--images .*: has no gone\.png"):
        read_imgedit(path, originals)
    for text in ("[]", '{"1": {"id": "a.png"}}', '{"1": {"id": "../a.png", "prompt": "a"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"basic_edit\.json: not a JSON object of objects"):
            read_imgedit(path, originals)


def _gedit(path: Path, originals: Path, keys: list[str], languages: list[str]) -> Path:
    images = [(originals / name).read_bytes() for name in ("animal/1.png", "style/2.png")]
    table = pa.table(
        {
            "task_type": ["color_alter", "ps_human"],
            "key": keys,
            "instruction": ["make it red", "move it"],
            "instruction_language": languages,
            "input_image": [{"bytes": b"", "path": None} for _ in images],
            "input_image_raw": [{"bytes": data, "path": None} for data in images],
            "Intersection_exist": [True, False],
        }
    )
    parquet.write_table(table, path)
    return path


def test_gedit_folders(checkpoint: Path, originals: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    _gedit(folder / "train-00000.parquet", originals, ["ab12", "cd34"], ["en", "cn"])
    out = _evaluate("gedit", checkpoint, tmp_path / "out", "--prompts", str(folder))
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    stems = ("fullset/color_alter/en/ab12", "fullset/ps_human/cn/cd34")
    assert found == [f"{stem}{end}.png" for stem in stems for end in ("", "_SRCIMG")]
    written = Image.open(out / f"{stems[0]}_SRCIMG.png")
    original = Image.open(originals / "animal/1.png").convert("RGB")
    assert written.tobytes() == original.tobytes()
    printed = capsys.readouterr().out
    assert f"run_gedit_score.py --edited_images_dir {tmp_path} " in printed
    assert f"--save_path {out}/scores --language all --model_name out" in printed


def test_gedit_mistakes_are_named(originals: Path, tmp_path: Path) -> None:
    path = _gedit(tmp_path / "a.parquet", originals, ["x", "../y"], ["en", "cn"])
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: .*cannot be the name of a file"):
        read_gedit(path)
    parquet.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(ValueError, match="no column 'task_type'"):
        read_gedit(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_gedit(originals)


def test_edits_of_the_mini_world(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert main_edits([str(tmp_path / "edits"), "--edits", "1", "--validation", "9"]) == 0
    shards = f"{tmp_path}/edits/val-*.tar"
    out = _evaluate("mini-edit", checkpoint, tmp_path / "out", "--shards", shards, "--limit", "8")
    assert len(list(out.glob("images/*.png"))) == 8 and (out / "sheet.png").is_file()
    scores = json.loads((out / "scores.json").read_text())
    assert scores["edits"]["all"]["both"]["total"] == 8
    kinds = {kind: value["edit"]["total"] for kind, value in scores["edits"].items()}
    lines = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    for kind in EDIT_KINDS:
        assert kinds.get(kind, 0) == sum(line["kind"] == kind for line in lines)
    assert all(line["reason"] for line in lines), "a model that never trained edits nothing"
    assert "│ untouched │" in " ".join(capsys.readouterr().out.replace("┃", "│").split())
    with pytest.raises(ValueError, match="no edit of the mini world"):
        _evaluate("mini-edit", checkpoint, tmp_path / "b", "--shards", _texts(tmp_path))


def _texts(folder: Path) -> str:
    from showo_data.shards import write_shard

    write_shard(folder / "t.tar", [{"__key__": "a", "txt": b"a"}])
    return str(folder / "t.tar")


def test_scores_count_each_aspect() -> None:
    edits = [sample_edit(0, index) for index in range(40)]
    verdicts = [EditScore(i % 2 == 0, i % 4 != 0, "", ()) for i in range(40)]
    scores = edit_scores(edits, verdicts)
    counts = {name: value["correct"] for name, value in scores["all"].items()}
    assert counts == {"edit": 20, "untouched": 30, "both": 10}
    for kind in EDIT_KINDS:
        assert scores[kind]["edit"]["total"] == sum(edit.kind == kind for edit in edits)
