"""The image tokenizer gives the published implementation's latents, codes and pixels."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from tests.parity.cut_golden import digest

ATOL = 1e-4  # fp32
PUBLISHED_WEIGHT = 0.1  # the published quantizer returns both its losses multiplied by this


def stack(sizes: dict[str, Any]) -> StackConfig:
    return StackConfig(
        channels=sizes["ch"], multipliers=sizes["ch_mult"], res_blocks=sizes["num_res_blocks"]
    )


def initialize(model: MAGVITv2, seed: int) -> None:
    """Sample the weights in the order in which the published code builds its layers."""
    decoder = model.decoder
    parts = [decoder.conv_in, decoder.mid, *reversed(decoder.up), decoder.conv_out]
    torch.manual_seed(seed)
    for part in [model.encoder, *parts, decoder.post_quant_conv]:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()


@pytest.fixture(scope="module")
def io(tensors: Any) -> dict[str, Tensor]:
    return tensors("magvitv2_tiny")


@pytest.fixture(scope="module")
def model(io: dict[str, Tensor], meta: SimpleNamespace) -> MAGVITv2:
    sizes = meta.magvitv2_tiny
    config = MAGVITv2Config(
        resolution=sizes["encoder"]["resolution"],
        bits=sizes["codebook_dim"],
        encoder=stack(sizes["encoder"]),
        decoder=stack(sizes["decoder"]),
    )
    model = MAGVITv2(config).eval()
    constants = {"quantize.embedding", "quantize.power_vals"}
    if "weights.seed" in io:  # a cut set: the weights are those of a seed
        initialize(model, int(io["weights.seed"]))
        weights = {k: v for k, v in model.state_dict().items() if k not in constants}
        assert torch.equal(digest(weights), io["weights.sha256"]), (
            "torch gives other weights for this seed"
        )
    else:
        weights = {k: v for k, v in io.items() if not k.startswith("io.")}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert set(missing) == constants and not unexpected
    return model


def test_full_size_names_and_shapes(manifest: dict) -> None:
    with torch.device("meta"):
        full = MAGVITv2()
    shapes = {name: list(value.shape) for name, value in full.state_dict().items()}
    assert shapes == manifest["magvitv2"]
    assert sum(parameter.numel() for parameter in full.parameters()) == 95_387_004


def test_pixels_to_latents_to_codes(model: MAGVITv2, io: dict[str, Tensor]) -> None:
    with torch.no_grad():
        latents = model.encode_latents(io["io.pixels"])
    torch.testing.assert_close(latents, io["io.latents"], atol=ATOL, rtol=0)
    assert torch.equal(model.encode(io["io.pixels"]), io["io.codes"])


def test_codes_to_pixels(model: MAGVITv2, io: dict[str, Tensor]) -> None:
    with torch.no_grad():
        decoded = model.decode(io["io.codes"])
    torch.testing.assert_close(decoded, io["io.decoded"], atol=ATOL, rtol=0)


def test_quantizer_losses(model: MAGVITv2, io: dict[str, Tensor]) -> None:
    _, codes, losses = model.quantize(io["io.latents"])
    assert torch.equal(codes, io["io.codes"])
    commitment = PUBLISHED_WEIGHT * losses.commitment
    entropy = PUBLISHED_WEIGHT * (losses.sample_entropy - losses.codebook_entropy)
    torch.testing.assert_close(commitment, io["io.quantizer_loss"], atol=ATOL, rtol=0)
    torch.testing.assert_close(entropy, io["io.entropy_loss"], atol=ATOL, rtol=0)
