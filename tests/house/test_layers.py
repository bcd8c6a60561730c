"""The order of the rooms: a module imports only from its own room and from rooms below it.

The rule is read from the source, so imports inside functions count as well.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = {
    "showo_kernels": ROOT / "kernels",
    "showo_data": ROOT / "data_pipelines",
    "showo_launch": ROOT / "launchers",
    "showo_dist": ROOT,
}
LOWER = tuple(package for package in SOURCES if package != "showo_dist")
ROOMS = (
    *("runtime", "logging", "config", "sequences", "checkpoint", "models", "faults", "generation"),
    *("tokenizer", "encode", "training", "evaluation", "export", "report", "plan", "recipe"),
)
TOP = ("cli", "train", "mini")  # on one level, above all rooms
# flash_attn is optional and looked up where it is used; torch itself requires filelock.
KERNELS_MAY_IMPORT = {"torch", "showo_kernels", "flash_attn", "filelock"}
MOST_FILES = {"showo_dist": 92, "showo_": 135}  # that training may reach, by prefix of their names


@cache
def modules() -> dict[str, Path]:
    """Every module of the four source roots, by dotted name."""
    found = {}
    for package, root in SOURCES.items():
        for path in (root / package).rglob("*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def import_nodes(node: ast.AST, *, in_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below ``node``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif in_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from import_nodes(child, in_functions=in_functions)


@cache
def imports(module: str, *, in_functions: bool) -> frozenset[str]:
    """Dotted names that a module imports; ``from a import b`` gives a.b where that is a module."""
    found = set()
    for node in import_nodes(ast.parse(modules()[module].read_text()), in_functions=in_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0 and node.module, f"{module}: relative import"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules() else node.module for name in names}
    return frozenset(found)


def ours(module: str, *, in_functions: bool) -> set[str]:
    """The modules of this project that a module imports."""
    return {name for name in imports(module, in_functions=in_functions) if name in modules()}


def level(module: str) -> int:
    """Height of a module in the order; the lower packages have height -1."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    if package != "showo_dist":
        return -1
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def packages_of(package: str) -> dict[str, set[str]]:
    """Top-level packages that the modules of ``package`` import, with those modules."""
    found: dict[str, set[str]] = {}
    for module in modules():
        if module.partition(".")[0] == package:
            for name in imports(module, in_functions=True):
                found.setdefault(name.partition(".")[0], set()).add(module)
    return found


def test_every_folder_is_a_room() -> None:
    seen = {module.split(".")[1] for module in modules() if module.startswith("showo_dist.")}
    assert seen == {*ROOMS, *TOP}


def test_no_module_imports_from_a_higher_room() -> None:
    upward = [
        f"{module} imports {name}"
        for module in modules()
        for name in sorted(ours(module, in_functions=True))
        if level(name) > level(module)
    ]
    assert not upward


@pytest.mark.parametrize("package", LOWER)
def test_lower_packages_import_no_other_of_ours(package: str) -> None:
    imported = packages_of(package)
    assert package in imported
    assert not {name: imported[name] for name in imported.keys() & SOURCES.keys() - {package}}


def test_no_import_cycle() -> None:
    graph = {module: ours(module, in_functions=False) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " imports ".join(reversed(error.args[1])))


def test_files_that_training_imports() -> None:
    """Count every file that the entry can reach, imports inside functions included."""
    reached, waiting = set(), ["showo_dist.train"]
    while waiting:
        module = waiting.pop()
        if module in modules() and module not in reached:
            reached.add(module)
            waiting += [module.rpartition(".")[0], *ours(module, in_functions=True)]
    for prefix, most in MOST_FILES.items():
        counted = sorted(name for name in reached if name.startswith(prefix))
        assert len(counted) < most, counted


def test_kernels_need_torch_alone() -> None:
    third_party = packages_of("showo_kernels").keys() - sys.stdlib_module_names
    required = {re.split(r"\W", line, maxsplit=1)[0] for line in requires("torch") or ()}
    assert "filelock" in required, "torch does not require filelock any more"
    assert third_party <= KERNELS_MAY_IMPORT


@pytest.mark.parametrize("folder", ["kernels", "data_pipelines", "launchers"])
def test_source_roots_are_no_packages(folder: str) -> None:
    """An importable ``kernels`` would shadow the Hugging Face package of that name."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", LOWER)
def test_lower_packages_load_without_the_rest(package: str) -> None:
    """The modules in ``sys.modules`` after an import, in a new process."""
    others = sorted({*SOURCES} - {package} | {"deepspeed", "transformers"})
    code = f"import sys, {package}; print([m for m in {others} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout.strip() == "[]"
