"""Checkpoint to model folder and back: exact, with the released names, one shard at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from showo_dist.cli import main
from showo_dist.config.model import ShowoConfig
from showo_dist.export import folders as writing
from showo_dist.export.folders import export, import_model
from showo_dist.models.showo import ShowO, build_showo, empty_model
from showo_dist.models.weights.pretrained import config_json, load_showo
from showo_dist.models.weights.sources import open_weights
from showo_dist.sequences import pack
from showo_dist.sequences.builders import lm
from showo_dist.sequences.vocabulary import Vocabulary
from tests.parity.test_folders import SIZES
from tests.tiny import save_showo

LAYOUTS = ["showo", "safetensors"]


def logits(model: ShowO) -> Tensor:
    sequence = lm([3, 1, 4, 1, 5], 20, Vocabulary(text=42, codebook=8, bos=0))
    batch = pack([sequence], pad_id=42, feature_width=model.feature_width)
    with torch.no_grad():
        return model.eval()(batch, logit_rows=torch.arange(batch.tokens))


def weights_of(folder: Path) -> dict[str, Tensor]:
    source = open_weights(folder)
    return {name: source.read(name) for name in source.meta}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a projector, as a plain folder."""
    torch.manual_seed(0)
    save_showo(build_showo(SIZES), SIZES, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("shard_bytes", "one"), [(1, False), (10**9, True)])
def test_all_files_of_an_export_have_the_same_permissions(
    folder: Path, tmp_path: Path, shard_bytes: int, one: bool
) -> None:
    export(folder, tmp_path / "out", shard_bytes=shard_bytes)
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert ("model.safetensors" in modes) == one
    assert set(modes.values()) == {modes["config.json"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_round_trip_is_exact(checkpoint: Path, tmp_path: Path, layout: str) -> None:
    """Two ranks' ZeRO-3 parts -> folder -> checkpoint -> folder: the same bits and the same logits."""
    wanted = load_showo(checkpoint)
    out, back, again = tmp_path / "out", tmp_path / "back", tmp_path / "again"
    assert main(["export", str(checkpoint), "--to", layout, "--out", str(out)]) == 0
    assert torch.equal(logits(load_showo(out)), logits(wanted))
    assert_equal(weights_of(out), weights_of(checkpoint))
    assert main(["import", str(out), "--out", str(back), "--shard-gb", "1e-5"]) == 0
    assert len(list(back.glob("model-*.safetensors"))) > 2
    assert_equal(weights_of(back), weights_of(checkpoint))
    export(back, again, layout=layout)
    names = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    assert names == [p.relative_to(again) for p in sorted(again.rglob("*")) if p.is_file()]
    for name in names:
        assert (out / name).read_bytes() == (again / name).read_bytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_a_layout(folder: Path, tmp_path: Path, layout: str) -> None:
    export(folder, tmp_path / "out", layout=layout)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    if layout == "safetensors":
        assert names == {"config.json", "model.safetensors"}
        return
    inner = {"unwrapped_model/config.json", "unwrapped_model/pytorch_model.bin"}
    assert names == {"config.json", *inner}
    # Both the folder and the part that the published code reads can be loaded.
    state = torch.load(tmp_path / "out/unwrapped_model/pytorch_model.bin", weights_only=True)
    assert_equal(state, weights_of(folder))
    wanted = logits(load_showo(folder))
    for place in ("out", "out/unwrapped_model"):
        assert torch.equal(logits(load_showo(tmp_path / place)), wanted)


def test_shards_are_written_as_they_fill(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shard is larger than the limit, unless a single tensor is."""
    limit, held = 6000, []
    plain = writing.save_tensors

    def watched(tensors: dict[str, Tensor], path: Path) -> None:
        held.append([tensor.nbytes for tensor in tensors.values()])
        plain(tensors, path)

    monkeypatch.setattr(writing, "save_tensors", watched)
    export(folder, tmp_path / "out", shard_bytes=limit)
    assert len(held) > 5
    assert all(sum(sizes) <= limit or len(sizes) == 1 for sizes in held)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    places = index["weight_map"]
    assert set(places.values()) == {
        f"model-{i + 1:05d}-of-{len(held):05d}.safetensors" for i in range(len(held))
    }
    for name, file in places.items():
        with safe_open(tmp_path / "out" / file, framework="pt") as shard:
            assert name in shard.keys()  # noqa: SIM118
    assert_equal(weights_of(tmp_path / "out"), weights_of(folder))


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_dtypes(folder: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    export(folder, tmp_path / "out", dtype=name)
    wanted = {name: tensor.to(dtype) for name, tensor in weights_of(folder).items()}
    assert_equal(weights_of(tmp_path / "out"), wanted)
    import_model(tmp_path / "out", tmp_path / "back")  # checkpoints are fp32
    assert_equal(weights_of(tmp_path / "back"), {n: t.float() for n, t in wanted.items()})


@pytest.mark.parametrize(("key", "clip"), [("showo", False), ("showo_clip", True)])
def test_full_size_names_and_shapes(manifest: dict, tmp_path: Path, key: str, clip: bool) -> None:
    """A folder of the published sizes has the released names, and its config gives them back."""
    showo = ShowoConfig(w_clip_vit=clip)
    (tmp_path / "config.json").write_text(config_json(showo, empty_model(showo)))
    again = ShowoConfig(
        **{
            name: value
            for name, value in json.loads((tmp_path / "config.json").read_text()).items()
            if name in ShowoConfig.__dataclass_fields__
        }
    )
    shapes = {name: list(t.shape) for name, t in empty_model(again).state_dict().items()}
    assert shapes == manifest[key]


def test_a_failure_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def stop(names: object) -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(folder, tmp_path / "out", track=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "MODEL", "--out", "MODEL"], ["--out", "exists already"]),
        (["export", "no/such", "--out", "OUT"], ["no/such"]),
        (["export", "MODEL", "--out", "OUT", "--shard-gb", "0"], ["--shard-gb 0.0"]),
        (["import", "MODEL", "--out", "checkpoint-000000"], ["checkpoint-000000", "otherwise"]),
        (["inspect", "no/such"], ["no/such"]),
    ],
)
def test_mistakes(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    places = {"MODEL": str(folder), "OUT": str(tmp_path / "out")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


def test_a_damaged_checkpoint_is_not_exported(folder: Path, tmp_path: Path) -> None:
    import_model(folder, tmp_path / "ours")
    path = tmp_path / "ours" / "model-00001-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model-00001-of-00001\.safetensors"):
        export(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inspect_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_model(folder, tmp_path / "ours")
    assert main(["inspect", str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    model = load_showo(folder)
    total = sum(p.numel() for p in model.parameters())
    table = model.showo.model.embed_tokens.weight.numel()
    for words in ("all checksums match", "weights only", f"{total:,}", f"{table:,}", "float32"):
        assert words in printed, words
    for path in (tmp_path / "ours").iterdir():
        assert path.name in printed and f"{path.stat().st_size:,}" in printed
    assert main(["inspect", str(folder)]) == 0
    assert "model folder" in capsys.readouterr().out


def test_inspect_a_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    for words in ("step", "2 (adamw: 2)", "position in t2i", "deepspeed", "blocks", "tensors.json"):
        assert words in printed, words
    shutil.copytree(checkpoint, tmp_path / "copy")
    moments = next((tmp_path / "copy").glob("optimizer-*"))
    content = bytearray(moments.read_bytes())
    content[-1] ^= 1
    moments.write_bytes(content)
    assert main(["inspect", str(tmp_path / "copy")]) == 2
    assert moments.name in capsys.readouterr().err
