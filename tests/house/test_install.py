"""launchers/install.sh keeps the torch build that it has installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def _program(path: Path, command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def test_pip_is_asked_for_the_installed_torch(tmp_path: Path) -> None:
    """PyPI's wheel is 2.13.0 to pip, and 2.13.0+cu130 to torch itself."""
    site, venv = tmp_path / "site", tmp_path / ".venv" / "bin"
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("__version__ = '2.13.0+cu130'\n")
    (site / "torch-2.13.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
    (site / "torch-2.13.0.dist-info" / "METADATA").write_text(metadata)
    _program(venv / "python", f'PYTHONPATH="{site}" exec "{sys.executable}" "$@"')
    _program(venv / "pip", f'printf "%s\\n" "$@" >> "{tmp_path}/asked"')
    (tmp_path / "launchers").mkdir()
    script = shutil.copy(ROOT / "launchers" / "install.sh", tmp_path / "launchers")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([script], env=os.environ | {"PATH": path}, capture_output=True, check=True)
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["install", "--quiet", "--editable", ".[dev]", "torch==2.13.0"]
