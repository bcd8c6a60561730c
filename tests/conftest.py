"""Options shared by all tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_GOLDEN = ROOT.parent / "shared" / "golden" / "a"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=DEFAULT_GOLDEN,
        help="folder of tensors computed by the published implementations",
    )


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """Folder of goldens; the test is skipped, with the reason, where there is none."""
    folder: Path = request.config.getoption("--golden")
    if not (folder / "meta.json").is_file():
        pytest.skip(f"no goldens at {folder}: pass --golden DIR")
    return folder
