"""Random weights: each family's own distributions, part by part; Phi's are one draw, as published."""

import pytest
import torch
from torch import Tensor

from showo_dist.config import TrainConfig
from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import build_showo
from showo_dist.models.weights.start import load_initial
from tests.families import FAMILIES
from tests.single_pass.batches import tiny_sizes

CPU = torch.device("cpu")
OTHERS = [family for family in FAMILIES if family != "phi"]


def random_start(showo: ShowoConfig, seed: int = 7) -> dict[str, Tensor]:
    config = TrainConfig()
    config.model.showo, config.training.seed = showo, seed
    config.training.mixed_precision = "fp32"
    return load_initial(config, CPU)[0].state_dict()


@pytest.mark.parametrize("family", OTHERS)
def test_a_part_is_drawn_from_its_name_as_the_family_does(family: str) -> None:
    found, wanted = random_start(tiny_sizes(family)), build_showo(tiny_sizes(family)).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if tensor.std() == 0 or tensor.numel() == 1:  # norms and biases
            assert torch.equal(found[name], tensor), name
            continue
        assert not torch.equal(found[name], tensor), name
        error = 4 * float(tensor.std()) / tensor.numel() ** 0.5  # of a mean and of a deviation
        torch.testing.assert_close(found[name].mean(), tensor.mean(), atol=1.5 * error, rtol=0)
        torch.testing.assert_close(found[name].std(), tensor.std(), atol=error, rtol=0)


def test_other_parts_and_another_seed() -> None:
    """A larger vocabulary or another seed; both blocks differ."""
    sizes = tiny_sizes("qwen3")
    found, other = random_start(sizes), random_start(sizes, seed=8)
    sizes.codebook_size, sizes.vocab_size = 2 * sizes.codebook_size, None
    more = random_start(sizes)
    projection = "showo.model.layers.{}.self_attn.q_proj.weight"
    first, second = (found[projection.format(number)] for number in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, more[projection.format(0)])
    assert not torch.equal(first, other[projection.format(0)])


def test_phi_is_one_draw() -> None:
    found = random_start(tiny_sizes())
    torch.manual_seed(7)
    wanted = build_showo(tiny_sizes()).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
