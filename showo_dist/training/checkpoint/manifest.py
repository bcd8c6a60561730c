"""``manifest.json``: size and SHA-256 of every file of a checkpoint, and of the manifest itself."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

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
