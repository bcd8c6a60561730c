"""``config=FILE key=value ...`` to a checked dataclass; any nested dataclass is a schema."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, overload, runtime_checkable

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from showo_dist.config import rules
from showo_dist.config.hints import describe, fields_of, hint_of, members, nearest
from showo_dist.config.schema import TrainConfig

BASE_KEY = "base"
_PLACEHOLDER = "???"
# Texts that are taken as they stand: ~ is no home folder, and ${ on the command line no interpolation.
VERBATIM = ("inference.prompt", "inference.question")
OVERRIDE = re.compile(r"(\w+(?:\.\w+)*)=(.*)", re.DOTALL)


def read_file(path: str | Path, inherited_by: tuple[Path, ...] = ()) -> list[DictConfig]:
    """One config file and the files it inherits from, the most basic first.

    ``base: other.yaml`` or ``base: [a.yaml, b.yaml]`` names files relative to this one; later ones
    win, the file itself wins over all of them.

    Raises:
        ValueError: no such file, not UTF-8, not YAML, not a mapping, or inheritance that runs in a circle.
    """
    file = Path(path)
    if file.resolve() in inherited_by:
        raise ValueError(f"{file}: inherits from itself through {BASE_KEY}")
    content = _parse_file(file)
    named = content.pop(BASE_KEY, None)
    named = [] if named is None else named
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, Sequence) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{file}: {BASE_KEY} = {named!r}: expected a file or a list of files")
    layers: list[DictConfig] = []
    for base in bases:
        layers += read_file(file.parent / base, (*inherited_by, file.resolve()))
    return [*layers, content]


def _parse_file(file: Path) -> DictConfig:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such config file") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8; save it as UTF-8") from None
    try:
        content = OmegaConf.load(io.StringIO(text))
    # OSError is OmegaConf's for a file that holds a single number.
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig):
        raise ValueError(f"{file}: expected sections of keys, found {type(content).__name__}")
    return content


def parse_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split ``config=FILE key=value ...`` into the file and the overrides.

    A first argument without ``=`` is the file as well. ``--local_rank=N``, which the DeepSpeed
    launcher adds, is left out.

    Raises:
        ValueError: two files, or an argument that is not UTF-8.
    """
    files: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        check_utf8(argument)
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


def check_utf8(argument: str) -> None:
    """Raise ``ValueError`` for an argument of the command line that is not UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:  # Python gives such bytes as halves of surrogate pairs
        raise ValueError(f"argument {argument!a}: not UTF-8") from None


def parse_overrides(
    overrides: Sequence[str], schema: type, aliases: dict[str, str]
) -> list[DictConfig]:
    """``key=value`` texts as one layer each.

    The value of a text field is taken as it stands (a prompt may hold ``:``, ``#`` or ``${``), without quotes
    around it; any other is read as YAML.

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
        value = _parse_value(override, schema, aliases.get(key, key), text)
        try:
            OmegaConf.update(layer, key, value)
        except OmegaConfBaseException as error:
            raise ValueError(f"{override}: {_first_line(error)}") from None
        layers.append(layer)
    return layers


def _parse_value(override: str, schema: type, key: str, text: str) -> Any:
    hint = hint_of(schema, key)
    if str in members(hint) and bool not in members(hint):
        inner = text[1:-1]
        # Quotes around all of it are the shell's; those of "'a' and 'b'" belong to the text.
        if len(text) > 1 and text[0] == text[-1] in "'\"" and text[0] not in inner:
            text = inner
        elif text in ("null", "~", ""):
            return None
        return text.replace("${", r"\${") if key in VERBATIM else text
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException):
        raise ValueError(f"{override}: the value is not valid YAML") from None
    return cast(dict[str, Any], parsed)["value"]


def rename(layer: DictConfig, aliases: dict[str, str]) -> DictConfig:
    """Move top-level keys to where the schema has them (``{"mode": "inference.mode"}``)."""
    for old, new in aliases.items():
        if old in layer:
            raw = cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False))
            value = raw[old]
            del layer[old]  # pop would look for the keys of an interpolation in this layer alone
            OmegaConf.update(layer, new, value, merge=False)
    return layer


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
    foreign: bool = False,
) -> Schema:
    """As ``load``, from a file (None: the schema's defaults) and ``key=value`` overrides.

    Args:
        path: the file.
        schema, check: as in ``load``.
        overrides: of the user.
        foreign: the file comes with weights, perhaps from a stranger: it may not read other files
            (``base``) or the environment (``${oc.env:…}``), whose values could leave in a hub id.
    """
    aliases = dict(getattr(schema, "ALIASES", {}))
    if foreign:
        _check_plain(Path(str(path)))
    layers = read_file(path) if path is not None else []
    layers += parse_overrides(overrides, schema, aliases)
    config = _instantiate(_merged([rename(layer, aliases) for layer in layers]), schema)
    if check and isinstance(config, TrainConfig):
        rules.check(config)
    elif check and isinstance(config, Checkable):
        config.check()
    return config


def _merged(layers: Sequence[DictConfig]) -> DictConfig:
    """All layers in one, the last on top.

    Raises:
        ValueError: a value is a placeholder, or a list stands where there was a section.
    """
    merged = OmegaConf.create()
    for layer in layers:
        values = cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False))
        for key in _placeholders(values):
            raise ValueError(f"{key} = {_PLACEHOLDER}: a placeholder; give a value")
        try:
            merged = cast(DictConfig, OmegaConf.merge(merged, layer))
        except (OmegaConfBaseException, TypeError) as error:
            shown = " ".join(OmegaConf.to_yaml(layer).split())[:100]
            raise ValueError(f"{shown}: {_first_line(error)}") from None
    return merged


def _placeholders(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys whose value OmegaConf takes for missing, and would replace by the default without a word."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _placeholders(value, f"{prefix}{name}.")
        elif value == _PLACEHOLDER:
            yield f"{prefix}{name}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_plain(path: Path) -> None:
    """Raise ``ValueError`` when a config has interpolations or a base; those that runs write have neither."""
    advice = "a config that comes with weights holds plain values only; remove the line if you trust the file"
    content = OmegaConf.to_container(_parse_file(path), resolve=False)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if b"${" in line or line.startswith(f"{BASE_KEY}:".encode()):
            raise ValueError(
                f"{path}:{number}: {line.decode(errors='replace').strip()!r}: {advice}"
            )
    # YAML can also write them with quotes and escapes.
    if BASE_KEY in cast(dict[str, Any], content) or "${" in json.dumps(content, default=str):
        raise ValueError(f"{path}: {advice}")


def to_yaml(config: Any) -> str:
    """A config as YAML that ``load_file`` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _instantiate(raw: DictConfig, schema: type[Schema]) -> Schema:
    values = cast(dict[str, Any], OmegaConf.to_container(raw, resolve=False))
    problems = _unknown_keys(values, schema, schema, prefix="")
    if problems:
        raise ValueError("\n".join(problems))
    raw = OmegaConf.create(_home_expanded(values))
    try:
        return cast(Schema, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), raw)))
    except OmegaConfBaseException as error:
        raise ValueError(_type_message(error, values, schema)) from None


def _home_expanded(values: Any, key: str = "") -> Any:
    """``~`` and ``~user`` at the start of any text but prompts, as a shell expands them.

    Raises:
        ValueError: there is no such user.
    """
    if isinstance(values, dict):
        return {k: _home_expanded(v, f"{key}.{k}".lstrip(".")) for k, v in values.items()}
    if isinstance(values, list):
        return [_home_expanded(value, key) for value in values]
    if not (isinstance(values, str) and values.startswith("~")) or key in VERBATIM:
        return values
    expanded = os.path.expanduser(values)
    if expanded.startswith("~"):
        raise ValueError(
            f"{key} = {values!r}: {values.partition('/')[0]} is no user of this machine"
        )
    return expanded


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
