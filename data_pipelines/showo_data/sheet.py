"""Preview shards: keys and texts of some samples, and their images on one contact sheet."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, ImageOps

from showo_data.members import (
    IMAGE_MARKER,
    SOURCE,
    TARGET,
    BadSampleError,
    numbered,
    read_conversation,
    read_document,
    read_image,
    read_texts,
    within,
)
from showo_data.readers import sample_reader
from showo_data.shards import OpenShards, Storage, load_index

_COLUMNS = 8
_SPACE = 4


@dataclass(frozen=True, slots=True)
class Preview:
    """One sample to show; ``image`` shows several side by side, and is None if none can be read."""

    shard: str
    key: str
    extensions: tuple[str, ...]
    words: str
    image: Image.Image | None


def previews(
    urls: str | Iterable[str], limit: int, storage: Storage | None = None
) -> list[Preview]:
    """Read ``limit`` samples spread evenly over all shards, or all samples if there are fewer."""
    headers, files = load_index(urls, storage), OpenShards(storage=storage)
    places = [(header.path, i) for header in headers for i in range(header.samples)]
    step = max(1, len(places) // limit)
    found = [_preview(files, shard, i) for shard, i in places[::step][:limit]]
    files.close()
    return found


def contact_sheet(images: list[Image.Image], tile: int = 128) -> Image.Image:
    """Arrange the images in rows of eight on grey, each fitted into a square of ``tile`` pixels."""
    columns, rows = min(_COLUMNS, len(images)), -(-len(images) // _COLUMNS)
    pitch = tile + _SPACE
    sheet = Image.new("RGB", (columns * pitch + _SPACE, rows * pitch + _SPACE), (128, 128, 128))
    for number, image in enumerate(images):
        row, column = divmod(number, _COLUMNS)
        fitted = ImageOps.contain(image, (tile, tile))
        sheet.paste(fitted, (column * pitch + _SPACE, row * pitch + _SPACE))
    return sheet


def _preview(files: OpenShards, shard: str, index: int) -> Preview:
    table = files.table(shard)
    extensions = tuple(member.extension for member in table.members(index))
    lines: list[str] = []
    try:
        read = sample_reader(files, shard, index)
    except BadSampleError as bad:
        return Preview(shard, table.key(index), extensions, str(bad), None)
    with suppress(BadSampleError):
        lines += read_texts(read)
    with suppress(BadSampleError):
        lines += [f"{role}: {value}".replace("\n", " ") for role, value in read_conversation(read)]
    with suppress(BadSampleError):
        lines += [text or IMAGE_MARKER for text in read_document(read) or ()]
    images = []
    for part in ("", SOURCE, TARGET, *map(numbered, range(_COLUMNS))):
        with suppress(BadSampleError):
            images.append(read_image(within(part, read)))
    image = contact_sheet(images, max(images[0].size)) if len(images) > 1 else None
    image = image or (images[0] if images else None)
    return Preview(shard, table.key(index), extensions, "\n".join(lines), image)
