"""Train: ``deepspeed --num_gpus 2 --module showo_dist.train config=FILE key=value …``.

torchrun and plain ``python -m showo_dist.train`` (one process) take the same arguments.
"""

import sys
from pathlib import Path

from showo_dist.config import TrainConfig, load
from showo_dist.faults.evidence import record_collectives
from showo_dist.faults.progress import Progress
from showo_dist.faults.signals import StopRequest
from showo_dist.faults.watch import Settings, watched
from showo_dist.runtime.exits import machine_errors, run_and_exit
from showo_dist.runtime.lock import held
from showo_dist.runtime.ranks import joined
from showo_kernels.folders import check_cache_folders

PROGRAM = "showo_dist.train"


def main(argv: list[str] | None = None) -> int:
    """Run the training that the arguments describe; returns the exit code."""
    config = load(sys.argv[1:] if argv is None else argv, TrainConfig)
    check_cache_folders()
    run = Path(config.experiment.output_dir)
    settings = Settings(
        timeout_s=config.fault.timeout_s,
        long_s=config.distributed.timeout_s,
        folder=run / "faults",
        program=PROGRAM,
    )
    record_collectives(watched=bool(settings.timeout_s))
    progress = Progress()
    with (
        StopRequest() as stop,
        joined(config.distributed.timeout_s, always_group=True) as ranks,
        watched(ranks, progress, settings, stop),
        held(ranks, run),  # before anything there is read or removed
    ):
        from showo_dist.training.trainer import Trainer

        trainer = Trainer(config, ranks, progress, stop)
        with machine_errors():
            trainer.train()
    return 0


if __name__ == "__main__":
    run_and_exit(PROGRAM, main)
