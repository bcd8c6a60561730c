"""Paths of the configs and of the list of published values."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="session")
def published_values() -> str:
    """The list of published values: the file SHOWO_PUBLISHED_CONFIGS, or one beside the project."""
    default = ROOT.parent / "shared" / "published-configs.md"
    file = Path(os.environ.get("SHOWO_PUBLISHED_CONFIGS", default))
    if not file.is_file():
        pytest.skip(f"no list of published values at {file}: set SHOWO_PUBLISHED_CONFIGS")
    return file.read_text()
