"""The result of a reproduction: ``reproduction.json``, and the same as ``REPRODUCTION.md``.

They hold what images and scores were made with, and nothing that differs between machines, ranks or starts.
Hosts, times and paths of inputs are in the folder ``not-comparable``.
"""

import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from showo_data.shards import load_index
from showo_dist.checkpoint.state import versions
from showo_dist.config import to_yaml
from showo_dist.evaluation.cli import IMAGES
from showo_dist.evaluation.job import RECORD_NAME, Json, write_json, write_text
from showo_dist.evaluation.results import OVERALL, Outcome, references, to_json
from showo_dist.recipe.cli import flattened
from showo_dist.recipe.reproduce import WORK, Kit, pattern_of, shards_of

ROLES = ("start", "trained")
PAGE = Path("REPRODUCTION.md")
FOLDER = "$REPRODUCTION"  # the reproduction's folder in printed commands
PROMPTS = "$PROMPTS"  # a benchmark's file or folder of prompts
_NO_SETTINGS = ("framework", "checkpoint", "weights", "inputs")  # of an evaluation's record


def write_reproduction(kit: Kit) -> Path:
    """Write both files, the settings and the record of this machine, in the working folder; returns the page.

    Raises:
        ValueError: a scorer's result file does not cover all images.
    """
    trained = kit.trainings()[-1]
    config = deepcopy(trained.config)
    config.training.gradient_accumulation_steps = kit.config.micro_batches  # as on one rank
    write_text(Path("settings/training.yaml"), to_yaml(config))
    result = {
        "row": kit.config.row,
        "stand_ins": kit.miniature,
        "recipe": kit.file.stem,
        "commit": commit(),
        "versions": _versions(),
        "seeds": {"training": config.training.seed, "generation": kit.config.seed},
        "data": {flow: shards(pattern_of(shards_of(flow))) for flow in kit.config.convert},
        # Hub ids and names: where a folder is differs between machines.
        "weights": {
            role: Path(source).name if Path(source).is_absolute() else source
            for role, source in zip(ROLES, kit.checkpoints(), strict=True)
        },
        "benchmarks": [one for name in kit.config.benchmarks for one in outcomes(kit, name)],
    }
    write_json(Path("reproduction.json"), result, indent=2)
    write_text(PAGE, page(result))
    write_json(WORK / "machine.json", machine(kit), indent=2)
    return PAGE


def settings(kit: Kit) -> Json:
    """What a folder is begun with, by key: the code and the trainings, not how ranks share the work."""
    found: Json = {"commit": commit(), **_versions()}
    for ready in kit.trainings():
        keys = flattened(yaml.safe_load(to_yaml(ready.config)))
        own = (f"{ready.stage.name}: {key}" for key in keys)
        found |= dict(zip(own, keys.values(), strict=True))
    shared = ("training.gradient_accumulation_steps", "dataset.params.train_")
    return {key: value for key, value in found.items() if not any(one in key for one in shared)}


def _versions() -> dict[str, str]:
    own = {"showo-dist": version("showo-dist"), "python": platform.python_version()}
    return own | versions()


def outcomes(kit: Kit, name: str) -> Iterator[Json]:
    """The result of a benchmark for the weights at the start and after training."""
    for role, checkpoint, folder in zip(ROLES, kit.checkpoints(), kit.folders(name), strict=True):
        made_with: Json = json.loads((folder / RECORD_NAME).read_text())
        yield {
            "benchmark": name,
            "weights": role,
            "folder": str(folder),
            "weights_sha256": made_with["weights"],
            "prompts_sha256": made_with["inputs"],
            "settings": {k: v for k, v in made_with.items() if k not in _NO_SETTINGS},
            "images_sha256": digest_of(folder),
            **_scored(kit, name, checkpoint, folder, made_with["samples"]),
            "published": _published(
                name, kit.config.row + (" + RecA" if role == "trained" else "")
            ),
        }


def _scored(kit: Kit, name: str, checkpoint: str, folder: Path, samples: int) -> Json:
    """Scores from the scorer's own file with their interval; without that file, the command that makes it."""
    benchmark, asked = IMAGES[name], getattr(kit.config, name)
    prompts = len(benchmark.read(Path(asked.prompts))[: asked.limit])
    scores = benchmark.scores(folder, prompts, samples)
    chances = benchmark.chances(folder) if scores and benchmark.chances else None
    path = folder / "summary.json"
    lines = json.loads(path.read_text())["scorer"].splitlines()
    command = "\n".join(portable(line, asked.prompts) for line in lines)
    write_json(path, to_json(name, Outcome(checkpoint, folder, command, scores)), indent=2)
    return {
        "prompts": prompts,
        "scores": scores or None,
        "interval": chances and chances.interval(),
        "interval_over": chances and f"{len(chances.scores)} {chances.what}",
        "to_score": None if scores else command,
    }


def portable(command: str, prompts: str) -> str:
    """One command line with the reproduction's folder and the prompts as variables, wherever they are."""
    places = {str(Path.cwd()): FOLDER, str(Path(prompts).resolve()): PROMPTS}
    return " ".join(_portable_word(word, places) for word in shlex.split(command))


def _portable_word(word: str, places: Mapping[str, str]) -> str:
    for place, variable in places.items():
        if word in (place, variable):
            return f'"{variable}"'
        if word.startswith((f"{place}/", f"{variable}/")):
            inside = word.removeprefix(f"{place}/").removeprefix(f"{variable}/")
            return f'"{variable}"/{shlex.quote(inside)}'
    return shlex.quote(word)


def _published(name: str, model: str) -> list[Json]:
    return [
        {"value": one.value, "source": one.source} for one in references(name) if one.model == model
    ]


def digest_of(folder: Path) -> str:
    """SHA-256 over names and pixels of all images of a folder; their text entries name paths of inputs."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            content = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes())
        digest.update(f"{content.hexdigest()}  {path.relative_to(folder)}\n".encode())
    return digest.hexdigest()


def shards(pattern: str) -> Json:
    """Numbers and digest of the shards of a flow; the digest is over their own SHA-256, in order."""
    headers = load_index(pattern)
    lines = "".join(f"{header.sha256}\n" for header in headers)
    return {
        "shards": len(headers),
        "samples": sum(header.samples for header in headers),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def commit() -> str:
    """The commit of this project, with a note about local changes; or that there is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "not a git checkout"
    try:
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.SubprocessError) as error:  # no git, or another user's checkout
        return f"unknown: {type(error).__name__} of git"


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def machine(kit: Kit) -> Json:
    """What differs between machines and starts."""
    return {
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "folder": str(Path.cwd()),
        "ranks": kit.config.ranks,
        "generation_ranks": kit.config.generation_ranks or kit.config.ranks,
        "recipe": to_yaml(kit.config),
    }


def page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {result['row']}, before and after RecA"
    yield ""
    if result["stand_ins"]:
        yield "**A miniature: data, networks and scorers are stand-ins, and the scores mean nothing.**"
        yield ""
    yield "| benchmark | weights | score here | 95 % interval | over | published |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in result["benchmarks"]:
        yield "| " + " | ".join(_cells(one)) + " |"
    yield ""
    yield "Intervals are of chance in these images alone, not of chance in training."
    yield from _missing(result["benchmarks"])
    yield from ("", "## Made with", "")
    yield "| | |"
    yield "| --- | --- |"
    for name, value in _facts(result):
        yield f"| {name} | {value} |"
    yield ""
    yield "Images and the scorers' files are in the folders of the benchmarks, every key of the training in"
    yield "[settings/training.yaml](settings/training.yaml), with the accumulation of one rank."
    yield f"`{WORK}` holds shards, checkpoints, hosts, times and paths."


def _cells(one: Mapping[str, Any]) -> Iterator[str]:
    yield one["benchmark"]
    yield one["weights"]
    yield f"{one['scores'][OVERALL]:.2f}" if one["scores"] else "missing"
    yield "{:.2f} to {:.2f}".format(*one["interval"]) if one["interval"] else "–"
    yield one["interval_over"] or "–"
    published = [f"{figure['value']:.2f} ({figure['source']})" for figure in one["published"]]
    yield "; ".join(published) or "no figure known"


def _missing(benchmarks: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for one in benchmarks:
        if one["to_score"]:
            yield ""
            yield (
                f"`{one['folder']}` is not scored. Set `REPRODUCTION` to this folder and `PROMPTS` to the "
                "benchmark's prompts, and run in its scorer's checkout:"
            )
            yield ""
            yield from (f"    {line}" for line in one["to_score"].splitlines())
            yield ""
            yield "Then run the same `showo-dist reproduce` command again."


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recipe", f"`configs/reproduce/{result['recipe']}.yaml`"
    yield "commit", result["commit"]
    yield "versions", ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    yield "seeds", ", ".join(f"{name} {value}" for name, value in result["seeds"].items())
    for flow, data in result["data"].items():
        yield f"data of {flow}", f"{data['samples']} samples, SHA-256 `{data['sha256']}`"
    for role, source in result["weights"].items():
        first = next((one for one in result["benchmarks"] if one["weights"] == role), None)
        yield (
            f"weights, {role}",
            f"`{source}`" + (f", SHA-256 `{first['weights_sha256']}`" if first else ""),
        )
    for one in result["benchmarks"]:
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
        yield f"{one['benchmark']}, {one['weights']}", f"{one['prompts']} prompts; {settings}"
