"""Convert ImageNet-1k with the names of its classes as captions.

The images are class folders, the official tar of each class, or the one tar that holds all of these.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from showo_data.convert.images import SUFFIXES, image_member, read_bytes
from showo_data.convert.items import FILE, PART, Item, Members, bad_item
from showo_data.members import BadSampleError
from showo_data.shards import DAMAGED, SPARSE, tar_files
from showo_data.shards.tables import File
from showo_data.text import is_apple_double, parse_json, read_text

Synonyms = Literal["first", "random"]

_LINE = re.compile(r"(\w+)(?::\s*|\s+)(\S.*)")


class _Class(Protocol):
    """The images of one class, in a folder or in a tar."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def lost(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def where(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    files: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        return str(self.path / self.files[index])

    def read(self, index: int) -> bytes:
        return read_bytes(self.path / self.files[index])


@dataclass(frozen=True, slots=True)
class _Tar:
    """The images of one class in a tar, by byte offset and size, so that no archive stays open.

    ``lost`` says where the parts begin that cannot be read.
    """

    name: str
    path: Path
    offset_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]
    lost: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offset_N)

    def where(self, index: int) -> str:
        return f"{self.path}, image {index} of {self.name}"

    def read(self, index: int) -> bytes:
        if self.size_N[index] == SPARSE:
            raise BadSampleError("sparse-member")
        with self.path.open("rb") as stream:
            stream.seek(int(self.offset_N[index]))
            data = stream.read(int(self.size_N[index]))
        if len(data) < self.size_N[index]:
            raise BadSampleError("truncated")
        return data


def imagenet_items(
    source: str | Path,
    names: str | Path,
    *,
    synonyms: Synonyms = "first",
    seed: int = 0,
    max_side: int | None = None,
) -> Iterator[Item]:
    """Yield images with the names of their classes, all classes mixed by a seeded shuffle.

    It holds names and offsets only, about 100 bytes per image.

    Args:
        source: a folder of class folders, a folder of class tars (``n01440764.tar``), or the tar of these.
        names: see :func:`read_class_names`.
        synonyms: ``first``: the caption is the class's first name, as published; ``random``: all names are
            stored, and one is sampled each time the sample is read.
        seed: of the shuffle.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: ``source`` or ``names`` does not exist.
        ValueError: ``source`` holds no classes, or one without a name in ``names``, or none of its tars can
            be read.
    """
    classes = _classes(Path(source))
    texts = _texts(classes, names, synonyms)
    ends = np.cumsum([len(one) for one in classes])
    # Raw random words of Philox, which NumPy guarantees across its versions.
    order = np.argsort(np.random.Philox(key=seed).random_raw(int(ends[-1])), kind="stable")
    for place in order.tolist():
        number = int(np.searchsorted(ends, place, side="right"))
        one, index = classes[number], place - int(ends[number]) + len(classes[number])
        yield Item(one.where(index), partial(_load, one, index, texts[number], max_side))
    for one in classes:
        for lost in one.lost:
            yield bad_item(lost, PART if len(one) else FILE)


def _load(one: _Class, index: int, text: Members, max_side: int | None) -> list[Members]:
    return [{**image_member(one.read(index), max_side), **text}]


def _texts(classes: Sequence[_Class], names: str | Path, synonyms: Synonyms) -> list[Members]:
    """Return the text member of each class."""
    known = read_class_names(names)
    by_number = all(map(str.isdecimal, known)) and not any(one.name in known for one in classes)
    if by_number and len(known) != len(classes):
        raise ValueError(
            f"{names} numbers {len(known)} classes, but {len(classes)} have images, and which they are is "
            "not known; give names by class, such as LOC_synset_mapping.txt"
        )
    texts: list[Members] = []
    for number, one in enumerate(classes):
        words = known.get(str(number) if by_number else one.name)
        if not words:
            raise ValueError(f"class {one.name!r} has no name in {names}")
        texts.append(
            {"txt": words[0]} if synonyms == "first" else {"json": {"captions": list(words)}}
        )
    return texts


def _classes(source: Path) -> Sequence[_Class]:
    """Find the classes, in the order of their names."""
    if not source.exists():
        raise FileNotFoundError(f"no folder or tar {str(source)!r}")
    found: Sequence[_Class]
    if source.is_file():
        found = _nested(source)
    else:
        entries = sorted(entry for entry in source.iterdir() if not is_apple_double(entry))
        folders = [_folder(entry) for entry in entries if entry.is_dir()]
        tars = [_tar(entry) for entry in entries if entry.suffix == ".tar" and entry.is_file()]
        found = [*folders, *tars]
        twice = {one.name for one in folders if len(one)} & {one.name for one in tars}
        if twice:
            raise ValueError(f"{source}: class {min(twice)} is there as a folder and as a tar")
    filled = sorted((one for one in found if len(one) or one.lost), key=lambda one: one.name)
    if not any(map(len, filled)):
        raise ValueError(
            f"{source}: no class tar can be read, the first: {filled[0].lost[0]}"
            if filled
            else f"{source}: holds neither class folders with images nor class tars"
        )
    return filled


def _folder(path: Path) -> _Folder:
    names = (entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
    return _Folder(path, tuple(sorted(name for name in names if not is_apple_double(name))))


def _tar(path: Path) -> _Tar:
    with path.open("rb") as stream:
        return _as_class(path.stem, path, str(path), tar_files(stream))


def _nested(path: Path) -> list[_Tar]:
    """Find the class tars inside one tar."""
    found: list[_Tar] = []
    # By the number of classes before it: the images behind a damaged header of a class belong to that damage.
    lost: dict[int, str] = {}
    with path.open("rb") as stream:
        for entry in tar_files(stream):
            name, _, extension = Path(entry.name).name.rpartition(".")
            if extension == DAMAGED:
                lost.setdefault(len(found), f"{path}, from byte {entry.offset} on")
            elif extension == "tar" and not is_apple_double(entry.name):
                inside = tar_files(stream, entry.offset, entry.offset + max(entry.size, 0))
                found.append(_as_class(name, path, f"{path}: class {name}", inside))
    if not found and lost:
        raise ValueError(_no_tar(str(path)))
    if lost:
        found[-1] = replace(found[-1], lost=(*found[-1].lost, *lost.values()))
    return found


def _as_class(name: str, path: Path, shown: str, entries: Iterable[File]) -> _Tar:
    """List offsets and sizes of the images of a class tar; one that is no tar costs no other class."""
    images, lost = [], []
    for entry in entries:
        if entry.name.endswith(f".{DAMAGED}"):
            lost.append(f"{shown}, from byte {entry.offset} on")
        elif not is_apple_double(entry.name):
            images.append((entry.offset, entry.size))
    if lost and not images:
        lost = [_no_tar(shown)]
    offset_N, size_N = np.array(images, dtype=np.int64).reshape(-1, 2).T
    return _Tar(name, path, offset_N, size_N, tuple(lost))


def _no_tar(shown: str) -> str:
    return f"{shown} is not a tar (it has no intact header): fetch it again, or remove it"


def read_class_names(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read the names of the classes: class → its synonyms, the usual one first.

    A class is its folder's name, or its number in the order of the folders. The file has one of these forms:

    * ``n01440764 tench, Tinca tinca`` per line (``LOC_synset_mapping.txt``, ``synset_words.txt``);
    * ``0: tench`` per line, classes by number;
    * JSON ``{"0": ["n01440764", "tench"], …}``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has none of these forms.
    """
    text = read_text(path)
    pairs = _from_json(text) if text.lstrip().startswith("{") else _from_lines(text)
    if not pairs:
        raise ValueError(
            f"class names {path}: expected lines such as 'n01440764 tench, Tinca tinca' or '0: tench', "
            'or JSON {"0": ["n01440764", "tench"], ...}'
        )
    return {name: _synonyms(words) for name, words in pairs.items()}


def _from_json(text: str) -> dict[str, str]:
    try:
        return {str(wnid): str(words) for wnid, words in parse_json(text).values()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _from_lines(text: str) -> dict[str, str]:
    matches = [_LINE.fullmatch(line.strip()) for line in text.split("\n") if line.strip()]
    return {match[1]: match[2] for match in matches if match} if all(matches) else {}


def _synonyms(words: str) -> tuple[str, ...]:
    return tuple(word.strip().replace("_", " ") for word in words.split(",") if word.strip())
