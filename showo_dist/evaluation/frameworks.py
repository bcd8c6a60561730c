"""What ``--framework`` can name."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from showo_dist.evaluation import answered, mini, painted
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.summary import Outcome


@dataclass(frozen=True)
class Framework:
    """A way to evaluate checkpoints.

    Attributes:
        help: one line about it.
        batch: pictures or questions at a time, unless the command line says otherwise.
        paints: whether it takes the options of painting.
        add_arguments: declares its own options.
        run: evaluates one checkpoint; called on every rank.
    """

    help: str
    batch: int
    paints: bool
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Job], Outcome]


FRAMEWORKS: dict[str, Framework] = {
    "mini": Framework(mini.HELP, mini.BATCH, True, mini.add_arguments, mini.run),
    **{
        name: Framework(
            benchmark.help,
            painted.BATCH,
            True,
            partial(painted.add_arguments, benchmark),
            partial(painted.run, benchmark),
        )
        for name, benchmark in painted.BENCHMARKS.items()
    },
    **{
        name: Framework(
            benchmark.help,
            answered.BATCH,
            False,
            partial(answered.add_arguments, benchmark),
            partial(answered.run, benchmark),
        )
        for name, benchmark in answered.BENCHMARKS.items()
    },
}
