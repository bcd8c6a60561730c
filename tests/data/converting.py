"""What the tests of the converters share: images to convert, and ways to read what came out."""

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data import FlowSpec, Sample, Source, vq_transform
from showo_data.images import decode
from showo_data.samples import Kind

SIDE = 8
TRANSFORM = vq_transform(SIDE)


def image(number: int, kind: str = "JPEG", side: int = 12) -> bytes:
    """An image whose bytes and colour tell its number."""
    stream = io.BytesIO()
    colour = (number * 37 % 256, number * 91 % 256, number % 256)
    Image.new("RGB", (side, side), colour).save(stream, kind)
    return stream.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    """A tar with these files in order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def patterns(folder: Path, prefix: str = "train") -> tuple[str, ...]:
    return tuple(str(path) for path in sorted(folder.glob(f"{prefix}-*.tar")))


def files(folder: Path) -> dict[str, bytes]:
    """Name → content of everything in the shards of a folder, read with tarfile alone."""
    found: dict[str, bytes] = {}
    for shard in patterns(folder):
        with tarfile.open(shard) as tar:
            for entry in tar:
                stream = tar.extractfile(entry)
                assert stream is not None and entry.name not in found
                found[entry.name] = stream.read()
    return found


def samples(folder: Path, kind: Kind, **options: Any) -> dict[str, Sample]:
    """Key → sample of one epoch, read as training reads; none may be bad."""
    transform = None if kind == "text" else TRANSFORM
    spec = FlowSpec(
        flow="f", kind=kind, urls=patterns(folder), batch=1, transform=transform, **options
    )
    source = Source(spec)
    items = [source[position] for position in range(len(source))]
    found = {item.key: item for item in items if isinstance(item, Sample)}
    assert len(found) == len(source), items
    return found


def same_image(sample: Sample, data: bytes) -> bool:
    """Whether a sample shows what ``data`` shows."""
    assert sample.image_3HW is not None
    return bool((sample.image_3HW == TRANSFORM(decode(data))).all())


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every shard and index."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.tar*")}
