"""Checkpoint folders of a run: names, visibility, retention, and the manifest with all checksums.

A folder that is being written, replaced or deleted has a hidden name; a folder called ``checkpoint-STEP`` is
complete. The file ``latest`` holds the name of the newest one. ``manifest.json`` holds size and SHA-256 of
every other file, and of itself.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from showo_data.files import written_aside

LATEST = "latest"
TENSORS = "tensors.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_HIDDEN = re.compile(r"\.(checkpoint-\d+)\.[0-9a-f]+\.(partial|replaced|deleted)")


def folder_of(run: Path, step: int) -> Path:
    """Folder of the checkpoint of ``step`` in a run folder."""
    return run / f"checkpoint-{step:06d}"


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def complete_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; incomplete ones have hidden names."""
    return sorted((p for p in run.glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=step_of)


def resumable_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints that ``latest`` resumes from, newest first.

    Those of later steps than the one in the file ``latest`` are left from before the run was set back.
    """
    complete, named = complete_checkpoints(run)[::-1], latest(run)
    if named is None or not _NAME.fullmatch(named.name):
        return complete
    return [folder for folder in complete if step_of(folder) <= step_of(named)] or complete


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds tensors in the layout of :mod:`showo_dist.checkpoint`."""
    return (folder / TENSORS).is_file()


def hidden(target: Path, purpose: str) -> Path:
    """A new hidden name beside a checkpoint: ``partial``, ``replaced`` or ``deleted``."""
    return target.with_name(f".{target.name}.{os.urandom(4).hex()}.{purpose}")


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(aside: Path, target: Path) -> None:
    """Rename a complete folder to its final name, replacing a checkpoint of the same step.

    Raises:
        OSError: the run's folder cannot be changed.
    """
    run, replaced = target.parent, None
    if target.exists():
        # While the old folder is renamed, `latest` must not name a folder that does not exist.
        if latest(run) == target:
            (run / LATEST).unlink()
        replaced = hidden(target, "replaced")
        target.rename(replaced)
    aside.rename(target)
    # The rename is durable only once the parent folder is on the disk.
    sync(run)
    _name_latest(run, target)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def latest(run: Path) -> Path | None:
    """The checkpoint that ``latest`` names; None where there is no such file."""
    path = run / LATEST
    return run / path.read_text().strip() if path.is_file() else None


def set_back(run: Path, target: Path) -> None:
    """Point ``latest`` to a checkpoint of the run, so that later starts resume from no newer one."""
    if target.resolve().parent == run.resolve() and latest(run) != run / target.name:
        _name_latest(run, target)


def written_since(run: Path, seconds: float) -> bool:
    """Whether the run has named a checkpoint since a time in seconds since the epoch."""
    path = run / LATEST
    return path.is_file() and path.stat().st_mtime >= seconds


def _name_latest(run: Path, target: Path) -> None:
    """Point ``latest`` to a checkpoint, in one rename."""
    with written_aside(run / LATEST) as file:
        file.write(f"{target.name}\n".encode())
    sync(run)


def prune(run: Path, saved: int, keep_last: int, keep_every: int) -> None:
    """Delete checkpoints that the policy no longer keeps; errors are ignored.

    Checkpoints of later steps than ``saved`` are left from before the run was set back: they do not count and
    are not deleted, until the run comes to their steps again.

    Args:
        run: the run's folder.
        saved: step of the checkpoint that was just written.
        keep_last: newest checkpoints to keep; 0: all.
        keep_every: checkpoints at multiples of this many steps are never deleted; 0: none.
    """
    if not keep_last:
        return
    for old in [path for path in complete_checkpoints(run) if step_of(path) <= saved][:-keep_last]:
        if not (keep_every and step_of(old) % keep_every == 0):
            delete(old)


def delete(folder: Path) -> None:
    """Delete a checkpoint; it is hidden first, so that a kill half-way leaves no visible ruin."""
    doomed = hidden(folder, "deleted")
    with suppress(OSError):
        folder.rename(doomed)
        shutil.rmtree(doomed)


def sweep(run: Path) -> None:
    """Remove partial folders of a killed run, and restore a checkpoint that was being replaced.

    Only one process may call it, while nothing is being saved.
    """
    for path in run.glob(".checkpoint-*"):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        target = run / match[1]
        with suppress(OSError):
            # The kill came between the two renames: the old checkpoint is the only complete one.
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
    """Size and checksum of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Read a whole file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest)


def manifest_text(files: dict[str, FileEntry]) -> str:
    """The manifest of these files. It is canonical: a manifest with any other bytes is damaged."""
    body = {name: asdict(entry) for name, entry in sorted(files.items())}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({"files": body, "sha256": digest}, indent=1) + "\n"


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """The files of a checkpoint, without the manifest itself.

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
    """Compare a file with its manifest entry; one line when it differs, else None."""
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
    """Check this rank's share of the files; the first problem in one line, else None.

    Args:
        folder: of the checkpoint.
        wanted: names of the files that will be read.
        rank, world: files are divided among the ranks, so that each file is read once.
    """
    try:
        files = {name: entry for name, entry in read_manifest(folder).items() if wanted(name)}
    except ValueError as error:
        return str(error)
    return next(_problems(folder, list(files.items())[rank::world]), None)


def _problems(folder: Path, files: Iterable[tuple[str, FileEntry]]) -> Iterator[str]:
    problems = (problem_of(folder / name, entry) for name, entry in files)
    return (problem for problem in problems if problem is not None)
