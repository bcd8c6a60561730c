"""The paper in miniature: RecA and its alternatives from one pre-training on sparse captions, in one command.

    python benchmarks/mini_paper.py [--out runs/mini_paper] [--quick] [--arms NAME …] [--results FOLDER]

Every run is a process of the project's own commands and configs. A run that was finished is skipped, and one
that was killed resumes, so the same command continues after any stop. The results of each run are JSON in
OUT/results; RESULTS.md is written again after every run. Arms left out can be added by a later call. See
docs/mini.md.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from mini_paper import clip, curve, prompts, scoring, tables
from mini_paper.arms import ARMS, HERE, QUICK, QUICK_ARMS, Scale
from mini_paper.running import digest, finished, run
from mini_paper.steps import Paper, Step

from showo_data.files import claim

# Parts that this command starts as processes of their own: mini_paper.py clip --help.
PARTS = {"clip": clip.main, "prompts": prompts.main, "score": scoring.main}


def measure(paper: Paper, count: int) -> int:
    """Train ``count`` quick pre-trainings that differ in their seed, and record their curves."""
    run(paper.out, [*paper.shared_steps(), *paper.curve_steps(count)])
    curve.measure([paper.out / "runs" / f"curve-{seed}" for seed in range(1, count + 1)])
    return 0


def compare(paper: Paper, results: Path) -> int:
    """Run what is missing, write the tables; a quick comparison fails if its loss curve is off."""

    def tabulate(step: Step) -> None:
        if step.stage.name.endswith(": score"):
            tables.write(paper, results)

    start = time.perf_counter()
    run(paper.out, list(paper.steps()), tabulate)
    print(f"{tables.write(paper, results)}, after {(time.perf_counter() - start) / 60:.1f} minutes")
    if paper.scale != QUICK:
        return 0
    wrong = curve.check(paper.out / "runs" / "pretrain", curve.references())
    print("\n".join(wrong) or f"The loss curve is within the spread of {curve.FILE.name}.")
    return 1 if wrong else 0


def main(argv: list[str]) -> int:
    """Read the command line; returns the exit code."""
    if argv and argv[0] in PARTS:
        PARTS[argv[0]](argv[1:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: runs/mini_paper, with _quick if quick")
    parser.add_argument("--quick", action="store_true", help="small, in about twelve minutes")
    parser.add_argument(
        "--results", type=Path, help=f"folder of RESULTS.md; default: {HERE.name}, or OUT if quick"
    )
    names = [arm.name for arm in ARMS]
    parser.add_argument(
        "--arms", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--measure", type=int, metavar="N", help="measure the quick curve's spread")
    options = parser.parse_args(argv)
    quick = options.quick or options.measure
    out = options.out or Path(f"runs/mini_paper{'_quick' if quick else ''}")
    paper = Paper(out, QUICK, QUICK_ARMS) if quick else Paper(out, Scale())
    try:
        claim(out, "paper.json", digest(list(paper.steps())), "a comparison")
        if options.arms:
            paper = replace(paper, arms=tuple(arm for arm in ARMS if arm.name in options.arms))
        paper = replace(paper, finished=finished(out))
        if options.measure:
            return measure(paper, options.measure)
        return compare(paper, options.results or (out if quick else HERE))
    except (RuntimeError, ValueError) as error:
        print(f"mini_paper: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
