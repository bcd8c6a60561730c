"""The configs with published names have the published values."""

import ast
import re
from copy import deepcopy
from dataclasses import asdict
from functools import cache, reduce
from typing import Any

import pytest

from showo_dist.config import TrainConfig, active_flows, load_file
from showo_dist.config.rules import check, missing_data, warnings_about
from tests.config.conftest import CONFIGS

FACT = re.compile(r"`([\w.]+)` (?:= )?('[^']*'|[^;\n]+)")

TUNING = [
    f"showo_instruction_tuning_{phase}{clip}{size}"
    for phase in (1, 2)
    for clip in ("", "_w_clip_vit")
    for size in ("", "_512x512")
]
DEMOS = [f"showo_demo{clip}{size}" for clip in ("", "_w_clip_vit") for size in ("", "_512x512")]
STAGES = [f"showo_pretraining_stage{stage}" for stage in (1, 2, 3)]
RECA = ["showo_reca", "showo_reca_256_clip", "showo_reca_blur8", "showo_reca_clip"]
FOLDERS = dict.fromkeys(TUNING + DEMOS + STAGES, "showo") | dict.fromkeys(RECA, "reca")


@cache
def open_config(name: str) -> TrainConfig:
    config = load_file(CONFIGS / FOLDERS[name] / f"{name}.yaml", TrainConfig, check=False)
    check(config, for_training=False)
    return config


def value_of(config: TrainConfig, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def parse_facts(line: str) -> dict[str, Any]:
    return {key: ast.literal_eval(text.strip()) for key, text in FACT.findall(line)}


def matches(config: TrainConfig, key: str, fact: Any) -> bool:
    if isinstance(fact, str) and fact.startswith("${"):
        fact = value_of(config, fact[2:-1])
    value = value_of(config, key)
    if isinstance(value, float) and isinstance(fact, str):
        fact = float(fact)
    return value == fact and isinstance(value, bool) == isinstance(fact, bool)


def test_exactly_the_published_names_exist() -> None:
    for folder in ("showo", "reca"):
        expected = {name for name, place in FOLDERS.items() if place == folder}
        assert {file.stem for file in (CONFIGS / folder).glob("*.yaml")} == expected
    assert len(FOLDERS) == 19


@pytest.mark.parametrize("name", FOLDERS)
def test_every_listed_value_is_matched(name: str, published_values: str) -> None:
    general = parse_facts(published_values.split("## Where they differ")[0])
    (line,) = re.findall(rf"^\*\*{name}\*\*: (.*)$", published_values, flags=re.MULTILINE)
    own = parse_facts(line)
    assert len(general) == 14 and len(own) >= 10
    config = open_config(name)
    facts = general | own
    assert {key for key in facts if not matches(config, key, facts[key])} == set()


@pytest.mark.parametrize("name", FOLDERS)
def test_hub_ids(name: str, published_values: str) -> None:
    (line,) = re.findall(rf"^\* {name}: (.*)$", published_values, flags=re.MULTILINE)
    model = open_config(name).model
    ids = {
        model.showo.llm_model_path,
        model.vq_model.vq_model_name,
        model.showo.pretrained_model_path,
    }
    assert ids == set(line.split(", "))


# name, active flows, resolution, image tokens, text budget, CLIP, learning rate, steps, accumulation
COMPACT = [
    ("showo_pretraining_stage1", "t2i=15 lm=4 mmu=10", 256, 256, 128, False, 1e-4, 500_000, 1),
    ("showo_pretraining_stage2", "t2i=10 lm=4 mmu=10", 256, 256, 128, False, 1e-4, 1_000_000, 1),
    ("showo_pretraining_stage3", "t2i=10 lm=4 mmu=10", 256, 256, 128, False, 2e-5, 50_000, 1),
    ("showo_instruction_tuning_1", "t2i=4 lm=2 mmu=7", 256, 256, 381, False, 2e-5, 10_000, 1),
    ("showo_instruction_tuning_2", "t2i=4 lm=2 mmu=6", 256, 256, 381, False, 5e-5, 14_000, 1),
    (
        "showo_instruction_tuning_1_w_clip_vit_512x512",
        *("t2i=2 lm=2 mmu=10", 512, 1024, 512, True, 2e-3, 7_000, 1),
    ),
    (
        "showo_instruction_tuning_2_w_clip_vit_512x512",
        *("t2i=3 lm=1 mmu=4", 512, 1024, 576, True, 1e-4, 19_600, 1),
    ),
    ("showo_reca", "mmu=2 recon=2", 512, 1024, 381, False, 5e-7, 1_000_000, 5),
    ("showo_reca_blur8", "mmu=2 recon=2", 512, 1024, 381, False, 5e-7, 1_000_000, 5),
    ("showo_reca_clip", "mmu=2 recon=2", 512, 1024, 576, True, 5e-7, 1_000_000, 5),
    ("showo_reca_256_clip", "mmu=4 recon=4", 256, 256, 576, True, 5e-7, 10_000, 5),
]


@pytest.mark.parametrize("row", COMPACT, ids=lambda row: row[0])
def test_compact_facts(row: tuple[Any, ...]) -> None:
    config = open_config(row[0])
    training = config.training
    flows = " ".join(f"{flow.name}={flow.batch_size}" for flow in active_flows(config).values())
    assert (row[0], flows) == row[:2]
    assert row[2:] == (
        config.dataset.preprocessing.resolution,
        config.model.showo.num_vq_tokens,
        config.dataset.preprocessing.max_seq_length,
        config.model.showo.w_clip_vit,
        config.optimizer.params.learning_rate,
        training.max_train_steps,
        training.gradient_accumulation_steps,
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_only_data_paths_are_to_fill_in(name: str) -> None:
    config = deepcopy(open_config(name))
    flows = active_flows(config).values()
    assert [line.split()[0] for line in missing_data(config)] == [flow.path_key for flow in flows]
    if name in DEMOS:
        with pytest.raises(ValueError, match="no flow is on"):
            check(config)
    else:
        with pytest.raises(ValueError, match="is empty"):
            check(config)
        for flow in flows:
            setattr(
                config.dataset.params, flow.path_key.rpartition(".")[2], "shards/{000..099}.tar"
            )
        check(config)


def test_blur_and_half_size_conditions() -> None:
    half, blur = open_config("showo_reca").training, open_config("showo_reca_blur8").training
    assert (half.down_scale, half.resize_back) == (2, False)
    assert (blur.down_scale, blur.resize_back) == (8, True)


@pytest.mark.parametrize("name", ["pretrain", "reca"])
def test_mini_configs_are_ready_to_train(name: str) -> None:
    config = load_file(CONFIGS / "mini" / f"{name}.yaml", TrainConfig)
    assert warnings_about(config) == []
    assert (
        set(active_flows(config))
        == {
            "pretrain": {"t2i", "lm", "mmu"},
            "reca": {"mmu", "recon"},
        }[name]
    )


def test_no_absolute_path_in_the_configs() -> None:
    for file in CONFIGS.rglob("*.yaml"):
        assert not re.search(r"[\s\"'\[](/|~)\w", file.read_text()), file


def test_each_file_has_only_its_differences() -> None:
    for name, folder in FOLDERS.items():
        text = (CONFIGS / folder / f"{name}.yaml").read_text()
        assert "base: " in text and len(text.splitlines()) <= 8, name


def test_resolved_configs_differ_pairwise() -> None:
    resolved = [asdict(open_config(name)) for name in FOLDERS]
    assert all(a != b for i, a in enumerate(resolved) for b in resolved[:i])
