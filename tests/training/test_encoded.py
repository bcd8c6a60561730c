"""Training reads the same from shards that were encoded once as from the images themselves."""

import io
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_data import MicroBatch, Source, build_loader
from showo_data.shards import write_shard
from showo_dist.config import TrainConfig, load
from showo_dist.encode.cli import main_encode
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.sequences import Sequence
from showo_dist.training.batches import SequenceMaker
from showo_dist.training.setup import flow_specs, load_encoders, load_text
from tests.training.conftest import TinyWorld

CPU = torch.device("cpu")
BATCHES = 4
SIDE, PATCH, WIDTH = 24, 8, 16
SQUARE = "dataset.recon_type=journeydb"


def _tower(folder: Path) -> Path:
    torch.manual_seed(4)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=SIDE, patch_size=PATCH)
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


def _with_tower(folder: Path) -> list[str]:
    return [
        "model.showo.w_clip_vit=true",
        f"model.clip_model_name={folder}",
        f"model.showo.clip_dim={WIDTH}",
        f"model.showo.clip_tokens={(SIDE // PATCH) ** 2}",
    ]


def _sequences(config: TrainConfig) -> tuple[list[MicroBatch], list[Sequence]]:
    """The first batches of a run, and what it makes of them."""
    encoders, text = load_encoders(config, CPU), load_text(config)
    showo = config.model.showo
    vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
    maker = SequenceMaker(config, text, vocabulary, encoders)
    clip = encoders.clip
    loader = build_loader(flow_specs(config, clip.resolution if clip else None))
    batches = list(islice(loader, BATCHES))
    return batches, [sequence for batch in batches for sequence in maker(batch)]


@pytest.mark.parametrize("phase", ["llava_tuning", "captioning"])
@pytest.mark.parametrize("clip", [False, True], ids=["codes", "features"])
def test_encoded_shards_stand_for_images(
    tiny_world: TinyWorld, tmp_path: Path, clip: bool, phase: str
) -> None:
    shards = f"{tiny_world.data}/train-{{000000..000001}}.tar"
    changes = [f"config={tiny_world.config}", f"dataset.und_type={phase}", SQUARE]
    tower: list[str] = []
    if clip:
        tower = ["--clip", str(_tower(tmp_path / "clip"))]
        changes += _with_tower(tmp_path / "clip")
    tokenizer = ["--tokenizer", str(tiny_world.folder / "vq"), "--condition-scale", "2"]
    generating = [*tokenizer, *tower, "--clip-sees", "tokenized"] if clip else tokenizer
    understanding = tower if clip and phase != "captioning" else tokenizer
    for name, options in (("generation", generating), ("understanding", understanding)):
        assert main_encode([shards, "--out", str(tmp_path / name), *options]) == 0
    encoded = [
        f"dataset.params.train_{flow}_shards_path_or_url={tmp_path / name}/train-{{000000..000001}}.tar"
        for flow, name in (("t2i", "generation"), ("recon", "generation"), ("mmu", "understanding"))
    ]
    images, wanted = _sequences(load(changes, TrainConfig))
    batches, found = _sequences(load([*changes, *encoded], TrainConfig))
    for batch, before in zip(batches, images, strict=True):
        for flow in ("t2i", "mmu", "recon"):
            assert [s.key for s in batch.samples[flow]] == [s.key for s in before.samples[flow]]
            assert all(s.image_3HW is None for s in batch.samples[flow]), flow
            assert all(s.image_3HW is not None for s in before.samples[flow]), flow
    assert {sequence.flow for sequence in found} == {"t2i", "lm", "mmu", "recon"}
    for one, other in zip(found, wanted, strict=True):
        assert one.flow == other.flow and torch.equal(one.ids_L, other.ids_L)
        assert torch.equal(one.targets_P, other.targets_P)
        assert torch.equal(one.label_rows_P, other.label_rows_P)
        assert (one.features_SC is None) == (other.features_SC is None)
        if one.features_SC is not None:
            torch.testing.assert_close(one.features_SC, other.features_SC, rtol=1e-5, atol=1e-5)
    seen = {s.flow for s in found if s.features_SC is not None}
    assert seen == (set() if not clip else {"recon"} if phase == "captioning" else {"mmu", "recon"})


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("flow", "members", "found"),
    [
        (
            "t2i",
            {"codes.npy": np.zeros(25, int)},
            "codes.npy has 25 codes, expected 64 codes from 0 to 63",
        ),
        (
            "t2i",
            {"codes.npy": np.full(64, 64)},
            "codes.npy has the code 64, expected 64 codes from 0 to 63",
        ),
        (
            "recon",
            {"codes.npy": np.zeros(64, int), "condition.npy": np.zeros(64, int)},
            "condition.npy has 64 codes, expected 16 codes from 0 to 63 (training.down_scale, ",
        ),
    ],
)
def test_no_flow_starts_on_codes_of_another_model(
    tiny_world: TinyWorld, tmp_path: Path, flow: str, members: dict[str, np.ndarray], found: str
) -> None:
    """64 codes of a codebook of 64, and 16 for a condition image of half the side, as the config says."""
    encoded = {name: _npy(values) for name, values in members.items()}
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": f"k{i}", "txt": b"a", **encoded} for i in range(3)])
    change = f"dataset.params.train_{flow}_shards_path_or_url={shard}"
    config = load([f"config={tiny_world.config}", change], TrainConfig)
    spec = next(spec for spec in flow_specs(config) if spec.flow == flow)
    with pytest.raises(
        ValueError, match=rf"flow '{flow}': none of its first 3 samples fits"
    ) as raised:
        Source(spec)
    assert found in str(raised.value) and str(shard) in str(raised.value)


def _other_tokenizer(world: TinyWorld, folder: Path) -> Path:
    """The world's tokenizer with one weight changed, in a folder of its own."""
    vq = MAGVITv2.from_pretrained(str(world.folder / "vq"), CPU)
    with torch.no_grad():
        next(vq.encoder.parameters()).view(-1)[0] += 1
    vq.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("flow", "options", "changes", "message"),
    [
        (
            "t2i",
            ["--resize", "squash"],
            [],
            r"resize = squash \(.*/a/encode.json\), but t2i needs short",
        ),
        ("recon", [], [], r"resize = short .*, but dataset.recon_type .* needs squash"),
        ("recon", ["--condition-scale", "2"], [SQUARE], None),
        ("recon", ["--resize", "squash", "--condition-scale", "2"], [], None),
        (
            "recon",
            ["--condition-scale", "4", "--resize-back"],
            [SQUARE, "training.resize_back=true"],
            r"condition_scale = 4 .*, but training.down_scale needs 2",
        ),
        (
            "recon",
            ["--condition-scale", "2"],
            [SQUARE, "training.resize_back=true"],
            r"resize_back = False .*, but training.resize_back needs True",
        ),
    ],
)
def test_encodings_of_another_use_are_refused(
    tiny_world: TinyWorld,
    tmp_path: Path,
    flow: str,
    options: list[str],
    changes: list[str],
    message: str | None,
) -> None:
    shards = f"{tiny_world.data}/train-000000.tar"
    tokenizer = ["--tokenizer", str(tiny_world.folder / "vq")]
    assert main_encode([shards, "--out", str(tmp_path / "a"), *tokenizer, *options]) == 0
    data = f"dataset.params.train_{flow}_shards_path_or_url={tmp_path}/{{a,b}}/train-000000.tar"
    config = load([f"config={tiny_world.config}", data, *changes], TrainConfig)
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        load_encoders(config, CPU)


def test_encodings_of_other_networks_are_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    shards = f"{tiny_world.data}/train-000000.tar"
    tower = _tower(tmp_path / "clip")
    changes = [
        f"config={tiny_world.config}",
        *_with_tower(tower),
        "dataset.und_type=llava_pretrain",
        "optimizer.trained=all",
    ]

    def config(flow: str, name: str) -> TrainConfig:
        data = f"dataset.params.train_{flow}_shards_path_or_url={tmp_path / name}/train-000000.tar"
        return load([*changes, data], TrainConfig)

    other = str(_other_tokenizer(tiny_world, tmp_path / "vq"))
    assert main_encode([shards, "--out", str(tmp_path / "codes"), "--tokenizer", other]) == 0
    with pytest.raises(
        ValueError, match=r"encoded with tokenizer = .*codes.*, but model\.vq_model needs"
    ):
        load_encoders(config("t2i", "codes"), CPU)
    assert main_encode([shards, "--out", str(tmp_path / "features"), "--clip", str(tower)]) == 0
    assert load_encoders(config("mmu", "features"), CPU).clip is not None
    with pytest.raises(ValueError, match=r"clip_sees = processed .*, but recon needs tokenized"):
        load_encoders(config("recon", "features"), CPU)
    model = CLIPVisionModel.from_pretrained(tower)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    model.save_pretrained(tower)
    with pytest.raises(
        ValueError, match=r"encoded with clip = .*, but model\.clip_model_name needs"
    ):
        load_encoders(config("mmu", "features"), CPU)


def test_a_tower_in_half_precision_computes_in_fp32(tiny_world: TinyWorld, tmp_path: Path) -> None:
    tower = _tower(tmp_path / "clip")
    CLIPVisionModel.from_pretrained(tower).half().save_pretrained(tower)
    clip = load_encoders(
        load([f"config={tiny_world.config}", *_with_tower(tower)], TrainConfig), CPU
    ).clip
    assert clip is not None and {p.dtype for p in clip.parameters()} == {torch.float32}
