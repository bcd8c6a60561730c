"""One rank of a process group: runs the cases that it receives through a pipe."""

import gc
import os
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param

from showo_dist.models.weights.lora import add_adapters
from showo_dist.runtime.ranks import joined
from showo_dist.sequences import PackedBatch, Sequence, pack
from showo_dist.training.deepspeed_engine import build_deepspeed_engine
from showo_dist.training.step import Stepper
from showo_dist.training.torch_engine import build_torch_engine
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch, split
from tests.single_pass.case import Case, Report, config_of

CPU = torch.device("cpu")


def _packed(case: Case, sequences: list[Sequence], feature_width: int) -> PackedBatch:
    # Blocks are compiled once per length of a row.
    multiple = 256 if config_of(case).model.compile else 1
    return pack(sequences, pad_id=VOCABULARY.pad, feature_width=feature_width, multiple_of=multiple)


def _window(case: Case, step: int, feature_width: int) -> list[PackedBatch]:
    """This rank's micro-batches of one step."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = split(global_batch(step, case.flows), case.split, ranks, case.micro_steps)[rank]
    return [_packed(case, sequences, feature_width) for sequences in mine]


def _engine(case: Case) -> Any:
    model, config = build_tiny(family=case.family), config_of(case)
    if config.lora.rank:
        add_adapters(model, config.lora, config.training.seed)
    build = build_torch_engine if case.engine == "torch" else build_deepspeed_engine
    return build(model, config, CPU)


def whole_weight(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The fp32 master weight on every rank; collective."""
    full = safe_get_full_fp32_param(parameter)
    return (parameter if full is None else full).detach()


def _weights(engine: Any) -> dict[str, np.ndarray]:
    """Whole parameters by name, in fp32 where they are trained; collective."""
    named = dict(engine.module.named_parameters())
    # DeepSpeed's accessor knows trained parameters only.
    with GatheredParameters([p for p in named.values() if not p.requires_grad]):
        return {name: whole_weight(p).float().numpy().copy() for name, p in named.items()}


def _averages(engine: Any) -> dict[str, np.ndarray]:
    """The averaged weights, after which the weights are as before, bit by bit; collective."""
    before = _weights(engine), _computed_with(engine)
    with engine.averaged():
        averages = _computed_with(engine)
    for kept, now in zip(before, (_weights(engine), _computed_with(engine)), strict=True):
        for name, values in kept.items():
            assert np.array_equal(values, now[name]), name
    return averages


def _computed_with(engine: Any) -> dict[str, np.ndarray]:
    """The whole parameters of the model itself; collective."""
    named = dict(engine.module.named_parameters())
    with GatheredParameters(list(named.values())):
        return {name: p.detach().float().numpy().copy() for name, p in named.items()}


def run_case(case: Case) -> Report:
    """Train a new model with the settings of the case; collective in a process group."""
    engine = _engine(case)
    stepper = Stepper(engine, case.coefficients, case.normalization, CPU)
    width = engine.module.feature_width
    start = _weights(engine)
    losses = [stepper(_window(case, step, width)) for step in range(case.steps)]
    weights = _weights(engine)
    averaged = config_of(case).training.ema.decay is not None
    averages = _averages(engine) if averaged else {}
    if case.engine != "torch":
        engine.raw.destroy()
    totals, norms = ([getattr(x, key) for x in losses] for key in ("total", "grad_norm"))
    return Report(start, weights, totals, norms, losses[-1].means, averages)


def serve(pipe: Connection, environment: dict[str, str]) -> None:
    """Entry of a process: send "ready", then (report, None) or (None, traceback) for every case."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed's use of torch's old names
    with joined(timeout_s=600, always_group=True) as ranks:
        pipe.send("ready")
        while True:
            case: Case = pipe.recv()
            if case.hangs and ranks.rank == ranks.world - 1:
                time.sleep(600)
            try:
                pipe.send((run_case(case), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
            gc.collect()
