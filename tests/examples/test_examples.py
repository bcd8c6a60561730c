"""The notebook and the fine-tuning script run from end to end on a tiny checkpoint."""

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from showo_data.mini import draw, scene
from showo_dist.config import TrainConfig, load_file, to_yaml
from tests.conftest import ROOT, run_script

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_the_notebook_is_short_and_holds_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) < 20
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_the_notebook_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("SHOWO_CHECKPOINT", str(checkpoint))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=folder
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5


def test_fine_tuning_has_an_optimizer_of_its_own(tmp_path: Path) -> None:
    """Pre-training's Muon, its rate and the schedule of a tuning phase would be carried over otherwise."""
    changes = ["optimizer.trained=projector", "lr_scheduler.steps=9"]
    model = load_file(
        ROOT / "configs" / "mini" / "pretrain.yaml", TrainConfig, changes, check=False
    )
    assert model.optimizer.name == "muon"
    (tmp_path / "config.yaml").write_text(to_yaml(model))
    write_config = runpy.run_path(str(ROOT / "examples" / "finetune_folder.py"))["write_config"]
    for asked, name in (([], "adamw"), (["optimizer.name=muon"], "muon")):
        path = write_config(str(tmp_path), tmp_path, "photos/train-000000.tar", 8, asked)
        config = load_file(path, TrainConfig)
        assert (config.optimizer.name, config.optimizer.params.learning_rate) == (name, 1e-5)
        assert not config.trains_projector_alone and config.schedule_steps == 8


@pytest.mark.slow
def test_fine_tuning_on_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for index in range(6):
        draw(scene(0, index)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a red circle and {index} rings")
    command = ["examples/finetune_folder.py", str(folder), "--out", str(out)]
    options = ["--model", str(checkpoint), "--steps", "3", "training.batch_size_t2i=2"]
    printed = run_script(*command, *options, "training.mixed_precision=fp32", "wandb.mode=disabled")
    assert "6 samples of 6 inputs" in printed
    config = load_file(out / "checkpoint-000003" / "config.yaml", TrainConfig)
    assert config.experiment.init_from == str(checkpoint)
    with Image.open(out / "before-after.png") as grid:
        assert grid.width > 6 * 256
