"""Pictures embedded in Parquet files, as the Hugging Face hub serves them."""

from collections.abc import Iterator, Sequence
from functools import partial

from showo_data.convert.items import Item, Members, find_files, text_of
from showo_data.convert.parquet import ParquetFiles
from showo_data.convert.pictures import picture_member
from showo_data.members import BadSampleError


def picture_items(
    patterns: Sequence[str],
    *,
    image: str = "image",
    text: str | None = None,
    max_side: int | None = None,
) -> Iterator[Item]:
    """Pictures and perhaps their captions.

    Args:
        patterns: files, as paths, brace patterns or wildcards.
        image: column of the pictures: bytes, or a struct whose field ``bytes`` holds them.
        text: column of the captions; None: pictures alone.
        max_side: see :func:`showo_data.convert.pictures.picture_member`.

    Raises:
        FileNotFoundError, ValueError: as :class:`showo_data.convert.parquet.ParquetRows`.
    """
    files = ParquetFiles([image] if text is None else [image, text])
    for path, number in files.places(find_files(patterns)):
        load = partial(_load, files, path, number, image, text, max_side)
        yield Item(f"{path}, row {number}", load)


def _load(
    files: ParquetFiles, path: str, number: int, image: str, text: str | None, max_side: int | None
) -> list[Members]:
    row = files.row(path, number)
    value = row[image]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadSampleError("no-image")
    members: Members = dict(picture_member(data, max_side))
    if text is not None:
        members["txt"] = text_of(row[text])
    return [members]
