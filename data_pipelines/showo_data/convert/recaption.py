"""Convert shards with external captions to shards that hold the captions."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from showo_data.captions import WORDS, ExternalCaptions, check_folder
from showo_data.convert.elements import BrokenFileError, read_object
from showo_data.convert.images import image_member
from showo_data.convert.items import FILE, Item, Members, Note, Pieces, bad_item
from showo_data.members import IMAGES, BadSampleError, first_of, read_texts
from showo_data.readers import sample_reader
from showo_data.shards import NotATarError, OpenShards, ShardTable, Storage, expand, load_index

# Key of a sample → the captions to choose from; None if they cannot be used.
Book = dict[str, tuple[str, ...] | None]


def recaptioned_items(
    urls: Sequence[str],
    outside: ExternalCaptions,
    *,
    journeydb: str | Path | None = None,
    max_side: int | None = None,
    storage: Storage | None = None,
) -> Iterator[Item]:
    """Yield the samples of shards with their external captions, or their own if they have no external ones.

    Args:
        urls: shards, as paths or brace patterns.
        outside: captions of SA-1B, LAION-12M and CC12M.
        journeydb: a JSON file ``{key: [caption, …]}``; read into memory.
        max_side: see :func:`showo_data.convert.images.image_member`.
        storage: how to access the shards.

    Raises:
        FileNotFoundError: a shard or the JSON file does not exist.
        ValueError: the JSON file has another layout; a folder of captions is missing, or no shard is of its
            data set; ``journeydb`` or SA-1B are given, and no sample of the first shard has other captions.
    """
    for name in WORDS:
        if folder := getattr(outside, name):
            check_folder(f"--{name}", folder, name, urls)
    files, book = OpenShards(storage=storage), _read_book(journeydb) if journeydb else {}
    known_by_key = bool(journeydb or outside.sa1b)
    for shard in expand(urls, storage):
        try:
            (header,) = load_index(shard, storage)
        except NotATarError as error:
            yield bad_item(str(error), FILE)
            continue
        if known_by_key and header.samples:
            _check_keys(files.table(shard), shard, outside, book, journeydb)
            known_by_key = False
        for index in range(header.samples):
            load = partial(_load, files, shard, index, outside, book, max_side)
            yield Item(f"{shard}, sample {index}", load, header.sha256)


def _check_keys(
    table: ShardTable,
    shard: str,
    outside: ExternalCaptions,
    book: Book,
    journeydb: str | Path | None,
) -> None:
    """Refuse captions of other keys than those of the shard, whose samples would all keep their own text."""
    keys = [_without_dot(table.key(index)) for index in range(len(table))]
    if any(key in book or outside.find(shard, key) is not None for key in keys):
        return
    found = [f"its first is {keys[0]!r}"]
    if journeydb:
        found.append(f"the first of --journeydb {journeydb} is {next(iter(book), None)!r}")
    if outside.sa1b:
        found.append(f"those of --sa1b {outside.sa1b} contain 'SA1B'")
    raise ValueError(
        f"{shard}: none of its keys has captions, {', '.join(found)}: give a shard with captions first"
    )


def _without_dot(key: str) -> str:
    """Return a key as it is without the "./" of a tar that was made from "."."""
    return key.removeprefix("./")


def _load(
    files: OpenShards,
    shard: str,
    index: int,
    outside: ExternalCaptions,
    book: Book,
    max_side: int | None,
) -> Pieces:
    read, key = sample_reader(files, shard, index), _without_dot(files.table(shard).key(index))
    data = first_of(read, IMAGES)
    if data is None:
        raise BadSampleError("no-image")
    members: Members = dict(image_member(data, max_side))
    captions, notes = outside.find(shard, key), list[Note]()
    if captions is None:
        captions = book.get(key, ())
        if captions is None:
            raise BadSampleError("malformed-captions")
        if not captions:
            captions, notes = read_texts(read), [Note("own text kept", f"{shard}, {key!r}")]
    if not captions:
        raise BadSampleError("no-caption")
    if len(captions) == 1:
        return [{**members, "txt": captions[0]}, *notes]
    return [{**members, "json": {"captions": list(captions)}}, *notes]


def _read_book(path: str | Path) -> Book:
    wrong = f"{path}: expected JSON {{key: [caption, ...]}}"
    try:
        book = {_without_dot(key): _captions(value) for key, value in read_object(path)}
    except BrokenFileError as broken:
        raise ValueError(f"{wrong}; it is broken behind {broken.count} entries") from None
    except ValueError:
        raise ValueError(wrong) from None
    if book and not any(captions is not None for captions in book.values()):
        raise ValueError(wrong)
    return book


def _captions(value: object) -> tuple[str, ...] | None:
    """Return the captions of one key, none for a null; None if it has something else."""
    captions = value if isinstance(value, list) else [value]
    texts = tuple(caption for caption in captions if isinstance(caption, str) and caption.strip())
    return texts if texts or value is None or all(isinstance(c, str) for c in captions) else None
