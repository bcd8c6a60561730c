"""Random weights of a new model, drawn part by part."""

from collections.abc import Callable

import torch
from torch import nn

from showo_dist.models.showo import ShowO
from showo_dist.models.weights.initial import PROJECTOR
from showo_dist.models.weights.pretrained import fill_parts
from showo_dist.runtime.rng import hashed_seed


def draw_weights(
    model: ShowO,
    seed: int,
    dtype: torch.dtype = torch.float32,
    shard: Callable[[nn.Module], None] | None = None,
) -> None:
    """Fill a meta model with weights that are distributed as its family's own.

    The weights of a part depend on the seed, the part's name and its sizes, not on ranks or on other parts.

    Args:
        model: on the meta device.
        seed: of the run.
        dtype: of the weights, which are drawn in fp32.
        shard: as of :func:`~showo_dist.models.weights.pretrained.materialise`.

    Raises:
        ValueError: the family's code leaves a weight without values.
    """

    @torch.no_grad()
    def fill(prefix: str, part: nn.Module) -> None:
        torch.manual_seed(hashed_seed(f"{seed}/{prefix}".encode()))
        unset = {name: torch.full(t.shape, torch.nan) for name, t in part.state_dict().items()}
        part.load_state_dict(unset, assign=True)
        if prefix.startswith(PROJECTOR):
            part.reset_parameters()  # type: ignore[operator]  # nn.Linear's default
        else:
            part.apply(model.showo._init_weights)
        for name, parameter in part.named_parameters():
            if parameter.isnan().any():
                kind = model.config.model_type
                raise ValueError(
                    f"{kind}'s code in transformers gives {prefix}{name} no first values"
                )
            parameter.data = parameter.data.to(dtype)

    fill_parts(model, fill, shard)
