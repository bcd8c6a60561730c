"""Raw values from YAML files (with inheritance) and from ``key=value`` arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from showo_dist.config.hints import hint_of, members

BASE_KEY = "base"
OVERRIDE = re.compile(r"(\w+(?:\.\w+)*)=(.*)", re.DOTALL)


def read_file(path: str | Path, inherited_by: tuple[Path, ...] = ()) -> list[DictConfig]:
    """One config file and the files it inherits from, the most basic first.

    ``base: other.yaml`` or ``base: [a.yaml, b.yaml]`` names files relative to this one; later ones
    win, the file itself wins over all of them.

    Raises:
        ValueError: no such file, not YAML, not a mapping, or inheritance that runs in a circle.
    """
    file = Path(path)
    if file.resolve() in inherited_by:
        raise ValueError(f"{file}: inherits from itself through {BASE_KEY}")
    content = _parse_file(file)
    bases = content.pop(BASE_KEY, None) or []
    layers: list[DictConfig] = []
    for base in [bases] if isinstance(bases, str) else bases:
        layers += read_file(file.parent / str(base), (*inherited_by, file.resolve()))
    return [*layers, content]


def _parse_file(file: Path) -> DictConfig:
    try:
        content = OmegaConf.load(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such config file") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig):
        raise ValueError(f"{file}: expected sections of keys, found {type(content).__name__}")
    return content


def parse_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split ``config=FILE key=value ...`` into the file and the overrides.

    A first argument without ``=`` is the file as well. ``--local_rank=N``, which the DeepSpeed
    launcher adds, is left out.

    Raises:
        ValueError: two files.
    """
    files: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in ("--local_rank", "--local-rank"):
            continue
        if key == "config" and equals:
            files.append(value)
        elif not (equals or files or overrides or key.startswith("-")):
            files.append(argument)
        else:
            overrides.append(argument)
    if len(files) > 1:
        raise ValueError(f"one config file at most, given were {', '.join(files)}")
    return (files[0] if files else None), overrides


def parse_overrides(
    overrides: Sequence[str], schema: type, aliases: dict[str, str]
) -> list[DictConfig]:
    """``key=value`` texts as one layer each.

    The value of a text field is taken as it stands (a prompt may hold ``:`` or ``#``); any other is
    read as YAML.

    Raises:
        ValueError: not ``key=value``, or a value that is not YAML.
    """
    layers = []
    for override in overrides:
        match = OVERRIDE.fullmatch(override)
        if match is None:
            raise ValueError(f"argument {override!r}: expected key=value, or config=FILE")
        key, text = match.groups()
        layer = OmegaConf.create()
        OmegaConf.update(layer, key, _parse_value(override, schema, aliases.get(key, key), text))
        layers.append(layer)
    return layers


def _parse_value(override: str, schema: type, key: str, text: str) -> Any:
    hint = hint_of(schema, key)
    if str in members(hint) and bool not in members(hint):
        unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] in "'\"" else text
        return None if text in ("null", "~", "") else unquoted
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except yaml.YAMLError:
        raise ValueError(f"{override}: the value is not valid YAML") from None
    return cast(dict[str, Any], parsed)["value"]


def rename(layer: DictConfig, aliases: dict[str, str]) -> DictConfig:
    """Move top-level keys to where the schema has them (``{"mode": "inference.mode"}``)."""
    for old, new in aliases.items():
        if old in layer:
            raw = cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False))
            value = raw[old]
            layer.pop(old)
            OmegaConf.update(layer, new, value, merge=False)
    return layer
