"""The record of storages and collectives, and DeepSpeed's engine on shapes."""

from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from showo_dist.config import load
from showo_dist.plan.batch import PROMPT_TOKENS, SYSTEM_TOKENS, AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, fake_ranks
from showo_dist.plan.ledger import Ledger
from showo_dist.plan.ledger_step import encode_micro_batch, encoders_of_shapes
from showo_dist.plan.shapes import Shapes
from showo_dist.plan.study import model_of_shapes
from showo_dist.training.muon import by_muon
from showo_dist.training.rows import longest_samples
from tests.conftest import ROOT
from tests.plan.test_memory import ACCUMULATING, BASE, setting

CPU = torch.device("cpu")


def test_live_and_peak_bytes_of_a_product() -> None:
    shapes = Shapes(CPU)
    with shapes:
        shapes.phase("start", "activations")
        a = torch.empty(10, 20)
        b = a.t() @ a
        del a
        view = b[:5]
        del b
    assert shapes.ledger.peak("start")[0] == 4 * (200 + 400)
    assert sum(shapes.ledger.live().values()) == 4 * 400, "a view keeps its storage"
    del view
    assert sum(shapes.ledger.live().values()) == 0


def test_saved_activations_live_until_backward() -> None:
    shapes = Shapes(CPU)
    with shapes:
        shapes.phase("build", "weights")
        layer = nn.Linear(8, 8, bias=False)
        shapes.phase("forward", "activations")
        hidden = torch.empty(4, 8)
        out = torch.relu(layer(hidden))
        assert sum(shapes.ledger.live().values()) == 4 * (64 + 32 + 32)
        out.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_meta


def test_collectives_are_recorded_with_the_size_of_the_whole() -> None:
    with fake_ranks(3, 48), Shapes(CPU) as shapes:
        shapes.phase("step", "buffers")
        whole, part = torch.empty(480), torch.empty(10)
        dist.all_gather_into_tensor(whole, part)
        dist.reduce_scatter_tensor(part, whole)
        dist.all_reduce(whole[:100])
        dist.all_to_all_single(whole.clone(), whole)
    found = [(call.kind, call.bytes, call.ranks) for call in shapes.ledger.collectives]
    assert found == [
        ("all_gather", 1920, 48),
        ("reduce_scatter", 1920, 48),
        ("all_reduce", 400, 48),
        ("all_to_all", 1920, 48),
    ]


def test_muon_sends_its_update_in_two_messages() -> None:
    """A rank sends the parts that it holds, and then the matrices that it orthogonalised: a quarter each."""
    config = load(setting(2, "optimizer.name=muon"), check=False)
    with fake_ranks(0, 4):
        profile = EngineOfShapes(config, CPU).step(AssumedSamples(config).micro_batch(128))
    there, back = (c.bytes for c in profile.collectives if c.kind == "all_to_all")
    shapes = {name: tuple(p.shape) for name, p in model_of_shapes(config).named_parameters()}
    whole = 4 * sum(prod(shape) for name, shape in shapes.items() if by_muon(name, shape))
    assert (there, back) == pytest.approx((whole / 4, whole / 4), rel=0.01)


def test_the_parameter_count_is_the_published_one() -> None:
    config = load([], check=False)
    assert sum(p.numel() for p in model_of_shapes(config).parameters()) == 1_448_176_770
    config = load(["model.showo.w_clip_vit=true"], check=False)
    assert sum(p.numel() for p in model_of_shapes(config).parameters()) == 1_454_472_322


def test_zero_3_shards_weights_and_optimizer() -> None:
    """Bytes of one of 48 ranks: 12 per parameter for master weights and moments, 4 for fp32 weights."""
    config = load(setting(3), check=False)
    whole = sum(p.numel() for p in model_of_shapes(config).parameters())
    with fake_ranks(47, 48):
        held = EngineOfShapes(config, CPU).held()
    assert abs(held["optimizer"] - 12 * whole / 48) < 0.02 * 12 * whole / 48
    # Parameters below the threshold stay whole on every rank.
    assert 4 * whole / 48 < held["weights"] < 4 * whole / 24


def test_stages_differ_in_when_they_send() -> None:
    def kinds(stage: int) -> dict[str, int]:
        config = load(setting(stage, ACCUMULATING), check=False)
        with fake_ranks(0, 8):
            profile = EngineOfShapes(config, CPU).step(AssumedSamples(config).micro_batch(128))
        sums: dict[str, int] = {}
        for call in profile.collectives:
            sums[call.kind] = sums.get(call.kind, 0) + call.bytes
        return sums

    once, twice = kinds(1), kinds(2)
    assert abs(twice["all_reduce"] - 2 * once["all_reduce"]) < 0.01 * twice["all_reduce"]
    assert once["all_gather"] == twice["all_gather"]


TRAINED = [p for name in ("showo", "reca") for p in sorted(ROOT.glob(f"configs/{name}/*.yaml"))]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_assumed_samples_are_as_long_as_the_config_allows(path: Path) -> None:
    config = load([f"config={path}"], check=False)
    longest = longest_samples(config, PROMPT_TOKENS, SYSTEM_TOKENS)
    found = {sequence.flow: len(sequence) for sequence in AssumedSamples(config).sequences()}
    assert found == longest


def test_the_condition_that_is_encoded_is_that_of_training() -> None:
    """A blurred one has the size of the image."""
    blurred = load([f"config={ROOT}/configs/reca/showo_reca_blur8.yaml"], check=False)
    encoders, samples = encoders_of_shapes(blurred), AssumedSamples(blurred)
    assert (encoders.down_scale, encoders.resize_back) == (8, True)
    codes = blurred.model.showo.num_vq_tokens
    assert all(len(s) > 2 * codes for s in samples.sequences() if s.flow == "recon")


@pytest.mark.parametrize(
    ("und_type", "by_clip", "by_vq"),
    [("llava_tuning", ("mmu", "recon"), ("recon",)), ("captioning", ("recon",), ("mmu", "recon"))],
)
def test_captions_beside_clip_features_are_encoded_as_codes(
    und_type: str, by_clip: tuple[str, ...], by_vq: tuple[str, ...]
) -> None:
    """As training does; the images of each flow go through an encoder in one batch."""
    path = f"config={ROOT}/configs/reca/showo_reca_clip.yaml"
    batch = {"mmu": 3, "recon": 5}
    sizes = [f"training.batch_size_{flow}={size}" for flow, size in batch.items()]
    config = load([path, f"dataset.und_type={und_type}", *sizes], check=False)
    encoders = encoders_of_shapes(config)
    assert encoders.vq is not None and encoders.clip is not None
    seen: dict[str, list[int]] = {"clip": [], "vq": []}
    encoders.clip.register_forward_pre_hook(lambda _, given: seen["clip"].append(len(given[0])))
    encoders.vq.encoder.register_forward_pre_hook(lambda _, given: seen["vq"].append(len(given[0])))
    with Ledger(torch.device("cuda")):
        encode_micro_batch(encoders, config)
    assert seen == {"clip": [batch[f] for f in by_clip], "vq": [batch[f] for f in by_vq]}


@pytest.mark.parametrize(
    "change", ["training.predict_all_tokens=true", "training.noise_type=random_replace"]
)
def test_all_image_tokens_may_be_labelled(change: str) -> None:
    for changes, every in ([], False), ([change], True):
        config = load([*BASE, *changes], check=False)
        (image, *_) = [s for s in AssumedSamples(config).sequences() if s.flow == "t2i"]
        most = config.model.showo.num_vq_tokens + 2  # with soi and eoi
        assert (len(image.label_rows_P) == most) == every


@pytest.mark.parametrize("stage", [0, 3])
def test_a_step_leaves_nothing_behind(stage: int) -> None:
    """One engine predicts all scales, so a step must not change the next one's profile."""
    config = load(setting(stage), check=False)
    samples = AssumedSamples(config)
    with fake_ranks(0, 8):
        engine = EngineOfShapes(config, CPU)
        first = engine.step(samples.micro_batch(128))
        assert engine.step(samples.micro_batch(128, scale=2)).peak > first.peak
        assert engine.step(samples.micro_batch(128)) == first
