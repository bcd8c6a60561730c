"""A row of a paper in one folder: missing inputs, the plan, and the whole miniature on 1 and 2 ranks."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from showo_data.files import claim
from showo_dist.evaluation import dpg, geneval, wise
from showo_dist.evaluation.cli import build_parser
from showo_dist.evaluation.results import REFERENCES
from showo_dist.recipe import stand_in_scorers
from showo_dist.recipe.cli import as_arguments
from showo_dist.recipe.estimate import show_plan
from showo_dist.recipe.reproduce import CONFIGS, MINIATURE, WANTED, main, pattern_of, read_kit
from showo_dist.recipe.reproduction import commit, digest_of, portable, settings
from tests.conftest import ROOT

ROWS = sorted(path.stem for path in (ROOT / CONFIGS).glob("*.yaml"))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command reads configs from the working folder, and works in the reproduction's."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    """A key and a path for each input; only names are looked at."""
    found = {}
    for key in WANTED:
        if not key.startswith("weights."):
            (tmp_path / key).write_bytes(b"x" * 1000)
            found[key] = str(tmp_path / key)
    return found


def given(values: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def test_every_missing_input_is_a_line_with_its_key(inputs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        main(["reca-512-clip"])
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == list(inputs)
    for key in inputs:
        with pytest.raises(ValueError) as caught:
            main(["reca-512-clip", *given(inputs | {key: f"{tmp_path}/gone"})])
        assert str(caught.value).startswith(f"{key} = {tmp_path}/gone: nothing is there")
        assert "\n" not in str(caught.value)
    # A benchmark that is not run needs no prompts.
    with pytest.raises(ValueError) as caught:
        main(["reca-512-clip", "benchmarks=[dpg]"])
    assert "brivangl/midjourney-v6-llava" in str(caught.value)
    assert "wise" not in str(caught.value) and "dpg.prompts is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("reca-512-cli", [], ["reca-512-cli", "reca-512-clip"]),
        ("reca-512-clip", ["benchmarks=[geneva]"], ["benchmarks", "geneva", "geneval"]),
        ("reca-512-clip", ["preset=rec"], ["preset = rec", "geneval", "reca"]),
        ("reca-512-clip", ["data.recom=a"], ["data.recom", "data.recon"]),
        ("reca-512-clip", ["weights.start=null"], ["weights.start"]),
        ("reca-512-clip", ["changes.training.sed=1"], ["training.sed", "training.seed"]),
        ("reca-512-clip", ["ranks=3"], ["ranks = 3", "1, 5", "generation_ranks"]),
    ],
)
def test_mistakes(
    name: str, changes: list[str], words: list[str], inputs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError) as caught:
        main([name, *given(inputs), *changes, "--out", str(out)])
    for word in words:
        assert word in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_paper(name: str) -> None:
    """Every row is trained as published, from released weights, on the ranks that can share its batch."""
    samples = {}
    for ranks in (1, 5):
        kit = read_kit(name, [f"ranks={ranks}"], miniature=False)
        (ready,) = kit.trainings()
        training, model = ready.config.training, ready.config.model
        micro = ranks * training.gradient_accumulation_steps
        samples[ranks] = training.batch_size_mmu * micro, training.batch_size_recon * micro
        assert (training.max_train_steps, training.seed) == (5000, 10086)
        assert ready.config.optimizer.params.learning_rate == 5e-7
        assert model.showo.w_clip_vit == name.endswith("-clip")
        assert ready.config.start_from == kit.config.weights.start
        assert kit.checkpoints()[1].endswith("/reca/checkpoint-005000")
    assert samples[1] == samples[5] == {256: (20, 20)}.get(resolution(ready.config), (10, 10))
    known = {reference.model for reference in REFERENCES}
    assert kit.config.row in known
    assert name == "reca-512" or f"{kit.config.row} + RecA" in known


def resolution(config: Any) -> int:
    return int(config.dataset.preprocessing.resolution)


def test_a_folder_holds_one_reproduction(tmp_path: Path) -> None:
    """The ranks may change between calls; the training may not."""
    begun = settings(read_kit("reca-512-clip", [], miniature=True))
    for same in (["ranks=2"], ["generation_ranks=3", "geneval.scorer=null"]):
        assert settings(read_kit("reca-512-clip", same, miniature=True)) == begun
    claim(tmp_path, "begun-with.json", begun, "a reproduction")
    other = settings(read_kit("reca-512-clip", ["changes.training.seed=3"], miniature=True))
    with pytest.raises(ValueError, match=r"reca: training\.seed 10086, not 3"):
        claim(tmp_path, "begun-with.json", other, "a reproduction")


def test_inputs_are_found_from_the_reproductions_folder(
    inputs: dict[str, str],
) -> None:
    names = {key: os.path.relpath(path) for key, path in inputs.items()}
    kit = read_kit("reca-512-clip", given(names), miniature=False)
    found = [*kit.config.convert["recon"][1:], *kit.config.convert["mmu"][1::2]]
    found.append(str(kit.config.geneval.prompts))
    keys = ("data.recon", "data.llava", "data.llava_images", "geneval.prompts")
    assert all(path.startswith("/") for path in found)
    assert [os.path.abspath(path) for path in found] == [inputs[key] for key in keys]
    assert kit.config.weights.vq == "showlab/magvitv2"


def test_patterns_of_shards(tmp_path: Path) -> None:
    assert pattern_of(tmp_path).endswith("/train-{000000..LAST}.tar")
    for number in range(12):
        (tmp_path / f"train-{number:06d}.tar").touch()
    assert pattern_of(tmp_path).endswith("/train-{000000..000011}.tar")


def test_the_plan_has_commands_hours_and_disk(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = yaml.safe_load((CONFIGS / MINIATURE).read_text())["changes"]
    changes = [*as_arguments({"changes": small}), "changes.training.mixed_precision=bf16"]
    Path(inputs["geneval.prompts"]).write_text('{"prompt": "a", "tag": "b"}\n' * 3)
    Path(inputs["dpg.prompts"]).rename(tmp_path / "dpg.csv")
    (tmp_path / "dpg.csv").write_text("item_id,text\n1,a\n2,b\n")
    named = [*given(inputs), f"dpg.prompts={tmp_path}/dpg.csv", "benchmarks=[geneval,dpg]"]
    kit = read_kit("reca-256-clip", [*named, *changes, "micro_batches=2", "ranks=2"], False)
    out = tmp_path / "deep" / "out"
    assert show_plan(kit, out, "h100", ["wise.prompts is missing"]) == 0
    printed = capsys.readouterr().out
    assert not out.exists() and not (ROOT / "not-comparable").exists()
    steps = [line[3:] for line in printed.splitlines() if line.startswith("== ")]
    assert steps == ["convert recon", "convert mmu", "reca", "geneval", "dpg"]
    for word in (f"from-parquet {inputs['data.recon']}", "--nproc-per-node 2", "--preset reca"):
        assert word in printed
    # 3 prompts of 12 samples and 2 of 4, before and after training; 4 checkpoints of 12 bytes a parameter.
    assert "geneval: " in printed and "72 images, 50 rounds" in printed and "16 images" in printed
    assert "reca: 0.0 h, " in printed and "showo-dist plan: 4 steps of" in printed
    assert printed.splitlines()[-1] == "wise.prompts is missing"


def test_stand_in_scorers_write_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black over white is wrong, white over black is right."""
    monkeypatch.chdir(tmp_path)
    right = Image.new("RGB", (8, 8))
    right.paste((255, 255, 255), (0, 0, 8, 4))
    wrong = right.rotate(180)
    grid = Image.new("RGB", (16, 16))
    for number, image in enumerate((right, wrong, wrong, wrong)):
        grid.paste(image, (8 * (number % 2), 8 * (number // 2)))
    for number, image in enumerate((right, right, wrong)):
        samples = tmp_path / "geneval" / "00000" / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        image.save(samples / f"{number:05d}.png")
    (samples.parent / "metadata.jsonl").write_text('{"tag": "colors", "prompt": "a"}\n')
    for name in ("dpg", "wise"):
        (tmp_path / name / "images").mkdir(parents=True)
    grid.save(tmp_path / "dpg" / "images" / "colors.png")
    right.save(tmp_path / "wise" / "images" / "1.png")
    wrong.save(tmp_path / "wise" / "images" / "2.png")
    for name, write in stand_in_scorers.SCORERS.items():
        write(tmp_path / name)
    assert geneval.scores(tmp_path / "geneval", 1, 3)["overall"] == pytest.approx(200 / 3)
    assert geneval.chances(tmp_path / "geneval").scores == [100, 100, 0]
    assert dpg.scores(tmp_path / "dpg", 1, 4)["overall"] == 25
    assert dpg.chances(tmp_path / "dpg").scores == [100, 0, 0, 0]
    assert wise.chances(tmp_path / "wise").scores[0] > wise.chances(tmp_path / "wise").scores[1]
    assert set(wise.scores(tmp_path / "wise", 2, 1)) == {"overall"}


FEW = [
    *("geneval.limit=2", "geneval.samples=3", "dpg.limit=2", "wise.limit=2", "batch=8"),
    "changes.training.max_train_steps=2",
]


def start(out: Path, *changes: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "showo_dist.cli", "reproduce", "reca-512-clip", "--miniature"]
    return subprocess.Popen(
        [*command, "--out", str(out), *FEW, *changes],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]
    return output


def comparable(out: Path) -> dict[str, bytes]:
    """All files but those in the folder that is named as not comparable."""
    files = (path for path in out.rglob("*") if path.is_file())
    names = {str(path.relative_to(out)): path for path in files}
    return {n: path.read_bytes() for n, path in names.items() if not n.startswith("not-")}


def test_digests_of_images_do_not_depend_on_their_text_entries(tmp_path: Path) -> None:
    """They name the paths of inputs, which differ between machines."""
    digests = []
    for number, (shade, text) in enumerate([(7, "/data/show-o"), (7, "showlab/show-o"), (8, "")]):
        folder, about = tmp_path / str(number), PngInfo()
        folder.mkdir()
        about.add_text("checkpoint", text)
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(folder / "a.png", pnginfo=about)
        digests.append(digest_of(folder))
    assert digests[0] == digests[1] != digests[2]


def test_a_printed_command_runs_from_a_folder_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lists = tmp_path / "lists"
    command = shlex.join(["echo", f"{folder}/a b", f"{folder}2/x", "it's", f"{lists}/1.json"])
    shown = portable(portable(command, str(lists)), str(lists))
    assert str(folder) + "/" not in shown and str(lists) not in shown
    printed = subprocess.run(
        ["sh", "-c", shown],
        env={"REPRODUCTION": str(folder), "PROMPTS": str(lists)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == f"{folder}/a b {folder}2/x it's {lists}/1.json\n"


def test_a_scorer_to_come_may_have_left_an_incomplete_file() -> None:
    """Generation comes before the scorer, so an incomplete file must not end it; without a scorer it does."""
    kit = read_kit("reca-512-clip", ["wise.scorer=null"], miniature=True)
    for name in ("geneval", "dpg", "wise"):
        (command,) = kit._generate(name).commands
        words = command[command.index("evaluate") + 1 :]
        assert build_parser(words).parse_args(words).allow_unscored == (name != "wise")


@pytest.mark.parametrize(
    "change",
    [
        "changes.training.gradient_accumulation_steps=7",
        "stages.reca.changes.training.gradient_accumulation_steps=3",
        "stages.reca.ranks=2",
    ],
)
def test_an_update_keeps_its_micro_batches(change: str) -> None:
    kit = read_kit("reca-512-clip", [change], miniature=True)
    with pytest.raises(ValueError, match=re.escape(change.partition("=")[0])):
        kit.trainings()


@pytest.mark.parametrize("git", ["", "#!/bin/sh\nexit 128\n"], ids=["absent", "refuses"])
def test_a_commit_that_git_does_not_tell_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: str
) -> None:
    if git:
        (tmp_path / "git").write_text(git)
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit().startswith("unknown: ")


@pytest.mark.story
def test_the_miniature_is_the_same_on_one_rank_and_two(tmp_path: Path) -> None:
    """Two folders at once, of which the second has one benchmark, and is scored by a second call."""
    one, two = tmp_path / "one", tmp_path / "elsewhere" / "two"
    other = ("ranks=2", "benchmarks=[geneval]")
    for process in (start(one), start(two, *other, "geneval.scorer=null")):
        ended(process)
    page = (two / "REPRODUCTION.md").read_text()
    assert "| geneval | trained | missing |" in page and str(tmp_path) not in page
    assert (
        '    python evaluation/evaluate_images.py "$REPRODUCTION"/geneval/reca-checkpoint-000002 '
        in page
    )
    gone = next(two.glob("geneval/reca-*/00000/samples/00001.png"))
    gone.unlink()
    # As of a scorer that was killed.
    (gone.parents[2] / "results.jsonl").write_text('{"tag": "colors", "correct": true}\n')
    output = ended(start(two, *other))
    assert output.count("done before") == 4 and output.count("== score geneval/") == 4
    assert gone.is_file()
    # Nothing but its own images and results tells whether a benchmark is done.
    shutil.rmtree(two / "geneval")
    output = ended(start(two, *other))
    assert output.count("done before") == 4 and output.count("== score geneval/") == 4
    found, again = comparable(one), comparable(two)
    assert not any(str(tmp_path).encode() in content for content in found.values())
    result, shorter = (json.loads(files["reproduction.json"]) for files in (found, again))
    assert shorter == result | {"benchmarks": result["benchmarks"][:2]}
    pages = ("reproduction.json", "REPRODUCTION.md")
    assert all(found[name] == again[name] for name in again if name not in pages)
    assert sum(name.startswith("geneval/") for name in found) == len(again) - 3
    assert [one["benchmark"] for one in result["benchmarks"]] == [
        *2 * ["geneval"],
        *2 * ["dpg"],
        *2 * ["wise"],
    ]
    assert all(one["scores"] and one["interval"] for one in result["benchmarks"])
    start_weights, trained = (one["weights_sha256"] for one in result["benchmarks"][:2])
    assert start_weights != trained
    assert result["data"]["recon"]["samples"] == result["data"]["mmu"]["samples"] == 16
    folder = result["benchmarks"][1]["folder"]
    assert sum(name.startswith(f"{folder}/") and name.endswith(".png") for name in found) == 2 * 3
    with Image.open(one / folder / "00000" / "samples" / "00002.png") as image:
        assert image.size == (64, 64) and image.info["guidance"] == "5.0"
    assert "A miniature" in found["REPRODUCTION.md"].decode()
