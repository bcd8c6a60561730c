"""Compare the seconds of a step that ``showo-dist plan`` predicts with real steps over links of three speeds.

    python benchmarks/plan.py [--json FILE]        # root; needs the packages of docs/launchers/rehearse.md

Two ranks, on two hosts made of network namespaces, train the mini world's model with ZeRO 0 to 3. Compute is
the time of a step over an unlimited link; the rest is predicted. Run it on a quiet machine.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import report

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # for the ranks that the tests measure too

from showo_dist.plan.timing import Cluster, Compute, step_time
from showo_launch.rehearsal.programs import missing_requirement
from tests.plan.links import HOSTS, STAGES, Measured, measure_links, profile


def rows(measured: Measured) -> list[dict[str, Any]]:
    """One row per ZeRO stage and limited link."""
    found = []
    for stage in STAGES:
        calls, busy = profile(stage).collectives, measured[stage][None]["seconds"]
        for rate, step in measured[stage].items():
            if rate is None:
                continue
            bytes_per_s = float(rate.removesuffix("mbit")) * 1e6 / 8
            cluster = Cluster(HOSTS, 1, "gloo", float("inf"), bytes_per_s, 0.0, overlaps=False)
            predicted = step_time(Compute(busy, 0.0, 0.0, 0.0, 0.0), calls, cluster).total_s
            row = {"link": rate, "predicted s": predicted, "measured s": step["seconds"]}
            ratio = {"predicted / measured": predicted / step["seconds"]}
            found.append({"ZeRO": str(stage), "compute s": busy, **row, **ratio})
    return found


def main() -> None:
    """Measure, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    options.device = "cpu"
    if reason := missing_requirement():
        parser.error(reason)
    with tempfile.TemporaryDirectory() as folder:
        table = rows(measure_links(Path(folder) / "traffic.json"))
    worst = max(abs(row["predicted / measured"] - 1) for row in table)
    report("plan", table, {"largest deviation": worst}, {"hosts": HOSTS}, options)


if __name__ == "__main__":
    main()
