"""The image files of GenEval, DPG-Bench and WISE have the layout that their scorers read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from showo_dist.evaluation import dpg, wise
from showo_dist.evaluation.cli import main

QUICK = ["--steps", "2", "--device", "cpu", "--seed", "3"]


@pytest.fixture
def geneval_prompts(tmp_path: Path, world: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join((world / "prompts.jsonl").read_text().splitlines()[:3]) + "\n")
    return path


def _evaluate(framework: str, checkpoint: Path, prompts: Path, out: Path, *more: str) -> Path:
    arguments = ["--framework", framework, str(checkpoint), "--prompts", str(prompts)]
    assert main([*arguments, "--out", str(out), *QUICK, *more]) == 0
    return out


def _pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_geneval_folders(checkpoint: Path, geneval_prompts: Path, tmp_path: Path) -> None:
    out = _evaluate("geneval", checkpoint, geneval_prompts, tmp_path / "out")
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["00000", "00001", "00002"]
    lines = geneval_prompts.read_text().splitlines()
    everything = set()
    for folder, line in zip(folders, lines, strict=True):
        assert json.loads((out / folder / "metadata.jsonl").read_text()) == json.loads(line)
        files = sorted((out / folder / "samples").iterdir())
        assert [path.name for path in files] == [f"{n:05d}.png" for n in range(4)]
        everything |= {_pixels(path) for path in files}
    assert len(everything) == 12, "two samples have the same random numbers"


def test_a_sample_does_not_depend_on_how_many_there_are(
    checkpoint: Path, geneval_prompts: Path, tmp_path: Path
) -> None:
    few = _evaluate("geneval", checkpoint, geneval_prompts, tmp_path / "few", "--samples", "1")
    many = _evaluate("geneval", checkpoint, geneval_prompts, tmp_path / "many", "--batch", "3")
    for index in range(3):
        name = f"{index:05d}/samples/00000.png"
        assert _pixels(few / name) == _pixels(many / name)


@pytest.mark.parametrize(
    ("more", "samples", "steps", "guidance"),
    [
        (["--preset", "reca"], 12, 50, 5.0),
        (["--samples", "2", "--preset", "reca", "--steps", "3"], 2, 3, 5.0),
        ([], 4, 3, 1.5),
    ],
)
def test_presets(
    checkpoint: Path,
    geneval_prompts: Path,
    tmp_path: Path,
    more: list[str],
    samples: int,
    steps: int,
    guidance: float,
) -> None:
    """The preset gives what the command line leaves open; without it, rounds are the config's."""
    asked = ["--prompts", str(geneval_prompts), "--limit", "1", "--device", "cpu"]
    arguments = ["--framework", "geneval", str(checkpoint), *asked, "--out", str(tmp_path / "out")]
    assert main([*arguments, *more]) == 0
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    found = record["samples"], record["steps"], record["guidance"], record["budget"]
    assert found == (samples, steps, guidance, 128 if "--preset" in more else 32)
    assert len(list((tmp_path / "out" / "00000" / "samples").iterdir())) == samples


def test_a_preset_cuts_the_prompts_of_all_weights_alike(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two checkpoints, trained with budgets of 32 and 200 tokens, and a prompt of 150 words."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "few.txt").write_text("red red")
    (prompts / "many.txt").write_text(" ".join(["red"] * 150))
    other = tmp_path / "run" / "other"
    shutil.copytree(checkpoint, other)
    config = OmegaConf.load(other / "config.yaml")
    OmegaConf.update(config, "dataset.preprocessing.max_seq_length", 200)
    OmegaConf.save(config, other / "config.yaml")
    quick = ["--samples", "1", "--guidance", "0"]
    budgets = []
    for kind, more in (("preset", ["--preset", "reca"]), ("own", [])):
        for source in (checkpoint, other):
            out = tmp_path / kind / source.name
            _evaluate("dpg", source, prompts, out, *quick, *more)
            budgets.append(json.loads((out / "evaluation.json").read_text())["budget"])
    assert budgets == [128, 128, 32, 200]
    lines = [line for line in capsys.readouterr().out.splitlines() if " are cut" in line]
    wanted = "1 of 2 prompts are cut: they exceed the budget of {} tokens"
    assert lines == [wanted.format(budget) for budget in (128, 128, 32)]
    with pytest.raises(ValueError, match="budget 200, not 128"):
        _evaluate("dpg", other, prompts, out, *quick, "--preset", "reca")


def test_dpg_grids(checkpoint: Path, geneval_prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    texts = [json.loads(line)["prompt"] for line in geneval_prompts.read_text().splitlines()]
    for name, text in zip(["COCOval_1", "diffusiondb7", "partiprompts0"], texts, strict=True):
        (folder / f"{name}.txt").write_text(f"{text}\n")
    out = _evaluate("dpg", checkpoint, folder, tmp_path / "grids")
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == ["COCOval_1.png", "diffusiondb7.png", "partiprompts0.png"]
    # The samples have GenEval's random numbers: (seed, prompt, sample), in reading order.
    samples = _evaluate("geneval", checkpoint, geneval_prompts, tmp_path / "samples")
    with Image.open(out / "images" / names[1]) as grid:
        assert grid.size == (128, 128)
        for number in range(4):
            row, column = divmod(number, 2)
            box = (64 * column, 64 * row, 64 * column + 64, 64 * row + 64)
            path = samples / "00001" / "samples" / f"{number:05d}.png"
            assert grid.crop(box).convert("RGB").tobytes() == _pixels(path)
    with pytest.raises(ValueError, match="--samples 5: dpg takes at most 4"):
        _evaluate("dpg", checkpoint, folder, tmp_path / "five", "--samples", "5")


def test_dpg_prompts_from_the_table(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    path.write_text('item_id,text,proposition_id\nb1,"two, cats",1\nb1,"two, cats",2\na,dog,1\n')
    assert [(p.name, p.text) for p in dpg.read_prompts(path)] == [("b1", "two, cats"), ("a", "dog")]
    path.write_text("id,text\n")
    with pytest.raises(ValueError, match=r"dpg_bench\.csv: no column item_id"):
        dpg.read_prompts(path)
    with pytest.raises(ValueError, match=r"expected a folder of \.txt files"):
        dpg.read_prompts(tmp_path / "prompts.jsonl")


def _wise_list(path: Path, first: int, count: int) -> None:
    entries = [
        {"Prompt": f"prompt {number}", "prompt_id": number, "Category": "c"}
        for number in range(first, first + count)
    ]
    path.write_text(json.dumps(entries))


def test_wise_names(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    _wise_list(folder / "b.json", 1, 2)
    _wise_list(folder / "a.json", 401, 1)
    out = _evaluate("wise", checkpoint, folder, tmp_path / "out", "--samples", "2")
    for name in ("images", "images-1"):
        assert sorted(path.name for path in (out / name).iterdir()) == ["1.png", "2.png", "401.png"]
    with Image.open(out / "images" / "401.png") as image:
        assert image.info["prompt"] == "prompt 401" and image.info["seed"] == "3"
    _wise_list(folder / "c.json", 2, 1)
    with pytest.raises(ValueError, match=r"c\.json: prompt_id 2 is there a second time"):
        wise.read_prompts(folder)


def test_wise_rewritten_prompts_of_a_folder_are_left_out(tmp_path: Path) -> None:
    for name in ("a.json", "a_rewrite.json"):
        _wise_list(tmp_path / name, 1, 2)
    assert [prompt.name for prompt in wise.read_prompts(tmp_path)] == ["1", "2"]
    assert len(wise.read_prompts(tmp_path / "a_rewrite.json")) == 2


@pytest.mark.parametrize(
    ("framework", "text", "wanted"),
    [
        ("geneval", '{"prompt": "a"}\n{"tag": "b"}\n', r"prompts:2: .*prompt"),
        ("geneval", "", "holds no prompts"),
        ("wise", '{"Prompt": "a"}', "JSON list of objects with Prompt and prompt_id"),
    ],
)
def test_broken_prompts_are_named(
    framework: str, text: str, wanted: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts"
    path.write_text(text)
    with pytest.raises(ValueError, match=wanted):
        _evaluate(framework, checkpoint, path, tmp_path / "out")


def test_scorer_command_is_printed_until_it_ran(
    checkpoint: Path, geneval_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _evaluate("geneval", checkpoint, geneval_prompts, tmp_path / "out", "--samples", "1")
    shown = capsys.readouterr().out
    assert f"evaluation/evaluate_images.py {out} --outfile {out}/results.jsonl" in shown
    verdicts = [{"tag": "colors", "correct": True}, {"tag": "colors", "correct": False}]
    verdicts.append({"tag": "counting", "correct": True})
    (out / "results.jsonl").write_text("".join(f"{json.dumps(v)}\n" for v in verdicts))
    _evaluate("geneval", checkpoint, geneval_prompts, out, "--samples", "1")
    shown = capsys.readouterr().out
    assert "evaluate_images" not in shown and "75.00" in shown and "72.30" in shown
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert summary["scores"] == {"overall": 75.0, "colors": 50.0, "counting": 100.0}
    assert {"Show-o 512 CLIP + RecA", "Show-o 256 CLIP"} <= {
        r["model"] for r in summary["published"]
    }


def test_changed_metadata_delete_the_verdicts_that_went_by_them(
    checkpoint: Path, geneval_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _evaluate("geneval", checkpoint, geneval_prompts, tmp_path / "out", "--samples", "1")
    verdicts = out / "results.jsonl"
    verdicts.write_text('{"tag": "colors", "correct": true}\n' * 3)
    image = out / "00001" / "samples" / "00000.png"
    made = image.stat().st_mtime_ns
    _evaluate("geneval", checkpoint, geneval_prompts, out, "--samples", "1")
    assert verdicts.is_file(), "deleted, although nothing has changed"
    entries = [json.loads(line) for line in geneval_prompts.read_text().splitlines()]
    entries[1]["tag"] = "another"
    geneval_prompts.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    _evaluate("geneval", checkpoint, geneval_prompts, out, "--samples", "1")
    assert json.loads((out / "00001" / "metadata.jsonl").read_text())["tag"] == "another"
    assert not verdicts.exists() and image.stat().st_mtime_ns == made
    assert "metadata of 1 prompts have changed" in capsys.readouterr().out


def test_an_incomplete_result_file_is_an_error_unless_the_scorer_is_still_to_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "one.txt").write_text("a red circle")
    out = _evaluate("dpg", checkpoint, prompts, tmp_path / "out", "--samples", "1")
    partial = "/x/one.png, 0.5, 0.5\n"
    (out / "results.txt").write_text(partial)
    with pytest.raises(ValueError, match="the scorer has not finished"):
        _evaluate("dpg", checkpoint, prompts, out, "--samples", "1")
    capsys.readouterr()
    _evaluate("dpg", checkpoint, prompts, out, "--samples", "1", "--allow-unscored")
    assert "ready to be scored" in capsys.readouterr().out
    assert (out / "results.txt").read_text() == partial
    (out / "results.txt").write_text(f"{partial}DPG-Bench score: 50.0\n")
    _evaluate("dpg", checkpoint, prompts, out, "--samples", "1", "--allow-unscored")
    assert json.loads((out / "summary.json").read_text())["scores"] == {"overall": 50.0}
