"""The configs of other language models: they load, stage after stage, and have the public sizes."""

import pytest

from showo_dist.config import load_file
from showo_dist.config.rules import check
from showo_dist.config.schema import TrainConfig
from showo_dist.models.showo import empty_model
from tests.conftest import ROOT

CONFIGS = ROOT / "configs" / "backbones"
# Parameters of the published language model, and of its own tables: rows, and how many tables.
PUBLIC = {
    "llama3_8b": (8_030_261_248, 128_256, 2),
    "qwen2.5_1.5b": (1_543_714_304, 151_936, 1),
    "qwen2.5_3b": (3_085_938_688, 151_936, 1),
}
STAGES = (
    *("pretraining_stage1", "pretraining_stage2", "pretraining_stage3"),
    *(f"instruction_tuning_{phase}_w_clip_vit_512x512" for phase in (1, 2)),
    "reca_clip",
)


def opened(model: str, stage: str) -> TrainConfig:
    return load_file(CONFIGS / f"showo_{model}_{stage}.yaml", TrainConfig, check=False)


def test_every_model_has_every_stage() -> None:
    wanted = {f"showo_{model}_{stage}" for model in PUBLIC for stage in STAGES}
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == wanted
    assert {file.stem for file in (CONFIGS / "bases").glob("*.yaml")} == set(PUBLIC)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", PUBLIC)
def test_a_stage_is_the_published_one_with_another_model(model: str, stage: str) -> None:
    config = opened(model, stage)
    check(config, for_training=False)
    assert config.experiment.name == f"showo_{model}_{stage}"
    folder = "reca" if stage.startswith("reca") else "showo"
    published = load_file(ROOT / "configs" / folder / f"showo_{stage}.yaml", TrainConfig, (), False)
    for section in ("training", "optimizer", "lr_scheduler", "dataset"):
        assert getattr(config, section) == getattr(published, section), section
    assert config.model.showo.w_clip_vit == published.model.showo.w_clip_vit


@pytest.mark.parametrize("model", PUBLIC)
def test_parameters_are_the_public_ones(model: str) -> None:
    """Everything but the tables; with tables of the language model's own length, the number on its card."""
    public, rows, tables = PUBLIC[model]
    showo = empty_model(opened(model, "pretraining_stage1").model.showo)
    named = dict(showo.named_parameters())
    body = sum(p.numel() for name, p in named.items() if name not in showo.tables)
    assert body + tables * rows * showo.config.hidden_size == public
    assert {len(named[name]) for name in showo.tables} == {showo.config.vocab_size}
