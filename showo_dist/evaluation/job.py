"""One checkpoint under one framework, and the record of what its output folder was made with."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showo_data.files import remove_unfinished, unlike, written_aside
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.models.weights.sources import weights_digest
from showo_dist.runtime.ranks import Ranks

RECORD_NAME = "evaluation.json"
# Recorded for the reader alone: the same weights may be under another path.
_NOT_COMPARED = ("checkpoint",)

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A checkpoint to evaluate.

    Attributes:
        pipeline: its models.
        arguments: the command line.
        checkpoint: as the command line names it.
        out: folder for all results.
        ranks: the ranks that share the work.
    """

    pipeline: Pipeline
    arguments: argparse.Namespace
    checkpoint: str
    out: Path
    ranks: Ranks

    def options(self) -> SamplingOptions:
        """The checkpoint's sampling options, changed as the command line says."""
        return self.pipeline.options.changed(self.arguments)

    def sampling_settings(self) -> Json:
        """What decides the generated images beside the weights and the prompts; goes into every PNG."""
        usual = {"seed": self.arguments.seed, "batch": self.arguments.batch}
        return usual | self.options().record()

    def claim(self, settings: Mapping[str, object], inputs: object, owned: tuple[str, ...]) -> None:
        """Record in the output folder what its files are made with; see :func:`claim_folder`.

        Args:
            settings: what the files depend on beside weights, tokenizers and inputs.
            inputs: prompts or questions, as anything that JSON holds; a digest is recorded.
            owned: glob patterns of the files that the evaluation writes.

        Raises:
            ValueError: the folder holds another evaluation.
        """
        made_with = {
            "framework": self.arguments.framework,
            "checkpoint": self.checkpoint,
            "weights": self._weights_digest() if self.ranks.is_first else "",
            **self.pipeline.reading(),
            **settings,
            "inputs": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
        }
        claim_folder(self.out, made_with, owned, self.arguments.replace, self.ranks)

    def _weights_digest(self) -> str:
        networks = (self.pipeline.model, self.pipeline.vq, self.pipeline.clip)
        states = (network.state_dict() for network in networks if network is not None)
        tensors = (item for state in states for item in state.items())
        return weights_digest(tensors, "{name} {dtype}")


def claim_folder(
    folder: Path, made_with: Mapping[str, object], owned: Iterable[str], replace: bool, ranks: Ranks
) -> None:
    """Record in ``folder`` what its files are made with, or check that they were made with the same.

    Half-written files of an earlier run are removed.

    Args:
        folder: the output folder, created when absent.
        made_with: everything the files depend on.
        owned: glob patterns of the files and folders, below ``folder``, that the evaluation writes.
        replace: delete the files of another evaluation instead of refusing. Files of which nothing says that
            an evaluation wrote them are never deleted.
        ranks: the first one acts; an error is raised on all of them.

    Raises:
        ValueError: the folder holds another evaluation, whose settings that differ are named, or other files.
    """
    ranks.first_alone(lambda: _claim_folder(folder, made_with, list(owned), replace))


def _claim_folder(
    folder: Path, made_with: Mapping[str, object], owned: list[str], replace: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = next((path for pattern in owned for path in folder.glob(pattern)), None)
    if found and not (folder / RECORD_NAME).is_file():
        raise ValueError(
            f"--out {folder}: holds {found.name} and no {RECORD_NAME} that says what made it; choose "
            "another folder"
        )
    difference = _difference(folder, made_with)
    if difference and not replace:
        raise ValueError(f"--out {folder}: {difference}; choose another folder, or add --replace")
    if difference:
        for path in [path for pattern in owned for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    remove_unfinished(folder)
    if difference or not (folder / RECORD_NAME).is_file():
        write_json(folder / RECORD_NAME, made_with, indent=2)


def _difference(folder: Path, made_with: Mapping[str, object]) -> str:
    """How the recorded evaluation of ``folder`` differs from ``made_with``; empty when it does not."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return ""
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        return f"its {RECORD_NAME} cannot be read ({error})"
    differences = unlike(before, made_with, ignored=_NOT_COMPARED)
    return f"holds an evaluation with {differences}" if differences else ""


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as stream:
        stream.write(text.encode())
