"""``config=FILE key=value ...`` to a checked dataclass; any nested dataclass is a schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, overload, runtime_checkable

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from showo_dist.config.hints import describe, fields_of, hint_of, nearest
from showo_dist.config.schema import TrainConfig
from showo_dist.config.sources import parse_arguments, parse_overrides, read_file, rename

Schema = TypeVar("Schema")


@runtime_checkable
class Checkable(Protocol):
    """A schema that knows which of its values exclude each other."""

    def check(self) -> None:
        """Raise ValueError, one line per problem."""


@overload
def load(arguments: Sequence[str], *, check: bool = True) -> TrainConfig: ...


@overload
def load(arguments: Sequence[str], schema: type[Schema], check: bool = True) -> Schema: ...


def load(arguments: Sequence[str], schema: type[Any] = TrainConfig, check: bool = True) -> Any:
    """Config of a command line ``config=FILE key=value ...``; the file may be absent, later wins.

    Args:
        arguments: the command line without the program's name.
        schema: dataclass of the config. Its ``ALIASES`` class variable (top-level key -> dotted
            key) and its ``check()`` method are used when it has them.
        check: call ``check()``; wrong keys and types are errors in any case.

    Raises:
        ValueError: names the key or file, the value, what is allowed and the nearest known key.
    """
    file, overrides = parse_arguments(arguments)
    return load_file(file, schema, overrides, check=check)


def load_file(
    path: str | Path | None,
    schema: type[Schema],
    overrides: Sequence[str] = (),
    check: bool = True,
) -> Schema:
    """As ``load``, from a file (None: the schema's defaults) and ``key=value`` overrides."""
    aliases = dict(getattr(schema, "ALIASES", {}))
    layers = read_file(path) if path is not None else []
    layers += parse_overrides(overrides, schema, aliases)
    raw = OmegaConf.merge({}, *(rename(layer, aliases) for layer in layers))
    assert isinstance(raw, DictConfig)
    config = _instantiate(raw, schema)
    if check and isinstance(config, Checkable):
        config.check()
    return config


def to_yaml(config: Any) -> str:
    """A config as YAML that ``load_file`` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _instantiate(raw: DictConfig, schema: type[Schema]) -> Schema:
    values = cast(dict[str, Any], OmegaConf.to_container(raw, resolve=False))
    problems = _unknown_keys(values, schema, schema, prefix="")
    if problems:
        raise ValueError("\n".join(problems))
    try:
        return cast(Schema, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), raw)))
    except OmegaConfBaseException as error:
        raise ValueError(_type_message(error, values, schema)) from None


def _unknown_keys(values: Any, section: Any, schema: type, prefix: str) -> list[str]:
    """Lines about keys that the schema lacks, and about sections that are no sections."""
    if not dataclasses.is_dataclass(section):
        return []
    if not isinstance(values, dict):
        return [f"{prefix[:-1]} = {values!r}: expected a section of keys"]
    assert isinstance(section, type)
    known = fields_of(section)
    problems: list[str] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name in known:
            problems += _unknown_keys(value, known[name], schema, f"{key}.")
        else:
            problems.append(
                f"{key} = {value!r}: unknown key; nearest known: {nearest(schema, key)}"
            )
    return problems


def _type_message(error: OmegaConfBaseException, values: dict[str, Any], schema: type) -> str:
    key = (error.full_key or "").partition("[")[0]
    value = _value_at(values, key)
    if isinstance(error, InterpolationResolutionError):
        return f"{key} = {value!r}: {str(error.msg or error).splitlines()[0]}"
    return f"{key} = {value!r}: expected {describe(hint_of(schema, key))}"


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
