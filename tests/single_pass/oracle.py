"""The reference step in plain torch: one process, all logits, library losses and optimizer."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showo_dist.models.showo import ShowO
from showo_dist.sequences import FLOWS, Sequence, pack
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch
from tests.single_pass.case import COEFFICIENTS, EPSILON, FLOW_ORDER, LEARNING_RATE, MAX_NORM

WEIGHT_DECAY = 0.01


class Outcome(NamedTuple):
    """Weights before and after; losses and gradient norms of every step; flow means of the last."""

    start: dict[str, Tensor]
    weights: dict[str, Tensor]
    totals: list[float]
    grad_norms: list[float]
    means: dict[str, float]


def flow_means(model: ShowO, sequences: Seq[Sequence]) -> dict[str, Tensor]:
    """Mean cross-entropy of each flow that has a label, of the sequences as one packed batch."""
    batch = pack(sequences, pad_id=VOCABULARY.pad, feature_width=model.feature_width)
    logits_PV = model(batch, logit_rows=batch.label_rows_P)
    means = {}
    for index, flow in enumerate(FLOWS):
        mine = batch.label_flow_P == index
        if mine.any():
            means[flow] = F.cross_entropy(logits_PV[mine], batch.targets_P[mine])
    return means


def _total(means: dict[str, Tensor], coefficients: dict[str, float]) -> Tensor:
    return torch.stack([coefficients.get(flow, 0.0) * mean for flow, mean in means.items()]).sum()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for n, p in model.named_parameters() if n.endswith("bias")]},
        {"params": [p for n, p in model.named_parameters() if not n.endswith("bias")]},
    ]
    for group, decay in zip(groups, (0.0, WEIGHT_DECAY), strict=True):
        group["weight_decay"] = decay  # type: ignore[assignment]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=EPSILON, foreach=False)


def train(
    steps: int = 1,
    coefficients: dict[str, float] = COEFFICIENTS,
    parts: Seq[Seq[Sequence]] | None = None,
    prepare: Callable[[ShowO], object] = id,
    optimizers: Callable[[nn.Module], Seq[torch.optim.Optimizer]] = lambda m: [_optimizer(m)],
    family: str | None = None,
    flows: tuple[str, ...] = FLOW_ORDER,
) -> Outcome:
    """Train the tiny model.

    Args:
        steps: optimizer steps, each on its own global batch.
        coefficients: of the flows.
        parts: instead of the global batch: each part's flow means count alike, and a flow that a part
            does not have counts 0 there (the published rule, a part being one rank's micro-batch).
        prepare: called with the new model before anything else.
        optimizers: of the model, together over all its parameters.
        family: of the model.
        flows: of the global batch.
    """
    model = build_tiny(family=family)
    prepare(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    updating = optimizers(model)
    totals, norms = [], []
    for step in range(steps):
        of_parts = [
            flow_means(model, part) for part in parts or [global_batch(step, flows)] if part
        ]
        total = torch.stack([_total(means, coefficients) for means in of_parts]).sum()
        (total / len(parts or [0])).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        for optimizer in updating:
            optimizer.step()
            optimizer.zero_grad()
        totals.append(total.item())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return Outcome(start, weights, totals, norms, {f: m.item() for f, m in of_parts[-1].items()})
