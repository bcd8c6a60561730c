"""Two runs that never trained, and a real browser."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from showo_dist.report.gallery.checkpoints import find_runs
from showo_dist.report.gallery.cli import Gallery, build
from showo_dist.report.gallery.generating import Settings
from tests.evaluation.conftest import checkpoint

__all__ = ["checkpoint"]

PROMPTS = ("a red circle", "two <b>blue</b> squares & a ring", "a cross")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LIMIT_S = 400


@pytest.fixture(scope="session", name="runs")
def _runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one`` with checkpoints 3 and 6 and metrics, ``two`` with checkpoint 3."""
    root = tmp_path_factory.mktemp("runs")
    for place in ("one/checkpoint-000003", "one/checkpoint-000006", "two/checkpoint-000003"):
        shutil.copytree(checkpoint, root / place)
    lines = [{"step": n, "loss": 5 / n, "loss/t2i": 4 / n} for n in range(1, 40)]
    (root / "one" / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    return root


@pytest.fixture(scope="session")
def gallery(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """The page of both runs."""
    torch.set_num_threads(1)
    settings = Settings(PROMPTS, seed=1, steps=4, frames=2)
    out = tmp_path_factory.mktemp("gallery")
    return build(find_runs([runs], columns=4), settings, out, "cpu", batch=2)


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Open an address in a headless browser; returns the document after its scripts ran.

    Extra options go to the browser. Skipped, with the reason, where there is none.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(_BROWSERS)}")
    profile = tmp_path_factory.mktemp("browser")

    def opened(address: str, *options: str) -> str:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=4000", *options]
        done = subprocess.run(
            [*command, "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=True,
            env={**os.environ, "LANG": "C.UTF-8"},
        )
        return done.stdout

    return opened
