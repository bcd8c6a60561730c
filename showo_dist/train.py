"""Train: ``deepspeed --num_gpus 2 --module showo_dist.train config=FILE key=value …``.

torchrun and plain ``python -m showo_dist.train`` (one process) take the same arguments.
"""

import sys

from showo_dist.config import TrainConfig, load
from showo_dist.training.launch import process_group


def main(argv: list[str] | None = None) -> int:
    """Run the training that the arguments describe; returns the exit code."""
    arguments = [
        a for a in (sys.argv[1:] if argv is None else argv) if not a.startswith("--local_rank")
    ]
    with process_group() as ranks:
        config = load(arguments, TrainConfig)
        from showo_dist.training.trainer import Trainer  # DeepSpeed takes seconds to import

        Trainer(config, ranks).train()
    return 0


if __name__ == "__main__":
    from showo_dist.training.launch import exit_plainly

    exit_plainly(main)
