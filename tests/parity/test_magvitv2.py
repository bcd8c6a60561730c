"""The image tokenizer against the published implementation's tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig

ATOL = 1e-4  # fp32, golden README
PUBLISHED_WEIGHT = 0.1  # the published quantizer returns both its losses multiplied by this


def stack(sizes: dict[str, Any]) -> StackConfig:
    return StackConfig(
        channels=sizes["ch"], multipliers=sizes["ch_mult"], res_blocks=sizes["num_res_blocks"]
    )


@pytest.fixture(scope="module")
def tensors(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "magvitv2_tiny.safetensors")


@pytest.fixture(scope="module")
def model(golden: Path, tensors: dict[str, Tensor]) -> MAGVITv2:
    sizes = json.loads((golden / "meta.json").read_text())["magvitv2_tiny"]
    config = MAGVITv2Config(
        resolution=sizes["encoder"]["resolution"],
        bits=sizes["codebook_dim"],
        encoder=stack(sizes["encoder"]),
        decoder=stack(sizes["decoder"]),
    )
    model = MAGVITv2(config).eval()
    weights = {name: value for name, value in tensors.items() if not name.startswith("io.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == {"quantize.embedding", "quantize.power_vals"} and not unexpected
    return model


def test_full_size_names_and_shapes(golden: Path) -> None:
    manifest = json.loads((golden.parent / "checkpoint_manifest.json").read_text())["magvitv2"]
    with torch.device("meta"):
        full = MAGVITv2()
    assert {name: list(value.shape) for name, value in full.state_dict().items()} == manifest
    assert sum(parameter.numel() for parameter in full.parameters()) == 95_387_004


def test_pixels_to_latents_to_codes(model: MAGVITv2, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        latents = model.encode_latents(tensors["io.pixels"])
    torch.testing.assert_close(latents, tensors["io.latents"], atol=ATOL, rtol=0)
    assert torch.equal(model.encode(tensors["io.pixels"]), tensors["io.codes"])


def test_codes_to_pixels(model: MAGVITv2, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        decoded = model.decode(tensors["io.codes"])
    torch.testing.assert_close(decoded, tensors["io.decoded"], atol=ATOL, rtol=0)


def test_quantizer_losses(model: MAGVITv2, tensors: dict[str, Tensor]) -> None:
    _, codes, losses = model.quantize(tensors["io.latents"])
    assert torch.equal(codes, tensors["io.codes"])
    commitment = PUBLISHED_WEIGHT * losses.commitment
    entropy = PUBLISHED_WEIGHT * (losses.sample_entropy - losses.codebook_entropy)
    torch.testing.assert_close(commitment, tensors["io.quantizer_loss"], atol=ATOL, rtol=0)
    torch.testing.assert_close(entropy, tensors["io.entropy_loss"], atol=ATOL, rtol=0)
