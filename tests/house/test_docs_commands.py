"""Every command and config key in the pages is one that the real parsers accept.

A command is parsed, not run: its own parser reads the options, and the config's own loader reads the
``key=value`` words. Programs that are not part of the project and cannot be parsed here must be marked in
their section as needing a download, root, or several hosts.
"""

import argparse
import ast
import importlib
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from showo_dist.cli import COMMANDS
from showo_dist.config import TrainConfig, load
from showo_dist.config.hints import known_keys
from showo_dist.config.loader import OVERRIDE, load_file
from showo_dist.config.schema import PUBLISHED_TOP_LEVEL_KEYS
from showo_dist.recipe.cli import RecipeConfig
from showo_dist.recipe.reproduce import ReproductionConfig
from showo_dist.runtime import exits
from showo_dist.tokenizer.config import TokenizerConfig
from tests.conftest import ROOT
from tests.house.markdown import HISTORY, Block, Page, logical_lines, pages, words

PAGES = {page.name: page for page in pages() if page.name not in HISTORY}
SCHEMAS: dict[str, type] = {
    "tokenizer": TokenizerConfig,
    "recipe": RecipeConfig,
    "reproduce": ReproductionConfig,
}
# The schema of pages that are about another config than a training's.
PAGE_SCHEMAS = {"docs/tokenizer.md": TokenizerConfig, "docs/reproduce.md": ReproductionConfig}
# Commands whose whole command line is a config.
ONLY_CONFIG = ("train", "config", "tokenizer")
# Programs of others: what their section must say they need.
NEEDS = {
    "hf": r"[Dd]ownload|network",
    "apt-get": r"\broot\b",
    "sbatch": r"\bhosts?\b|Slurm",
    "salloc": r"\bhosts?\b|Slurm",
    "pdsh": r"\bhosts?\b",
    "scontrol": r"Slurm",
    "scancel": r"Slurm",
    "pip": r"pip install",
    "lmms-eval": r"pip install lmms-eval",
    "pre-commit": r"pre-commit",
}
LAUNCHERS = {
    "launchers/supervise": "showo_launch.supervise",
    "launchers/rehearse": "showo_launch.rehearsal",
}
REPOSITORY = ("configs/", "benchmarks/", "tests/", "launchers/", "docs/", "examples/")
MINI = "configs/mini/pretrain.yaml"
FILLERS = {"…", "...", "key=value", "KEY=VALUE", "options"}
# What placeholders of the pages stand for where a parser wants a number or a file.
STAND_INS = {"{ranks}": "2", "{accumulation}": "1", "{devices}": "0", "I/N": "0/2"}


class Parsed(Exception):  # noqa: N818
    """Thrown by a parser that has read its arguments, in place of what the command would do next."""


class Refused(ValueError):  # noqa: N818
    """A parser's complaint."""


@contextmanager
def parsers_only() -> Iterator[None]:
    """Inside, a command ends as soon as its parser has read the arguments."""

    def throwing(parse: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            raise Parsed(parse(*args, **kwargs))

        return wrapped

    def error(self: argparse.ArgumentParser, message: str) -> None:
        raise Refused(f"{self.prog}: {message}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(
                argparse.ArgumentParser, name, throwing(getattr(argparse.ArgumentParser, name))
            )
        patch.setattr(argparse.ArgumentParser, "error", error)
        # A script that registers its exit code for the end of the process would set that of pytest.
        patch.setattr(exits, "atexit", SimpleNamespace(register=lambda *_: None))
        yield


def read_by(function: Callable[[list[str]], Any], arguments: list[str]) -> list[str]:
    """Let a command's own parser read the arguments; returns the words that it took as positional.

    Raises:
        Refused: the parser does.
    """
    try:
        with parsers_only():
            function(arguments)
    except Parsed as parsed:
        values = vars(parsed.args[0]).values()
        lists = [value for value in values if isinstance(value, list)]
        return [word for value in lists for word in value if isinstance(word, str)]
    except SystemExit as end:  # --help
        assert not end.code, f"{arguments}: ended with {end.code}"
        return []
    raise AssertionError(f"{arguments}: no parser read this")


def cleaned(line: list[str]) -> list[str]:
    """The words without fillers, placeholders replaced."""
    kept = [word for word in line if word not in FILLERS]
    for old, new in STAND_INS.items():
        kept = [word.replace(old, new) for word in kept]
    whole = {
        "FILE": MINI,
        "config=FILE": f"config={MINI}",
        "config=…": f"config={MINI}",
        "NAME": "geneval",
    }
    return ["1" if re.fullmatch("[A-Z]", word) else whole.get(word, word) for word in kept]


def check_config(arguments: Sequence[str], schema: type) -> None:
    """Read ``config=FILE key=value …``; files outside the repository need not exist."""
    named = [word for word in arguments if not word.startswith("--")]
    load(named, schema, False)


def check_showo(arguments: list[str]) -> None:
    """``showo-dist COMMAND …``."""
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help"):
        return
    assert name in COMMANDS, f"no command {name!r}"
    schema = SCHEMAS.get(name, TrainConfig)
    if name in ONLY_CONFIG:
        check_config(rest, schema)
        return
    if name == "plan":
        from showo_dist.plan.cli import parser

        _, rest = parser().parse_known_args(rest)
        check_config(rest, schema)
        return
    module, function, _ = COMMANDS[name]
    taken = read_by(getattr(importlib.import_module(module), function), rest)
    if name != "recipe":
        check_config([word for word in taken if OVERRIDE.fullmatch(word)], schema)


def check_module(name: str, arguments: list[str]) -> None:
    """``… -m MODULE arguments``."""
    if name == "showo_dist.cli":
        check_showo(arguments)
    elif name.startswith("showo_dist.") and name.rpartition(".")[2] in ONLY_CONFIG:
        check_showo([name.rpartition(".")[2], *arguments])
    else:
        assert find_spec(name), f"no module {name}"


def check_deepspeed(arguments: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", _refuse)
        launch = parse_args(arguments)
    assert launch.module, "the pages start modules"
    check_module(launch.user_script, launch.user_args)


def check_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", _refuse)
        launch = get_args_parser().parse_args(arguments)
    assert launch.module, "the pages start modules"
    check_module(launch.training_script, launch.training_script_args)


def _refuse(self: argparse.ArgumentParser, message: str) -> None:
    raise Refused(f"{self.prog}: {message}")


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        check_module(arguments[1], arguments[2:])
        return
    script = ROOT / arguments[0]
    if not arguments[0].startswith("benchmarks/"):
        assert script.exists() or not arguments[0].startswith(REPOSITORY), f"no file {arguments[0]}"
        return

    def run(rest: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), *rest])
            patch.syspath_prepend(str(ROOT))
            patch.syspath_prepend(str(script.parent))
            runpy.run_path(str(script), run_name="__main__")

    read_by(run, arguments[1:])


def check_pytest(arguments: list[str], config: pytest.Config) -> None:
    _, unknown = config._parser.parse_known_and_unknown_args(arguments)
    assert not unknown, f"pytest does not know {unknown}"
    markers = {line.partition(":")[0] for line in config.getini("markers")}
    for flag, value in pairwise(arguments):
        if flag == "-m":
            assert set(re.findall(r"\w+", value)) - {"and", "or", "not"} <= markers, value


def check_make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    known = set(re.findall(r"^([\w./-]+):", text, re.MULTILINE))
    known |= {f"{name}=" for name in re.findall(r"\$\(if \$\((\w+)\)", text)}
    given = {re.sub("=.*", "=", argument) for argument in arguments}
    assert given <= known, f"no target {given - known}"


def check_launcher(program: str, arguments: list[str], check: Callable[[list[str]], None]) -> None:
    """Our own scripts in launchers/."""
    assert (ROOT / program).is_file(), f"no file {program}"
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    nested = arguments[len(own) + 1 :]
    if program in LAUNCHERS:
        with pytest.MonkeyPatch.context() as patch:
            arguments = [*own, "--", *(nested or ["true"])]
            patch.setattr(sys, "argv", [program, *arguments])
            read_by(lambda _: runpy.run_module(LAUNCHERS[program], run_name="__main__"), [])
        if nested:
            check(nested)
        return
    start = next((i for i, w in enumerate(own) if w.startswith("config=")), len(own))
    check_config(own[start:], TrainConfig)
    if program == "launchers/deepspeed.sh":
        check_deepspeed([*own[:start], "--module", "showo_dist.train"])
    if program == "launchers/torchrun.sh":
        check_torchrun([*own[:start], "-m", "showo_dist.train"])


class Checker:
    """Checks the command lines of a page."""

    def __init__(self, pytestconfig: pytest.Config) -> None:
        own = {
            "showo-dist": check_showo,
            "deepspeed": check_deepspeed,
            "torchrun": check_torchrun,
            "python": check_python,
            "make": check_make,
            "pytest": lambda arguments: check_pytest(arguments, pytestconfig),
        }
        self.own: dict[str, Callable[[list[str]], None]] = own

    def knows(self, line: list[str]) -> bool:
        """Whether a line is a command that is checked here."""
        name = self._program(line)
        script = name.startswith(("launchers/", "benchmarks/")) and not name.endswith("/")
        return script or name in self.own or name in NEEDS

    @staticmethod
    def _program(line: list[str]) -> str:
        rest = [word for word in line if not re.match(r"[A-Z_]+=", word)]
        return rest[0].removeprefix(".venv/bin/") if rest else ""

    def __call__(self, line: list[str], section: str = "") -> None:
        """Raise ValueError or AssertionError for a wrong line; ``…`` may stand for required arguments."""
        for part in _chain(line):
            try:
                self._one(part, section)
            except Refused as refused:
                if "required" not in str(refused) or "…" not in part:
                    raise

    def _one(self, line: list[str], section: str) -> None:
        line = cleaned(line)
        while line and re.match(r"[A-Z_]+=", line[0]):
            line = line[1:]
        for word in line:
            path = word.partition("::")[0].removeprefix("config=")
            if path.startswith(REPOSITORY) and re.fullmatch(r"[\w./-]+", path):
                assert (ROOT / path).exists(), f"no file {path}"
        program, arguments = self._program(line), line[1:]
        if program in self.own:
            self.own[program](arguments)
        elif program.startswith(("launchers/", "benchmarks/")):
            check_launcher(program, arguments, lambda nested: self(nested, section))
        elif program in NEEDS:
            assert re.search(NEEDS[program], section), (
                f"{program}: its section does not say what it needs"
            )
            script = next((i for i, w in enumerate(line) if w.startswith("launchers/")), None)
            if script is not None:
                check_config(line[script + 1 :], TrainConfig)
            elif "showo-dist" in line:
                check_showo(line[line.index("showo-dist") + 1 :])


def _chain(line: list[str]) -> Iterator[list[str]]:
    """The commands of ``a && b | c``."""
    part: list[str] = []
    for word in line:
        if word in ("&&", "||", "|", ";"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _shell_lines(page: Page, checker: Checker) -> Iterator[tuple[list[str], Block]]:
    for block in page.blocks:
        for line in logical_lines(block.lines):
            found = words(line)
            if found and checker.knows(found):
                yield found, block


@pytest.fixture(scope="module")
def checker(pytestconfig: pytest.Config) -> Checker:
    return Checker(pytestconfig)


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_blocks(name: str, checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    problems = []
    for line, block in _shell_lines(PAGES[name], checker):
        try:
            checker(line, block.section)
        except (ValueError, AssertionError) as error:
            problems.append(f"{name}:{block.line}: {' '.join(line)}\n    {error}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_the_text(name: str, checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inline code may leave out required arguments; its options and keys must exist."""
    monkeypatch.chdir(ROOT)
    problems = []
    for span in PAGES[name].spans:
        line = words(span)
        if len(line) < 2 or not checker.knows(line):
            continue
        try:
            checker([*line, "…"], PAGES[name].text)
        except (ValueError, AssertionError) as error:
            problems.append(f"{name}: `{span}`\n    {error}")
    assert not problems, "\n".join(problems)


def test_every_page_with_commands_was_read(checker: Checker) -> None:
    counts = {name: len(list(_shell_lines(page, checker))) for name, page in PAGES.items()}
    assert sum(counts.values()) > 80, "the pattern no longer finds the commands"


@pytest.mark.parametrize("line", [
    "showo-dist generate MODEL --promt x",
    "showo-dist train training.batch_size_t2=1",
    "showo-dist generation MODEL",
    "showo-dist tokenizer model.resolutions=64",
    "deepspeed --num_gpux 8 --module showo_dist.train config=configs/mini/pretrain.yaml",
    "torchrun --nproc-per-node 2 -m showo_dist.train config=configs/mini/no-such.yaml",
    "python benchmarks/single_pass.py --device cuda --jsn x",
    "python benchmarks/no_such.py",
    "pytest tests/no_such",
    "pytest tests -m no_such_marker",
    "make no-such-target",
    "launchers/supervise --restart 5 -- showo-dist train training.sed=1",
    "launchers/rehearse --hosts 2 -- showo-dist train training.sed=1",
    "hf download showlab/show-o",
])  # fmt: skip
def test_mistakes_are_found(line: str, checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, AssertionError)):
        checker(words(line), "a section that says nothing")


# --- config keys, Python and YAML in the pages ---

KEY = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)+(_?\*)?")


def _keys(page: Page) -> set[str]:
    schemas: list[type] = [TrainConfig, PAGE_SCHEMAS.get(page.name, TrainConfig)]
    if page.name == "docs/results.md":
        schemas.append(TokenizerConfig)
    return {key for schema in schemas for key in known_keys(schema)}


def _sections_of(keys: set[str]) -> set[str]:
    return {key[:i] for key in keys for i, letter in enumerate(key) if letter == "."}


@pytest.mark.parametrize("name", PAGES)
def test_config_keys_exist(name: str) -> None:
    keys = _keys(PAGES[name])
    sections = _sections_of(keys)
    wrong = []
    for span in PAGES[name].spans:
        key = re.split(r"[=: ]", span, maxsplit=1)[0]
        file = key.endswith((".safetensors", ".json", ".yaml", ".py"))
        if file or not KEY.fullmatch(key) or key.partition(".")[0] not in sections:
            continue
        known = any(k.startswith(key[:-1]) for k in keys) if key.endswith("*") else key in keys
        if not known and key not in sections:
            wrong.append(key)
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_settings_in_blocks_are_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lines of ``key=value`` alone, and blocks of YAML."""
    monkeypatch.chdir(ROOT)
    schema = PAGE_SCHEMAS.get(name, TrainConfig)
    for block in PAGES[name].blocks:
        for line in logical_lines(block.lines):
            found = words(line)
            if found and all(OVERRIDE.fullmatch(word) and "." in word for word in found):
                check_config(found, schema)
        first = block.lines[0] if block.lines else ""
        if re.match(r"(dataset|training|experiment|model|data|lora|distributed):", first):
            file = tmp_path / "part.yaml"
            file.write_text("\n".join(block.lines))
            load_file(file, TrainConfig, check=False)
        elif first.startswith("runs:"):
            file = tmp_path / "recipe.yaml"
            file.write_text("\n".join(block.lines))
            load_file(file, RecipeConfig)


@pytest.mark.parametrize("name", PAGES)
def test_python_in_blocks(name: str) -> None:
    for block in PAGES[name].blocks:
        first = block.lines[0] if block.lines else ""
        if block.language != "python" and not first.startswith(("from ", "import ")):
            continue
        for node in ast.walk(ast.parse("\n".join(block.lines))):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{name}: {node.module} has no {missing}"


def test_the_readme_lists_every_command() -> None:
    listed = re.findall(r"^\| `showo-dist (\S+)` \|", PAGES["README.md"].text, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_published_top_level_keys_are_still_known() -> None:
    assert set(PUBLISHED_TOP_LEVEL_KEYS.values()) <= set(known_keys(TrainConfig))
