"""Schemas as nested dataclasses: types and ranges of dotted keys, in words, and the nearest known key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


class Range(NamedTuple):
    """The numbers that a field accepts, as the metadata of its type: ``Annotated[int, AT_LEAST_ONE]``."""

    words: str
    allows: Callable[[float], bool]


AT_LEAST_ONE = Range("1 or more", lambda value: value >= 1)
AT_LEAST_ZERO = Range("0 or more", lambda value: value >= 0)
ABOVE_ZERO = Range("a number above 0", lambda value: value > 0)
FRACTION = Range("0 to 1", lambda value: 0 <= value <= 1)
SHARE = Range("above 0, at most 1", lambda value: 0 < value <= 1)
BELOW_ONE = Range("0 to below 1", lambda value: 0 <= value < 1)


def out_of_range(config: Any, prefix: str = "") -> Iterator[str]:
    """One line for every number of a config that its field's :class:`Range` does not allow."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from out_of_range(value, f"{prefix}{name}.")
        elif get_origin(hint) is Annotated and value is not None:
            (allowed,) = hint.__metadata__
            if not (math.isfinite(value) and allowed.allows(value)):
                yield f"{prefix}{name} = {value}: expected {allowed.words}"


@cache
def fields_of(schema: type) -> dict[str, Any]:
    """Field name -> type hint of one dataclass, class variables left out."""
    hints = get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


@cache
def known_keys(schema: type) -> tuple[str, ...]:
    """Every dotted key of a schema that is not a section, in the order of definition."""
    keys: list[str] = []
    for name, hint in fields_of(schema).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            keys += [f"{name}.{key}" for key in known_keys(hint)]
        else:
            keys.append(name)
    return tuple(keys)


def hint_of(schema: type, key: str) -> Any:
    """Type hint behind a dotted key; ``Any`` inside a free mapping (``dict`` field), None if
    unknown."""
    hint: Any = schema
    for part in key.split("."):
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            return Any if _is_mapping(hint) else None
        hint = fields_of(hint).get(part)
    return hint


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: Any) -> str:
    """The values that a hint allows, in words: ``an integer or null``, ``one of mask, random_replace``."""
    return " or ".join(_describe_one(member) for member in members(hint))


def nearest(schema: type, key: str) -> str:
    """The known key that a misspelt or misplaced one most likely means."""
    known = known_keys(schema)
    leaf = key.rpartition(".")[2]
    same_leaf = [candidate for candidate in known if candidate.rpartition(".")[2] == leaf]
    # A misspelt key resembles one closely; a misplaced one has its name, in the first section that knows it.
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
    return (close or same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.0))[0]


def _is_mapping(hint: Any) -> bool:
    return any(get_origin(member) is dict for member in members(hint))


def _describe_one(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(hint))
    if get_origin(hint) is list:
        return f"a list (each {describe(get_args(hint)[0])})"
    if get_origin(hint) is dict:
        return "a mapping"
    if dataclasses.is_dataclass(hint):
        return "a section of keys"
    return _WORDS.get(hint, str(hint))
