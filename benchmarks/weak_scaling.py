"""Weak scaling on one machine: training steps per second of two ranks, one core each, against one rank.

    python benchmarks/weak_scaling.py [--engines zero-0 zero-1 zero-2 zero-3 torch] [--json FILE]

Real runs of the mini world's pre-training, in turn, on the data that ``make train`` makes: every rank has one
core, one thread and the same number of samples, so the ratio is what gloo's messages and the shared memory
cost. The first steps, which include warming up, are not timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report

ENGINES = ("zero-0", "zero-1", "zero-2", "zero-3", "torch")


def step_seconds(
    engine: str, ranks: int, skipped: int, steps: int, changes: list[str], folder: Path
) -> float:
    """Median seconds of a logged step after the first ``skipped`` of a run of its own."""
    kind, _, stage = engine.partition("-")
    command = [
        *("taskset", "--cpu-list", "0" if ranks == 1 else "0,1"),
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(
            f"--nproc-per-node={ranks}",
            "-m",
            "showo_dist.train",
            "config=configs/mini/pretrain.yaml",
        ),
        *(f"experiment.output_dir={folder}", f"training.max_train_steps={skipped + steps}"),
        *("experiment.log_every=1", "experiment.save_every=100000", "experiment.eval_every=100000"),
        "experiment.generate_every=100000",
        f"distributed.engine={'torch' if kind == 'torch' else 'deepspeed'}",
        *([f"distributed.zero_stage={stage}"] if stage else []),
        *changes,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Errors of a run, as missing data, are shown.
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=900)
    lines = (folder / "metrics.jsonl").read_text().splitlines()[skipped:]
    return statistics.median(json.loads(line)["step_s"] for line in lines)


def main() -> None:
    """Run, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["zero-2"])
    parser.add_argument("--skip", type=int, default=20, help="steps before (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="timed steps (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the config")
    options = parser.parse_args()
    options.device = "cpu"
    rows = []
    for engine in options.engines:
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.repeats):
            for ranks, seconds in found.items():
                with tempfile.TemporaryDirectory() as folder:
                    taken = step_seconds(
                        engine, ranks, options.skip, options.steps, options.changes, Path(folder)
                    )
                seconds.append(taken)
        one, two = (statistics.median(seconds) for seconds in found.values())
        times = {"one rank s": one, "two ranks s": two, "steps/s, two / one": one / two}
        rows.append({"engine": engine, **times})
    worst = min(float(row["steps/s, two / one"]) for row in rows)
    settings = {"steps": options.steps, "repeats": options.repeats}
    report("weak_scaling", rows, {"least weak scaling": worst}, settings, options)


if __name__ == "__main__":
    main()
