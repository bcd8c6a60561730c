"""Steps skipped for a non-finite loss or gradient: the suspected samples, and the end of a hopeless run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

from showo_data import MicroBatch, Sample
from showo_dist.checkpoint.folders import (
    complete_checkpoints,
    folder_of,
    latest,
    resumable_checkpoints,
    step_of,
)
from showo_dist.logging.records import drop_after, open_lines, read_metrics
from showo_dist.runtime.exits import StoppedError
from showo_dist.training.step import StepLosses
from showo_launch.exit_codes import NON_FINITE

FILE = "nonfinite.jsonl"
_Line = dict[str, int | str]


class NonFiniteSteps:
    """Counts non-finite steps; called after every step on all ranks.

    A skipped step changes no weight, so a checkpoint is good once a later step was finite. No checkpoint
    should be written while steps are being skipped (:attr:`in_a_row` above 0).

    Args:
        run: the run's folder, where the first rank writes ``nonfinite.jsonl``; its ``latest`` names the
            checkpoint that the run resumed from, and none has been saved since.
        limit: steps in a row that end the run.
        log: takes one line for the log.
        rank: of this process.
        start_step: steps done before; lines of later steps are removed.

    Attributes:
        in_a_row: skipped steps since the last finite one, or since the process began.
        total: skipped steps of the run; counted on rank 0 only.
    """

    def __init__(
        self, run: Path, limit: int, log: Callable[[str], None], rank: int, start_step: int
    ) -> None:
        self.run, self.limit, self.log, self.rank = run, limit, log, rank
        self.in_a_row = self.total = 0
        # Whether the weights to resume from are good is seen at the next finite step.
        self._last_finite = start_step
        # Those of an earlier run, or from before the run was set back, until the run has replaced them.
        resumed = latest(run) == folder_of(run, start_step)
        before = set(resumable_checkpoints(run)) if resumed else set()
        self._foreign = {
            p: p.stat().st_mtime_ns for p in complete_checkpoints(run) if p not in before
        }
        if rank == 0:
            # Steps after the checkpoint run again and may write their lines again.
            drop_after(run / FILE, start_step)
            self.total = len({line["step"] for line in read_metrics(run / FILE)})

    @property
    def are_too_many(self) -> bool:
        """Whether the run should end."""
        return self.in_a_row >= self.limit

    def __call__(self, step: int, losses: StepLosses, window: Sequence[MicroBatch]) -> None:
        """Record the outcome of a step; collective when it was skipped.

        Args:
            step: its number.
            losses: its outcome.
            window: the samples of its micro-steps on this rank.
        """
        if losses.applied:
            self.in_a_row, self._last_finite = 0, step
            return
        self.in_a_row += 1
        self.total += 1
        lines = _over_all_ranks(step, self.rank, losses.bad_flows, window)
        if self.rank == 0:
            try:
                with open_lines(self.run / FILE) as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
            except OSError as error:
                self.log(f"{self.run / FILE}: {error.strerror}; the lines of step {step} are lost")
        self.log(_skip_message(step, lines))

    def end(self, step: int) -> StoppedError:
        """The error that ends the run after ``step``; no save may be running, since it names the last good
        checkpoint."""
        # A checkpoint is known to be good only once a later step from its weights was finite.
        own = (
            p
            for p in complete_checkpoints(self.run)
            if p.stat().st_mtime_ns != self._foreign.get(p)
        )
        good = [p for p in own if step_of(p) < self._last_finite]
        where = f"the last good checkpoint is {good[-1]}" if good else "there is no good checkpoint"
        return StoppedError(
            NON_FINITE,
            f"fault.max_nonfinite_in_a_row = {self.limit}: the loss or gradient of as many steps was not "
            f"finite, the last of them step {step}; {where}; the samples are in {self.run / FILE}",
        )


def _over_all_ranks(
    step: int, rank: int, bad_flows: Sequence[set[str]], window: Sequence[MicroBatch]
) -> list[_Line]:
    """The suspected samples of all ranks: those of the flows and micro-steps with a non-finite loss, or all
    samples of the step when every loss was finite and only the gradient was not."""
    # A loss points at the flow and micro-step at fault; a gradient alone does not, so all are suspects.
    pairs = list(zip(window, bad_flows, strict=True))
    own = (
        [_line(step, rank, "loss", s) for batch, bad in pairs for s in _samples(batch, bad)],
        [_line(step, rank, "gradient", s) for batch in window for s in _samples(batch, None)],
    )
    parts = [own] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    by_loss = [line for part, _ in parts for line in part]
    return by_loss or [line for _, part in parts for line in part]


def _samples(batch: MicroBatch, flows: set[str] | None) -> list[Sample]:
    groups = batch.samples.items()
    return [s for flow, group in groups if flows is None or flow in flows for s in group]


def _line(step: int, rank: int, what: str, sample: Sample) -> _Line:
    return {
        "step": step,
        "rank": rank,
        "what": what,
        "flow": sample.flow,
        "position": sample.position,
        "shard": sample.shard,
        "key": sample.key,
    }


def _skip_message(step: int, lines: Sequence[_Line]) -> str:
    what = lines[0]["what"] if lines else "gradient"
    flows = ", ".join(sorted({str(line["flow"]) for line in lines}))
    ranks = ", ".join(map(str, sorted({int(line["rank"]) for line in lines})))
    return (
        f"step {step} skipped on all ranks: its {what} is not finite; suspected are {len(lines)} samples "
        f"({flows}) of rank {ranks}, see {FILE}"
    )
