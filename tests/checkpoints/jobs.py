"""What the ranks of these tests do: train a tiny model, save it, go on from it."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor

from showo_dist.checkpoint import BatchShape, CheckpointReader, RunState
from showo_dist.checkpoint.slices import ADAMW_MOMENTS
from showo_dist.checkpoint.snapshot import Snapshot
from showo_dist.checkpoint.writer import CheckpointWriter
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.models.weights.sources import CheckpointWeights
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import pack
from showo_dist.training.deepspeed_engine import build_deepspeed_engine
from showo_dist.training.step import Stepper
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch, split
from tests.single_pass.case import Case, config_of
from tests.single_pass.rank import whole_weight

BEFORE, AFTER = 4, 20  # steps until the save, and compared steps behind it
CPU = torch.device("cpu")
Named = dict[str, Tensor]
Settings = tuple[tuple[str, Any], ...]


class TinyRun:
    """A tiny Show-o under one ZeRO stage, trained on the same global batches by any number of ranks.

    Args:
        ranks: this process among the others.
        stage: of ZeRO.
        micro_steps: accumulation.
        settings: other keys of the config, dotted, with their values.
        family: of the model; see :class:`Case`.
    """

    def __init__(
        self,
        ranks: Ranks,
        stage: int,
        micro_steps: int = 1,
        settings: Settings = (),
        family: str | None = None,
    ) -> None:
        case = Case(f"zero-{stage}", micro_steps=micro_steps, settings=settings, family=family)
        self.case, self.ranks, self.model = case, ranks, build_tiny(family=family)
        self.step = 0

    def build(self) -> "TinyRun":
        """Wrap the model as it is now."""
        self.engine = build_deepspeed_engine(self.model, config_of(self.case), CPU)
        self.stepper = Stepper(self.engine, self.case.coefficients, "global", CPU)
        return self

    def resumed(self, folder: Path) -> "TinyRun":
        """As the trainer goes on from a checkpoint."""
        weights, reader = CheckpointWeights(folder), CheckpointReader(folder)
        self.model.load_state_dict({name: weights.read(name) for name in weights.meta})
        self.build()
        self.engine.restore(reader.read_piece, reader.state.optimizer_steps)
        self.step = reader.state.step
        return self

    def train(self, steps: int) -> list[float]:
        """Total losses of so many steps."""
        return [self._one_step() for _ in range(steps)]

    def _one_step(self) -> float:
        self.step += 1
        micro_steps = self.case.micro_steps
        mine = split(global_batch(seed=self.step), "even", self.ranks.world, micro_steps)
        window = [
            pack(sequences, pad_id=VOCABULARY.pad, feature_width=self.model.feature_width)
            for sequences in mine[self.ranks.rank]
        ]
        return self.stepper(window).total

    def state(self) -> RunState:
        return RunState(
            step=self.step,
            positions={"t2i": 4 * self.step},
            schedule={},
            optimizer_steps=self.engine.optimizer_steps(),
            wandb_id=None,
            versions={},
            batch=BatchShape(self.ranks.world, self.case.micro_steps, {"t2i": 4}),
        )

    def gathered(self) -> dict[str, Named]:
        """Whole weights and moments by kind and name."""
        kinds: dict[str, Named] = {"weight": {}, **{kind: {} for kind in ADAMW_MOMENTS}}
        for name, parameter in self.engine.module.named_parameters():
            kinds["weight"][name] = whole_weight(parameter).clone()
            for kind in ADAMW_MOMENTS:
                full = safe_get_full_optimizer_state(parameter, kind)
                if full is None:
                    full = self.engine.raw.optimizer.state[parameter][kind]
                kinds[kind][name] = full.clone()
        return kinds


def writer_of(folder: Path, **policy: Any) -> CheckpointWriter:
    """A writer whose checkpoints hold one more file."""
    texts = {"config.yaml": "experiment: {name: tiny}\n"}
    return CheckpointWriter(folder, ExperimentConfig(**policy), texts, timeout_s=300)


def undisturbed(ranks: Ranks, folder: Path, stage: int, settings: Settings = ()) -> dict[str, Any]:
    """Train, save while training goes on, train to the end."""
    run = TinyRun(ranks, stage, settings=settings).build()
    run.train(BEFORE)
    state = run.gathered()
    writer = writer_of(folder)
    saved = writer.save(run.engine, run.state())
    losses = run.train(AFTER)
    lines = writer.finish()
    held = sum(len(p.values_N) for p in run.engine.owned(ranks.rank, ranks.world))
    return {"state": state, "losses": losses, "folder": saved, "lines": lines, "held": held}


def gone_on(
    ranks: Ranks, folder: Path, stage: int, micro_steps: int, settings: Settings = ()
) -> dict[str, Any]:
    """Load a checkpoint and train as many steps as the undisturbed run did behind it."""
    run = TinyRun(ranks, stage, micro_steps, settings).resumed(folder)
    return {"state": run.gathered(), "losses": run.train(AFTER)}


def saved_by(ranks: Ranks, folder: Path, stage: int, steps: list[int], policy: dict) -> list[str]:
    """Save at each of these steps without training in between; what the writer said."""
    run, writer = TinyRun(ranks, stage).build(), writer_of(folder, **policy)
    lines = []
    for run.step in steps:
        writer.save(run.engine, run.state())
        lines += writer.poll()
    try:
        lines += writer.finish()
    except OSError as error:
        lines.append(f"ended by {error}")
    dist.barrier()
    return lines


def saved_on_a_full_disk(ranks: Ranks, folder: Path, policy: dict) -> list[str]:
    """Save with room, without, and with room again; what was said, up to an error that ends the run."""
    run, writer = TinyRun(ranks, 2).build(), writer_of(folder, **policy)
    filler = folder.parent / "filler"
    lines: list[str] = []
    try:
        for run.step, full in ((1, False), (2, True), (3, False)):
            lines += writer.poll()
            if ranks.is_first:
                _fill(filler) if full else filler.unlink(missing_ok=True)
            ranks.barrier()
            writer.save(run.engine, run.state())
            while writer.is_busy:
                lines += writer.poll()
        return lines + writer.finish()
    except OSError as error:
        return [*lines, f"ended by {type(error).__name__}: {error}"]
    finally:
        ranks.barrier()


def saved_with_a_failing_copy(ranks: Ranks, folder: Path) -> list[str]:
    """Save, save while the copy of one rank fails, and save again; what was said."""
    run, writer = TinyRun(ranks, 2).build(), writer_of(folder)
    lines: list[str] = []
    take = Snapshot.take
    for run.step in (1, 2, 3):
        fails = run.step == 2 and not ranks.is_first
        Snapshot.take = _broken if fails else take  # type: ignore[method-assign]
        writer.save(run.engine, run.state())
        while writer.is_busy:
            lines += writer.poll()
    return lines + writer.finish()


def _broken(snapshot: Snapshot) -> list[Any]:
    raise RuntimeError("no memory for the copy")


def _fill(path: Path) -> None:
    """Leave room for a few small files alone."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(file.tell() - 40_000)


def saved_for_ever(ranks: Ranks, folder: Path) -> None:
    """Save one checkpoint after another until killed."""
    averages = (("training.ema.decay", 0.9),)
    run, writer = TinyRun(ranks, 2, settings=averages).build(), writer_of(folder, keep_last=2)
    last = writer.last_complete
    run.step = CheckpointReader(last).state.step if last else 0
    while True:
        run.step += 1
        writer.save(run.engine, run.state())
        writer.poll()
