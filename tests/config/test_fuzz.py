"""Random damages of config files and arguments: a config, or lines that name the key or the file."""

import random
from pathlib import Path

import pytest
import yaml

from showo_dist.config import TrainConfig, load
from tests.damages import PARTS, RANDOM, cases, damaged, digits, limited, words

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(ROOT.glob("*/*.yaml"))


@pytest.mark.usefixtures("case_limits")
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_configs(tmp_path: Path, part: int) -> None:
    for case in limited(cases(part)):
        rng = random.Random(f"config/{case}")
        source, path = rng.choice(FILES), tmp_path / f"{case}.yaml"
        path.write_bytes(damaged(source.read_bytes(), rng, [*RANDOM, digits, words]))
        argument = damaged(b"training.max_train_steps=7", rng, [*RANDOM, digits])
        extra = [argument.decode("utf-8", "surrogateescape")] if rng.random() < 0.3 else []
        try:
            config = load([f"config={path}", *extra], TrainConfig)
        except ValueError as error:
            assert str(error).strip(), case
        else:
            assert isinstance(config, TrainConfig)
        path.unlink()


@pytest.mark.parametrize("value", [5, 0, False, "", {"a": 1}, [3]])
def test_a_base_that_is_no_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"base": value}))
    with pytest.raises(ValueError, match=str(tmp_path)):
        load([f"config={path}"], TrainConfig)


@pytest.mark.parametrize("text", ["5", "1.5", "true", "[1]"])
def test_a_file_without_sections_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        load([f"config={path}"], TrainConfig)
