"""Checkpoint folders of a run: their names, how one becomes visible, and which are kept.

A folder that is being written, replaced or deleted has a hidden name; whatever is called
``checkpoint-STEP`` is complete. The file ``latest`` holds the name of the newest.


``manifest.json``: size and SHA-256 of every file of a checkpoint, and of the manifest itself."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

LATEST = "latest"
TENSORS = "tensors.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_HIDDEN = re.compile(r"\.(checkpoint-\d+)\.[0-9a-f]+\.(partial|replaced|deleted)")


def folder_of(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:06d}"


def step_of(folder: Path) -> int:
    """Optimizer steps done at a checkpoint, from its name."""
    match = _NAME.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def complete_checkpoints(run: Path) -> list[Path]:
    """Visible checkpoints of a run, oldest first. Unfinished ones have another name."""
    return sorted((p for p in run.glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=step_of)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds tensors in the layout of :mod:`showo_dist.checkpoint`."""
    return (folder / TENSORS).is_file()


def hidden(target: Path, purpose: str) -> Path:
    """A new hidden name beside a checkpoint: ``partial``, ``replaced`` or ``deleted``."""
    return target.with_name(f".{target.name}.{os.urandom(4).hex()}.{purpose}")


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(aside: Path, target: Path) -> None:
    """Make a complete folder visible under its name, in place of one of the same step if there is one.

    Raises:
        OSError: the run's folder cannot be changed.
    """
    run, replaced = target.parent, None
    if target.exists():
        if latest(run) == target:
            (run / LATEST).unlink()
        replaced = hidden(target, "replaced")
        target.rename(replaced)
    aside.rename(target)
    sync(run)
    _name_latest(run, target)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def latest(run: Path) -> Path | None:
    """The checkpoint that ``latest`` names; None where there is no such file."""
    path = run / LATEST
    return run / path.read_text().strip() if path.is_file() else None


def _name_latest(run: Path, target: Path) -> None:
    """Let ``latest`` name a checkpoint, in one rename."""
    aside = run / f".{LATEST}.{os.urandom(4).hex()}"
    aside.write_text(f"{target.name}\n")
    sync(aside)
    aside.replace(run / LATEST)
    sync(run)


def prune(run: Path, keep_last: int, keep_every: int) -> None:
    """Delete what is no longer kept; what cannot be deleted stays.

    Args:
        run: the run's folder.
        keep_last: newest checkpoints that stay; 0: all.
        keep_every: checkpoints at multiples of so many steps stay for ever; 0: none.
    """
    if not keep_last:
        return
    for old in complete_checkpoints(run)[:-keep_last]:
        if not (keep_every and step_of(old) % keep_every == 0):
            delete(old)


def delete(folder: Path) -> None:
    """Delete a checkpoint; killed half-way it is no longer visible."""
    doomed = hidden(folder, "deleted")
    with suppress(OSError):
        folder.rename(doomed)
        shutil.rmtree(doomed)


def sweep(run: Path) -> None:
    """Clear away what a killed run left half-written, half-deleted or half-replaced.

    Only one process may call it, while nothing is being saved.
    """
    for path in run.glob(".checkpoint-*"):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        target = run / match[1]
        with suppress(OSError):
            if match[2] == "replaced" and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path)
    for path in run.glob(f".{LATEST}.*"):
        with suppress(OSError):
            path.unlink()


MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """What is known of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Read a file from its beginning to its end."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest)


def manifest_text(files: dict[str, FileEntry]) -> str:
    """The one text that describes these files: any other byte in it is damage."""
    body = {name: asdict(entry) for name, entry in sorted(files.items())}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({"files": body, "sha256": digest}, indent=1) + "\n"


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """The files that a checkpoint consists of, the manifest left out.

    Raises:
        ValueError: there is no manifest, or it was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: not a checkpoint ({MANIFEST} is missing)")
    try:
        text = path.read_bytes().decode()
        files = {name: FileEntry(**entry) for name, entry in json.loads(text)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path}: not a manifest, the checkpoint is damaged or of another version"
        ) from None
    if manifest_text(files) != text:
        raise ValueError(f"{path}: its own checksum differs, the checkpoint is damaged")
    return files


def problem_of(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file of a checkpoint, in one line; None when it is as it was written."""
    if not path.is_file():
        return f"{path}: missing, the checkpoint is damaged"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{path}: {size} bytes, the manifest says {entry.bytes}: the checkpoint is damaged"
    if FileEntry.of(path) != entry:
        return f"{path}: its checksum is not the manifest's, the checkpoint is damaged"
    return None


def verify(
    folder: Path, wanted: Callable[[str], bool] = lambda name: True, rank: int = 0, world: int = 1
) -> str | None:
    """The first problem among the files that this rank is to check; None when all are in order.

    Args:
        folder: of the checkpoint.
        wanted: names of the files that will be read.
        rank, world: the files are shared out, so that together the ranks read each once.
    """
    try:
        files = {name: entry for name, entry in read_manifest(folder).items() if wanted(name)}
    except ValueError as error:
        return str(error)
    return next(_problems(folder, list(files.items())[rank::world]), None)


def _problems(folder: Path, files: Iterable[tuple[str, FileEntry]]) -> Iterator[str]:
    problems = (problem_of(folder / name, entry) for name, entry in files)
    return (problem for problem in problems if problem is not None)
