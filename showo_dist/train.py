"""Train: ``deepspeed --num_gpus 2 --module showo_dist.train config=FILE key=value …``.

torchrun and plain ``python -m showo_dist.train`` (one process) take the same arguments.
"""

import sys

from showo_dist.config import TrainConfig, load
from showo_dist.runtime.exits import exit_plainly
from showo_dist.runtime.ranks import joined


def main(argv: list[str] | None = None) -> int:
    """Run the training that the arguments describe; returns the exit code."""
    config = load(sys.argv[1:] if argv is None else argv, TrainConfig)
    with joined(config.distributed.timeout_s, always_group=True) as ranks:
        from showo_dist.training.trainer import Trainer  # DeepSpeed takes seconds to import

        Trainer(config, ranks).train()
    return 0


if __name__ == "__main__":
    exit_plainly("showo_dist.train", main)
