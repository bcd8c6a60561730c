"""Names and shapes at full size equal the released checkpoints' (built on the meta device)."""

import pytest
import torch

from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import build_showo
from showo_dist.training.optimizer import decays


@pytest.mark.parametrize(
    ("key", "clip", "parameters"),
    [("showo", False, 1_448_176_770), ("showo_clip", True, 1_454_472_322)],
)
def test_names_shapes_and_decay(manifest: dict, key: str, clip: bool, parameters: int) -> None:
    with torch.device("meta"):
        model = build_showo(ShowoConfig(w_clip_vit=clip))
    assert {name: list(t.shape) for name, t in model.state_dict().items()} == manifest[key]
    assert sum(p.numel() for p in model.parameters()) == parameters
    ours = {name: decays(name, p, "published") for name, p in model.named_parameters()}
    assert ours == manifest["decay_clip" if clip else "decay_vq"]
