"""Convert edits, triples of source image, instruction and target image, in Parquet or JSON lines."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from showo_data.convert.images import image_member, read_bytes
from showo_data.convert.items import FILE, Item, Members, bad_item, find_files, text_of
from showo_data.convert.llava import inside_folder
from showo_data.convert.parquet import ParquetFiles, ParquetRows, UnreadableFileError
from showo_data.convert.text import json_lines
from showo_data.members import SOURCE, TARGET, BadSampleError

# Columns of InstructPix2Pix, MagicBrush, UltraEdit and OmniEdit on the hub; the first that a file has counts.
NAMES = {
    "source": ("source", "source_image", "source_img", "src_img", "original_image", "input_image"),
    "target": ("target", "target_image", "target_img", "edited_img", "edited_image"),
    "instruction": ("instruction", "edit_prompt", "edited_prompt_list"),
}
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
        patterns: ``.parquet`` files with images as bytes, or ``.jsonl`` files with paths of images; as paths,
            brace patterns or wildcards.
        images: the folder that paths in JSON lines are relative to; None: that of the file.
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
        if path.endswith(".parquet"):
            yield from _parquet(path, columns or {}, max_side)
        elif path.endswith(".jsonl"):
            folder = Path(images or Path(path).parent).resolve()
            found = _found(path, _first_keys(path), columns or {})
            yield from json_lines(path, partial(_load_paths, found, folder, max_side))
        else:
            raise ValueError(f"{path}: expected .parquet or .jsonl")


def _parquet(path: str, columns: Mapping[str, str | None], max_side: int | None) -> Iterator[Item]:
    try:
        found = _found(path, ParquetRows(path, ()).names, columns)
    except UnreadableFileError as error:
        yield bad_item(str(error), FILE)
        return
    load = partial(_load_bytes, found, max_side)
    yield from ParquetFiles(list(found.values())).items([path], load)


def _first_keys(path: str) -> list[str] | None:
    """The keys of the first line that is a JSON object; None without any."""
    for item in json_lines(path, lambda value: [value]):
        try:
            return list(item.load()[0])
        except BadSampleError:
            continue
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


def _load_bytes(columns: Columns, max_side: int | None, row: dict[str, Any]) -> list[Members]:
    images = {}
    for part in ("source", "target"):
        value = row[columns[part]]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadSampleError(f"no-{part}")
        images[part] = data
    return [_members(images, row[columns["instruction"]], max_side)]


def _load_paths(
    columns: Columns, folder: Path, max_side: int | None, entry: dict[str, Any]
) -> list[Members]:
    images = {}
    for part in ("source", "target"):
        name = entry.get(columns[part])
        if not isinstance(name, str) or not name:
            raise BadSampleError(f"no-{part}")
        images[part] = read_bytes(inside_folder(folder, name), part)
    return [_members(images, entry.get(columns["instruction"]), max_side)]


def _members(images: Mapping[str, bytes], instruction: Any, max_side: int | None) -> Members:
    texts = instruction if isinstance(instruction, list) else [instruction]
    texts = [text_of(text) for text in texts] or [text_of(None)]
    members: Members = {"txt": texts[0]} if len(texts) == 1 else {"json": {"captions": texts}}
    for prefix, part in ((SOURCE, "source"), (TARGET, "target")):
        for extension, data in image_member(images[part], max_side).items():
            members[prefix + extension] = data
    return members
