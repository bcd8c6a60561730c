"""The state of a run besides its tensors: step, stream positions, schedule, batch shape."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from showo_dist.config import TrainConfig, active_flows

STATE = "state.json"
CONFIG = "config.yaml"
SOURCES = "shards per source"  # a key of the data order of a mixture


@dataclass(frozen=True)
class BatchShape:
    """The factors of the global batch of an optimizer step.

    Attributes:
        ranks: of the run.
        accumulation: micro-steps per optimizer step.
        flows: samples per rank and micro-step of each active flow.
    """

    ranks: int
    accumulation: int
    flows: dict[str, int]

    @classmethod
    def of(cls, config: TrainConfig, ranks: int) -> Self:
        """The batch shape of a config on a number of ranks."""
        flows = {name: flow.batch_size for name, flow in active_flows(config).items()}
        return cls(ranks, config.training.gradient_accumulation_steps, flows)

    def total(self, flow: str) -> int:
        """Samples of a flow in the global batch; 0 if it is off."""
        return self.ranks * self.accumulation * self.flows.get(flow, 0)

    def sum_of(self, flow: str) -> str:
        """The total with its factors, for messages."""
        per_rank = self.flows.get(flow, 0)
        return f"{self.ranks} × {self.accumulation} × {per_rank} = {self.total(flow)}"

    def change_to(self, other: Self) -> str | None:
        """The difference to another batch shape in one line; None if the global batches are equal."""
        # The flows of both, in the order of the first.
        flows = dict.fromkeys([*self.flows, *other.flows])
        changes = [
            f"{flow} {self.sum_of(flow)} in the checkpoint, {other.sum_of(flow)} now"
            for flow in flows
            if self.total(flow) != other.total(flow)
        ]
        if not changes:
            return None
        return f"the global batch (ranks × accumulation × batch size) changes: {'; '.join(changes)}"


@dataclass(frozen=True)
class RunState:
    """Everything besides tensors that a run needs to resume exactly.

    Attributes:
        step: optimizer steps done.
        positions: next position of each flow's stream.
        schedule: state of the learning-rate schedule.
        optimizer_steps: the optimizer's own step count.
        wandb_id: wandb run to continue.
        versions: of the libraries that wrote it.
        batch: the factors of the global batch.
        data: everything that decides the order of each flow's samples, as name -> value in words.
        optimizer: ``optimizer.name``.
    """

    step: int
    positions: dict[str, int]
    schedule: dict[str, Any]
    optimizer_steps: int
    wandb_id: str | None
    versions: dict[str, str]
    batch: BatchShape
    data: dict[str, dict[str, str]] = field(default_factory=dict)
    optimizer: str = "adamw"  # of checkpoints before there was a choice

    def data_change(self, data: dict[str, dict[str, str]]) -> str | None:
        """The difference to another data order in one line; None if all common flows have the same order."""
        changes = [
            f"{flow}: {key} {order.get(key)} in the checkpoint, {data[flow].get(key)} now"
            for flow, order in self.data.items()
            if flow in data
            for key in {**order, **data[flow]}
            # Checkpoints before there was this key do not tell how many shards a source had.
            if order.get(key) != data[flow].get(key) and (key != SOURCES or key in order)
        ]
        return f"the data order changes: {'; '.join(changes)}" if changes else None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the state of a checkpoint whose files were verified.

        Raises:
            ValueError: it was written by another version.
        """
        try:
            values = json.loads((folder / STATE).read_bytes())
            values.pop("counters", None)  # version 0.1.0 wrote them, nothing read them
            return cls(**{**values, "batch": BatchShape(**values["batch"])})
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
            raise ValueError(
                f"{folder / STATE}: missing, damaged or of another version of showo_dist; its "
                f"weights can start a run: experiment.init_from={folder}"
            ) from None


def versions() -> dict[str, str]:
    """Versions that a checkpoint records."""
    # Here, not at the top: reading a checkpoint does not need DeepSpeed.
    import deepspeed
    import transformers

    return {
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
