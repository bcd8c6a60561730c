"""Bad samples of all ranks together: told as they come, and the end of a run that has too many."""

from collections.abc import Callable

import torch.distributed as dist

from showo_data import BadSamples


def over_all_ranks(own: BadSamples) -> BadSamples:
    """What all ranks have counted; collective."""
    parts: list[BadSamples] = [own] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return BadSamples.merged(parts)


class BadSampleWatch:
    """Looks at the bad samples of a run now and then.

    Args:
        limit: most bad samples, as a fraction of those that this run has tried.
        say: takes one line for the log.
    """

    def __init__(self, limit: float, say: Callable[[str], None]) -> None:
        self.limit, self.say = limit, say
        self._told = 0

    def __call__(self, own: BadSamples) -> None:
        """Tell what was skipped whenever it has doubled; collective, and all ranks stop together.

        Raises:
            ValueError: there are too many; names the worst shards.
        """
        bad = over_all_ranks(own)
        if bad.exceeds(self.limit):
            line = (
                f"data.max_bad_fraction = {self.limit}: {bad.total / bad.tried:.1%} of "
                f"{bad.tried} samples are bad: {bad.summary()}"
            )
            self.say(line)
            raise ValueError(line)
        if bad.total >= max(1, 2 * self._told):
            self._told = bad.total
            self.say(bad.summary())
