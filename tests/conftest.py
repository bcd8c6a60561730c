"""The ``--golden`` option and the files behind it, shared by all tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.damages import stop_case

# Threads of two test processes on two cores wait for each other: a small training takes four times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "parity" / "golden"


def run_script(*command: object, folder: Path = ROOT, limit_s: float = 300) -> str:
    """Run Python with these arguments in ``folder``; returns what it printed. It must succeed in time."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        help="folder of tensors computed by the published implementations",
    )


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """Folder of the golden tensors: the repository's own, or ``--golden DIR``."""
    folder: Path = request.config.getoption("--golden")
    if not (folder / "meta.json").is_file():
        pytest.fail(f"--golden {folder}: no meta.json there")
    return folder


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    """Names and shapes of the released checkpoints, and which parameters decay there."""
    return json.loads((GOLDEN / "checkpoint_manifest.json").read_text())


@pytest.fixture
def case_limits() -> Iterator[None]:
    """Let :func:`tests.damages.limited` end a case that hangs."""
    before = signal.signal(signal.SIGALRM, stop_case)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
