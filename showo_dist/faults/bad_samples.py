"""Count the bad samples of all ranks, log them as they grow, and stop a run that has too many."""

from collections.abc import Callable, Container, Iterable

import torch.distributed as dist

from showo_data import BadSamples


def over_all_ranks(own: BadSamples) -> BadSamples:
    """The bad samples of all ranks together; collective."""
    parts: list[BadSamples] = [own] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return BadSamples.merged(parts)


class BadSampleWatch:
    """Checks the bad samples of a run against a limit.

    Args:
        limit: largest allowed fraction of bad samples among those tried since the start.
        log: takes one line for the log.
    """

    def __init__(self, limit: float, log: Callable[[str], None]) -> None:
        self.limit, self.log = limit, log
        self._logged = 0

    def __call__(self, own: BadSamples) -> None:
        """Log the skipped samples whenever their number has doubled; collective, so all ranks stop together.

        Raises:
            ValueError: too many samples are bad; names the worst shards.
        """
        bad = over_all_ranks(own)
        if bad.exceeds(self.limit):
            line = (
                f"data.max_bad_fraction = {self.limit}: {bad.total / bad.tried:.1%} of "
                f"{bad.tried} samples are bad: {bad.summary()}"
            )
            self.log(line)
            raise ValueError(line)
        if bad.total >= max(1, 2 * self._logged):
            self._logged = bad.total
            self.log(bad.summary())


class Unlabelled:
    """Notices flows that train nothing, because none of their tokens is supervised; called after every step.

    Args:
        flows: of the run.
        log: takes a line for the log, once per series of such steps.
        limit: steps in a row without a label over all ranks.
    """

    def __init__(self, flows: Iterable[str], log: Callable[[str], None], limit: int = 10) -> None:
        self._steps = dict.fromkeys(flows, 0)
        self.log, self.limit = log, limit

    def __call__(self, labelled: Container[str]) -> None:
        """Count a step.

        Args:
            labelled: the flows that had labels in it.
        """
        for flow, steps in self._steps.items():
            self._steps[flow] = 0 if flow in labelled else steps + 1
            if self._steps[flow] == self.limit:
                self.log(
                    f"{flow} TRAINS NOTHING: no token of it was supervised in {self.limit} steps. A limit "
                    "(dataset.preprocessing.max_seq_length) or a long prompt may cut all of its answers"
                )
