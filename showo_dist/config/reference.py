"""The tables of ``docs/configuration.md``, generated from a schema and the docstrings under its fields.

``python -m showo_dist.config.reference`` prints them; a test compares them with the page.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, get_type_hints

from showo_dist.config.hints import describe, fields_of
from showo_dist.config.schema import TrainConfig


def field_docs(section: type) -> dict[str, str]:
    """Field name -> the docstring right under it, on one line."""
    (class_node,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(class_node, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, following in zip(class_node.body, class_node.body[1:], strict=False):
        is_field = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if (
            is_field
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            assert isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            docs[node.target.id] = " ".join(str(following.value.value).split())
    return docs


def tables(schema: type, prefix: str = "") -> str:
    """Markdown: one heading and one table per section of the schema, nested sections after their parent."""
    defaults, docs = schema(), field_docs(schema)
    ranged = get_type_hints(schema, include_extras=True)
    rows, nested = [], []
    for name, hint in fields_of(schema).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            nested.append(tables(hint, f"{prefix}{name}."))
        else:
            default = _as_yaml(getattr(defaults, name))
            rows.append(
                f"| `{prefix}{name}` | {_type(hint, ranged[name])} | `{default}` | {docs[name]} |"
            )
    title = f"### `{prefix[:-1]}`" if prefix else "### Top level"
    head = [title, "", _summary(schema), ""]
    body = (
        ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""]
        if rows
        else []
    )
    own = "\n".join(head + body)
    return "\n".join([own, *nested])


def _summary(section: type) -> str:
    return " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split())


def _type(hint: Any, ranged: Any) -> str:
    if hint is Any:
        return "path, list of paths or null"
    words = [described.words for described in getattr(ranged, "__metadata__", ())]
    return ", ".join([describe(hint), *words])


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


if __name__ == "__main__":
    print(tables(TrainConfig), end="")
