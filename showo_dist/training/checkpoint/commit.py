"""From an empty folder aside to a visible checkpoint: what rank 0 does, and what the others look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from showo_dist.training.checkpoint.folders import TENSORS, publish, sync
from showo_dist.training.checkpoint.manifest import MANIFEST, FileEntry, manifest_text
from showo_dist.training.checkpoint.parts import Part
from showo_dist.training.checkpoint.slices import TensorIndex


def open_aside(aside: Path, texts: Mapping[str, str]) -> None:
    """Make the folder, with the small files that are known at the start.

    Raises:
        OSError: it cannot be written.
    """
    aside.mkdir(parents=True)
    for name, text in texts.items():
        _write_text(aside / name, text)


def see(aside: Path) -> None:
    """Make sure that this rank has the folder that rank 0 made.

    Raises:
        OSError: it has not.
    """
    if not aside.is_dir():
        raise OSError(
            f"{aside}: not visible here, experiment.output_dir must be a folder that all hosts share"
        )


def complete(aside: Path, target: Path, parts: Sequence[Part]) -> None:
    """Add what describes the parts of all ranks, have everything on the disk, and make it visible.

    Raises:
        OSError: a file cannot be written, or is not there as its rank wrote it.
    """
    index = TensorIndex.of(placed for part in parts for placed in part.placed)
    _write_text(aside / TENSORS, index.to_json())
    files = {name: entry for part in parts for name, entry in part.files.items()}
    for name, entry in files.items():
        size = (aside / name).stat().st_size
        if size != entry.bytes:
            raise OSError(f"{aside / name}: {size} bytes seen by rank 0, {entry.bytes} written")
    small = (path for path in aside.iterdir() if path.name not in files)
    files |= {path.name: FileEntry.of(path) for path in small}
    _write_text(aside / MANIFEST, manifest_text(files))
    sync(aside)
    publish(aside, target)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    sync(path)
