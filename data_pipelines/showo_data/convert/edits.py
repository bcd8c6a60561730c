"""Convert edits, triples of source image, instruction and target image, in Parquet or JSON lines."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from showo_data.convert.images import image_member, read_bytes
from showo_data.convert.items import FILE, Item, Members, Pieces, bad_item, find_files, text_of
from showo_data.convert.llava import inside_folder
from showo_data.convert.parquet import ParquetFiles, ParquetRows, UnreadableFileError
from showo_data.convert.text import json_lines
from showo_data.members import SOURCE, TARGET, BadSampleError

# Columns of InstructPix2Pix, MagicBrush, UltraEdit, OmniEdit, HQ-Edit, AnyEdit and ImgEdit on the hub; the
# first that a file has counts.
NAMES = {
    "source": (
        *("source", "source_image", "source_img", "src_img", "original_image", "input_image"),
        *("image_file", "input_images"),
    ),
    "target": (
        *("target", "target_image", "target_img", "edited_img", "edited_image", "output_image"),
        *("edited_file", "output_images"),
    ),
    "instruction": ("instruction", "edit_prompt", "edited_prompt_list", "edit_instruction"),
}
# Keys of SEED-Data-Edit's sessions of several turns; a number follows the last two.
_SESSION = ("source_image", "edit_image_", "instruction_")
# A part of a triple → the name of its column or key.
Columns = Mapping[str, str]


def edit_items(
    patterns: Sequence[str],
    *,
    images: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    max_side: int | None = None,
) -> Iterator[Item]:
    """Yield edits; of an instruction that is a list of texts, one is sampled each time it is read.

    Args:
        patterns: ``.parquet`` or ``.jsonl`` files with images as bytes or paths; as paths, brace patterns or
            wildcards. A line of JSON may also be a session of SEED-Data-Edit.
        images: the folder that paths are relative to; None: that of the file.
        columns: names of the columns or keys of ``source``, ``target`` and ``instruction``; None: the first
            of :data:`NAMES` that a file has.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: a pattern matches no file, or ``images`` does not exist.
        ValueError: another kind of file, or a column is missing; names the option.
    """
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"no folder {str(images)!r}")
    for path in find_files(patterns):
        folder = Path(images or Path(path).parent).resolve()
        if path.endswith(".parquet"):
            yield from _parquet(path, columns or {}, folder, max_side)
        elif path.endswith(".jsonl"):
            keys, named = _first_keys(path), columns or {}
            if f"{_SESSION[1]}1" in (keys or ()) and not any(named.values()):
                yield from json_lines(path, partial(_load_session, folder, max_side))
            else:
                load = partial(_load, _found(path, keys, named), folder, max_side)
                yield from json_lines(path, load)
        else:
            raise ValueError(f"{path}: expected .parquet or .jsonl")


def _parquet(
    path: str, columns: Mapping[str, str | None], folder: Path, max_side: int | None
) -> Iterator[Item]:
    try:
        found = _found(path, ParquetRows(path, ()).names, columns)
    except UnreadableFileError as error:
        yield bad_item(str(error), FILE)
        return
    load = partial(_load, found, folder, max_side)
    yield from ParquetFiles(list(found.values())).items([path], load)


def _first_keys(path: str) -> list[str] | None:
    """The keys of the first line that is a JSON object; None without any."""
    for item in json_lines(path, lambda value: [value]):
        with suppress(BadSampleError):
            (value,) = item.load()
            if isinstance(value, dict):
                return list(value)
    return None


def _found(path: str, present: Sequence[str] | None, columns: Mapping[str, str | None]) -> Columns:
    """The names that a file has for the parts of an edit; any names where it has nothing at all.

    Raises:
        ValueError: it lacks one.
    """
    found = {}
    for part, names in NAMES.items():
        given = columns.get(part)
        wanted = names if given is None else (given,)
        name = next((n for n in wanted if present is None or n in present), None)
        if name is None:
            raise ValueError(
                f"{path}: no column {' or '.join(map(repr, wanted))}; it has "
                f"{', '.join(map(repr, present or ()))}: name the {part} with --{part}"
            )
        found[part] = name
    return found


def _load(
    columns: Columns, folder: Path, max_side: int | None, entry: dict[str, Any]
) -> list[Members]:
    values = {part: entry.get(name) for part, name in columns.items()}
    return [_triple(values, folder, max_side)]


def _load_session(folder: Path, max_side: int | None, entry: dict[str, Any]) -> Pieces:
    """Each turn edits the image of the turn before."""
    source, edited, instruction = _SESSION
    before, pieces = entry.get(source), list[Members | BadSampleError]()
    turns = [int(number) for key in entry if (number := key.removeprefix(edited)).isdecimal()]
    for turn in range(1, max(turns, default=1) + 1):
        after, text = entry.get(f"{edited}{turn}"), entry.get(f"{instruction}{turn}")
        try:
            values = {"source": before, "target": after, "instruction": text}
            pieces.append(_triple(values, folder, max_side))
        except BadSampleError as bad:
            pieces.append(bad)
        before = after
    return pieces


def _triple(values: Mapping[str, Any], folder: Path, max_side: int | None) -> Members:
    images = {part: _image(values[part], part, folder) for part in ("source", "target")}
    return _members(images, values["instruction"], max_side)


def _image(value: Any, part: str, folder: Path) -> bytes:
    """The bytes of an image: as such, or at a path; in a struct of both, or in a list of one."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return read_bytes(inside_folder(folder, value), part)
    if not isinstance(value, bytes) or not value:
        raise BadSampleError(f"no-{part}")
    return value


def _members(images: Mapping[str, bytes], instruction: Any, max_side: int | None) -> Members:
    texts = instruction if isinstance(instruction, list) else [instruction]
    texts = [text for text in texts if not isinstance(text, str) or text.strip()]
    texts = [text_of(text) for text in texts] or [text_of(None)]
    members: Members = {"txt": texts[0]} if len(texts) == 1 else {"json": {"captions": texts}}
    for prefix, part in ((SOURCE, "source"), (TARGET, "target")):
        for extension, data in image_member(images[part], max_side).items():
            members[prefix + extension] = data
    return members
