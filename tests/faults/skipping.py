"""A rank that trains tiny models, with one step that is not finite, under every engine."""

import os
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from showo_dist.models.showo import ShowO
from showo_dist.runtime.ranks import joined
from showo_dist.sequences import PackedBatch, pack
from showo_dist.training.deepspeed_engine import build_deepspeed_engine
from showo_dist.training.deepspeed_state import held
from showo_dist.training.step import StepLosses, Stepper
from showo_dist.training.torch_engine import TorchEngine, build_torch_engine
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch, split
from tests.single_pass.case import COEFFICIENTS, Case, config_of

MICRO_STEPS = 2
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Trained:
    """The result of one training on one rank.

    Attributes:
        losses: of each step.
        states: weights, moments and learning rate after each step.
    """

    losses: list[StepLosses]
    states: list[State]


def _window(step: int, width: int) -> list[PackedBatch]:
    mine = split(global_batch(seed=step), "even", dist.get_world_size(), MICRO_STEPS)
    return [
        pack(sequences, pad_id=VOCABULARY.pad, feature_width=width)
        for sequences in mine[dist.get_rank()]
    ]


def _spoil(window: list[PackedBatch]) -> None:
    """Make a feature of an image NaN, in the first micro-step of the last rank."""
    if dist.get_rank() == dist.get_world_size() - 1:
        window[0].features_FC[0, 0] = torch.nan


def _state(engine: Any) -> State:
    """Copies of this rank's weights and moments, and the learning rate."""
    if isinstance(engine, TorchEngine):
        named = dict(engine.module.named_parameters())
        tensors = {f"weight/{name}": p.detach() for name, p in named.items()}
        for name, p in named.items():
            for key, value in engine.optimizer.state.get(p, {}).items():
                tensors[f"{key}/{name}"] = value
    else:
        tensors = {f"{p.kind}/{p.key}": p.values_N for p in held(engine.raw)}
        tensors["steps"] = torch.tensor(float(engine.optimizer_steps()))
    tensors["lr"] = torch.tensor(engine.schedule_state()["_last_lr"][0])
    return {name: tensor.float().numpy().copy() for name, tensor in tensors.items()}


def train(case: Case, seeds: list[int], spoiled: int | None, model: ShowO) -> Trained:
    """Train on the windows of ``seeds``; that of ``spoiled`` has a sample that is not finite."""
    config = config_of(case)
    build = build_torch_engine if case.engine == "torch" else build_deepspeed_engine
    engine = build(model, config, torch.device("cpu"))
    stepper = Stepper(engine, COEFFICIENTS, "global", torch.device("cpu"))
    losses, states = [], []
    for seed in seeds:
        window = _window(seed, model.feature_width)
        if seed == spoiled:
            _spoil(window)
        losses.append(stepper(window))
        states.append(_state(engine))
    if case.engine != "torch":
        engine.raw.destroy()
    return Trained(losses, states)


def hopeless() -> ShowO:
    """A model in which every target has an infinite loss and a finite gradient."""
    model = build_tiny()
    with torch.no_grad():
        model.showo.lm_head.bias.fill_(-torch.inf)
        model.showo.lm_head.bias[VOCABULARY.pad] = 0.0
    return model


def train_all(case: Case) -> tuple[Trained, Trained, Trained]:
    """Train with a spoiled window, without that window, and with an infinite loss."""
    return (
        train(case, [0, 1, 2], 1, build_tiny()),
        train(case, [0, 2], None, build_tiny()),
        train(case, [0], None, hopeless()),
    )


def serve(pipe: Connection, environment: dict[str, str], cases: list[Case]) -> None:
    """Entry of a process: sends the results of each case."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed's use of torch's old names
    with joined(timeout_s=600, always_group=True):
        for case in cases:
            pipe.send(train_all(case))
