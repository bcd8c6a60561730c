"""Random damages of model folders and checkpoints: weights of the same shapes, or one line."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from showo_dist.export.folders import export, import_model
from showo_dist.export.inspecting import inspect
from showo_dist.models.showo import build_showo
from showo_dist.models.weights.pretrained import load_showo
from tests.damages import PARTS, RANDOM, cases, damaged, digits, limited, words
from tests.parity.test_folders import SIZES
from tests.tiny import save_showo


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as safetensors, in shards, as ``pytorch_model.bin`` and as a checkpoint."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_showo(build_showo(SIZES), SIZES, root / "whole")
    export(root / "whole", root / "shards", shard_bytes=50_000)
    export(root / "whole", root / "bin", layout="showo")
    import_model(root / "whole", root / "checkpoint")
    return {name: root / name for name in ("whole", "shards", "bin", "checkpoint")}


@pytest.mark.usefixtures("case_limits")
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_weights(folders: dict[str, Path], tmp_path: Path, part: int) -> None:
    shapes = {
        name: tensor.shape for name, tensor in load_showo(folders["whole"]).state_dict().items()
    }
    for case in limited(cases(part)):
        rng = random.Random(f"weights/{case}")
        kind = rng.choice(list(folders))
        copy = tmp_path / str(case)
        shutil.copytree(folders[kind], copy, copy_function=os.link)
        path = rng.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
        whole = path.read_bytes()
        path.unlink()  # the others are links to the same files
        # In a large file, mostly its header or the directory at its end decides anything.
        head = rng.choice([0, max(0, len(whole) - 4096)])
        piece = damaged(whole[head : head + 4096], rng, [*RANDOM, digits, words])
        path.write_bytes(whole[:head] + piece + whole[head + 4096 :])
        try:
            model = load_showo(copy)
        except (OSError, ValueError) as error:
            assert str(copy) in str(error) and "\n" not in str(error), (case, error)
        else:
            assert {name: t.shape for name, t in model.state_dict().items()} == shapes, case
            changed = path.read_bytes() != whole
            assert not (changed and kind == "checkpoint" and path.suffix == ".safetensors"), case
        try:
            inspect(copy)
        except (OSError, ValueError) as error:
            assert "\n" not in str(error), (case, error)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora", 5),
        ("lora", {"rank": 0}),
        ("vocab_size", -1),
        ("llm_config", {"hidden_size": "x"}),
        ("llm_config", {"num_attention_heads": 0}),
        ("llm_config", {"hidden_act": "none"}),
    ],
)
def test_impossible_sizes_name_the_file(
    folders: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders["whole"], copy)
    values = json.loads((copy / "config.json").read_text())
    values[key] = {**values[key], **value} if key == "llm_config" else value  # type: ignore[dict-item]
    (copy / "config.json").write_text(json.dumps(values))
    for use in (
        load_showo,
        lambda f: import_model(f, tmp_path / "a"),
        lambda f: export(f, tmp_path / "b"),
    ):
        with pytest.raises(ValueError, match=r"config\.json: ") as raised:
            use(copy)
        assert "\n" not in str(raised.value)


ABSURD = [
    ("llm_config.num_hidden_layers", 10**6),
    ("llm_config.num_hidden_layers", 1),
    ("llm_config.hidden_size", 10**12),
    ("llm_config.rope_parameters.partial_rotary_factor", 1e9),
    ("llm_config.num_labels", 10**9),
    ("vocab_size", 10**12),
    ("clip_dim", 10**12),
    ("codebook_size", 10**15),
]


@pytest.mark.usefixtures("case_limits")
@pytest.mark.parametrize(("key", "value"), ABSURD)
def test_absurd_sizes_cost_no_memory(
    folders: dict[str, Path], tmp_path: Path, key: str, value: float
) -> None:
    """One line with file and key before anything of that size is made; the weights decide what may be."""
    copy = tmp_path / "model"
    shutil.copytree(folders["whole"], copy)
    values = json.loads((copy / "config.json").read_text())
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[last] = value
    (copy / "config.json").write_text(json.dumps(values))
    for use in limited(
        [
            load_showo,
            lambda f: import_model(f, tmp_path / "a"),
            lambda f: export(f, tmp_path / "b"),
        ],
        memory_mb=20,
    ):
        with pytest.raises(ValueError, match=rf"model/config\.json: {re.escape(key)}") as raised:
            use(copy)
        assert "\n" not in str(raised.value)


def test_more_positions_than_weights_are_no_absurd_size(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Rotary positions have no weights: a tiny model may have many."""
    copy = tmp_path / "model"
    shutil.copytree(folders["whole"], copy)
    values = json.loads((copy / "config.json").read_text())
    values["llm_config"]["max_position_embeddings"] = 10**9
    (copy / "config.json").write_text(json.dumps(values))
    load_showo(copy)


def _resaved(folder: Path, change: str) -> None:
    path = folder / "unwrapped_model/pytorch_model.bin"
    state = torch.load(path)
    name = next(name for name in state if name.endswith("fc1.weight"))
    changes = {
        "integers": lambda t: t.to(torch.int32),
        "complex": lambda t: t.to(torch.complex64),
        "sparse": lambda t: t.to_sparse(),
    }
    state[name] = changes[change](state[name])
    torch.save(state, path)


@pytest.mark.parametrize("change", ["integers", "complex", "sparse"])
def test_weights_are_dense_real_numbers(
    folders: dict[str, Path], tmp_path: Path, change: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders["bin"], copy)
    _resaved(copy, change)
    for use in (
        load_showo,
        lambda f: import_model(f, tmp_path / "a"),
        lambda f: export(f, tmp_path / "b"),
    ):
        with pytest.raises(ValueError, match=r"fc1\.weight"):
            use(copy)


def test_an_overflow_names_the_weight_and_the_flag(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders["bin"], copy)
    path = copy / "unwrapped_model/pytorch_model.bin"
    state = torch.load(path)
    state["showo.model.embed_tokens.weight"][3, 1] = -1e6
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"--dtype fp16: showo\.model\.embed_tokens\.weight.*1e\+06"
    ):
        export(copy, tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()
    export(copy, tmp_path / "out", dtype="bf16")


def test_a_shard_is_a_file_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("../x.safetensors", "", "x.bin", "/etc/passwd"):
        copy = tmp_path / "model"
        shutil.copytree(folders["shards"], copy, dirs_exist_ok=True)
        index = copy / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match="weight_map"):
            load_showo(copy)


def test_inspect_names_the_file_of_a_malformed_adapter_entry(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders["whole"], copy)
    values = json.loads((copy / "config.json").read_text())
    for entry in (5, {"rank": 0}, {"rank": 2, "alpha": "x", "base": "b", "base_sha256": "c"}):
        (copy / "config.json").write_text(json.dumps(values | {"lora": entry}))
        with pytest.raises(ValueError, match=r"config\.json: lora = "):
            inspect(copy)
