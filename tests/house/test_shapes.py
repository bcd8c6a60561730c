"""The shape of the code: every public name has a docstring, and functions stay short."""

import ast
from collections.abc import Iterator

from tests.house.test_layers import modules

LONGEST = 60  # lines of a function, its docstring included

Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every module that is not empty."""
    for module, path in modules().items():
        tree = ast.parse(path.read_text())
        if tree.body:
            yield module, tree


def is_overload(node: Function | ast.ClassDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def test_public_names_have_docstrings() -> None:
    """Modules, and the functions and classes at their top level; methods are left to judgement."""
    missing = []
    for module, tree in trees():
        if not ast.get_docstring(tree):
            missing.append(module)
        for node in tree.body:
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not is_overload(node):
                missing.append(f"{module}.{node.name}")
    assert not missing


def test_functions_are_short() -> None:
    long = [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.end_lineno
        if node.end_lineno - node.lineno >= LONGEST
    ]
    assert not long
