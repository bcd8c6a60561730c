"""Every family: saved by two ranks under ZeRO-2, resumed by three under ZeRO-3, exported and loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from showo_dist.checkpoint.writer import CheckpointWriter
from showo_dist.cli import main
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import CONFIG_NAME
from showo_dist.models.weights.pretrained import config_json, load_showo
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import pack
from tests.checkpoints.group import on_ranks
from tests.checkpoints.jobs import TinyRun
from tests.families import FAMILIES
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch, tiny_sizes

families = pytest.mark.parametrize("family", FAMILIES)
STEPS = 2


def saved(ranks: Ranks, root: Path) -> dict[str, dict[str, Any]]:
    """Train, save, train on, for all families."""
    found = {}
    for family in FAMILIES:
        run = TinyRun(ranks, 2, family=family).build()
        run.train(STEPS)
        texts = {CONFIG_NAME: config_json(tiny_sizes(family), run.model)}
        writer = CheckpointWriter(root / family, ExperimentConfig(), texts, timeout_s=300)
        folder = writer.save(run.engine, run.state())
        writer.finish()
        state = run.gathered()["weight"]
        found[family] = {"folder": folder, "weights": state, "losses": run.train(STEPS)}
        run.engine.raw.destroy()
    return found


def resumed(ranks: Ranks, folders: dict[str, Path]) -> dict[str, list[float]]:
    """The losses of as many steps behind each checkpoint."""
    losses = {}
    for family, folder in folders.items():
        run = TinyRun(ranks, 3, family=family).resumed(folder)
        losses[family] = run.train(STEPS)
        run.engine.raw.destroy()
    return losses


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return on_ranks(2, saved, tmp_path_factory.mktemp("families"))[0]


@pytest.fixture(scope="module")
def elsewhere(runs: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    return on_ranks(3, resumed, {family: run["folder"] for family, run in runs.items()})[0]


@pytest.mark.slow
@families
def test_resumes_on_other_ranks_and_another_stage(
    runs: dict[str, dict[str, Any]], elsewhere: dict[str, list[float]], family: str
) -> None:
    assert elsewhere[family] == pytest.approx(runs[family]["losses"], rel=1e-4)


def logits(model: ShowO) -> Tensor:
    batch = pack(global_batch()[::4], pad_id=VOCABULARY.pad, feature_width=model.feature_width)
    with torch.no_grad():
        return model.eval()(batch, logit_rows=torch.arange(batch.tokens))


@pytest.mark.slow
@families
def test_exports_and_loads(
    runs: dict[str, dict[str, Any]],
    tmp_path: Path,
    family: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit by bit, and the config alone describes the model: no language model has to be read."""
    folder, out = runs[family]["folder"], tmp_path / "out"
    assert main(["export", str(folder), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "embedding table" in capsys.readouterr().out
    model = load_showo(out)
    for name, tensor in runs[family]["weights"].items():
        assert torch.equal(model.state_dict()[name], tensor), name
    same = build_tiny(family=family)
    same.load_state_dict(runs[family]["weights"])
    same.attention = model.attention
    assert torch.equal(logits(model), logits(same))
