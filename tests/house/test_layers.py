"""The dependency rule: kernels and data know nothing of the rest, and kernels need torch alone."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = {"showo_dist", "showo_kernels", "showo_data"}
FOLDERS = {
    "showo_kernels": ROOT / "kernels" / "showo_kernels",
    "showo_data": ROOT / "data_pipelines" / "showo_data",
}
# flash_attn is optional and looked up where it is used.
KERNELS_MAY_IMPORT = {"torch", "showo_kernels", "flash_attn"}


def imported_packages(folder: Path) -> dict[str, set[str]]:
    """Top-level packages that the files of a folder import, with the files."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.name)
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_lower_layers_import_no_other_of_ours(package: str) -> None:
    imported = imported_packages(FOLDERS[package])
    assert package in imported
    wrong = {name: files for name, files in imported.items() if name in OURS - {package}}
    assert not wrong


def test_kernels_need_torch_alone() -> None:
    imported = set(imported_packages(FOLDERS["showo_kernels"]))
    third_party = {name for name in imported if name not in sys.stdlib_module_names}
    brought = {re.split(r"\W", line, maxsplit=1)[0] for line in requires("torch") or ()}
    assert "filelock" in brought, "then it is no longer there wherever torch is"
    assert third_party <= KERNELS_MAY_IMPORT | {"filelock"}


def test_source_roots_are_no_packages() -> None:
    """An importable ``kernels`` would shadow the Hugging Face package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "data_pipelines" / "__init__.py").exists()


@pytest.mark.parametrize("package", ["showo_kernels", "showo_data"])
def test_lower_layers_load_without_the_rest(package: str) -> None:
    """What is really loaded, not only what is written."""
    others = sorted(OURS - {package} | {"deepspeed", "transformers"})
    code = f"import sys, {package}; print([m for m in {others} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout.strip() == "[]"
