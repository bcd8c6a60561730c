"""Model folders that other programs wrote: one line with file and reason, from every command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from showo_dist.cli import main
from showo_dist.models.showo import build_showo
from showo_dist.models.weights.pretrained import load_showo
from tests.stages.test_initial import sizes
from tests.tiny import save_showo

Damage = Callable[[Path], None]


def as_bin(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Replace the weights by a ``pytorch_model.bin`` of something else."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(change(weights), folder / "pytorch_model.bin")

    return damage


def prefixed(prefix: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({prefix + name: value for name, value in load_file(path).items()}, path)

    return damage


def config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


CASES: dict[str, tuple[Damage, str]] = {
    "state_dict": (
        as_bin(lambda w: {"state_dict": w, "epoch": 3}),
        "inside the entry 'state_dict'",
    ),
    "module": (as_bin(lambda w: {"module": w}), "inside the entry 'module'"),
    "list": (as_bin(lambda w: list(w.values())), "it holds a list"),
    "scalar": (as_bin(lambda w: {**w, "step": 7}), "the entry 'step' is a int"),
    "module.": (prefixed("module."), "every weight name begins with 'module.'"),
    "model.": (prefixed("model."), "every weight name begins with 'model.'"),
    "_orig_mod.": (prefixed("_orig_mod."), "every weight name begins with '_orig_mod.'"),
    "config is a list": (config(lambda c: [c]), "config.json: expected an object"),
    "text for a number": (
        config(lambda c: {**c, "vocab_size": str(c["vocab_size"])}),
        "expected an integer",
    ),
    "number for a flag": (config(lambda c: {**c, "w_clip_vit": 1}), "expected true or false"),
}
COMMANDS = {
    "inspect": lambda folder: ["inspect", str(folder)],
    "export": lambda folder: [
        *("export", str(folder), "--to", "showo"),
        *("--out", f"{folder}-out"),
    ],
    "import": lambda folder: ["import", str(folder), "--out", f"{folder}-out"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    showo = sizes(20, 8)
    save_showo(build_showo(showo), showo, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("case", CASES)
def test_every_command_says_what_is_wrong_in_one_line(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = CASES[case]
    damage(folder)
    with pytest.raises(ValueError) as caught:
        load_showo(folder)
    assert expected in str(caught.value) and str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    for name, command in COMMANDS.items():
        assert main(command(folder)) == 2, name
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert expected in line and line.startswith(f"showo-dist {name}: {folder}"), line


def test_a_sound_folder_still_loads(folder: Path) -> None:
    as_bin(lambda weights: weights)(folder)
    load_showo(folder)
