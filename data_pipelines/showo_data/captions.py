"""Captions in files outside the shards, as the recaptioned SA-1B, LAION-12M and CC12M have them.

The data set of a sample follows from names: "SA1B" in its key; "laion" or "cc12m" in the path of its shard,
the last of both where it has captions of both. Its caption is the first line of this file:

    SA-1B       FOLDER/NAME.txt                NAME: the key without its folders
    LAION-12M   FOLDER/SHARD/KEY.caption       SHARD: the shard's file name up to the first dot
    CC12M       FOLDER/SHARD/NAME.caption
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Openings without information about the image, which captioning models write often.
_OPENINGS = re.compile(
    r"The image (?:captures|depicts|features|is|portrays|presents|showcases) "
    r"|The image you've sent is, "
    r"|In the center of the image, "
    r"|In the given image "
    r"|In this image, (?:we see )?"
    r"|In the image, "
    r"|This image captures "
    r"|This is "
)


# The word in the path of a data set's shards; samples of SA-1B are known by their keys.
WORDS = {"sa1b": "", "laion12m": "laion", "cc12m": "cc12m"}


def check_folder(option: str, folder: str, name: str, shards: Iterable[str]) -> None:
    """Refuse captions that no sample would get, since all would keep their own text.

    Args:
        option: what names the folder, for the message.
        folder: of the captions.
        name: of the data set, a key of :data:`WORDS`.
        shards: paths, URLs or patterns of the shards.

    Raises:
        ValueError: the folder is missing, or no shard is of the data set.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{option} {folder}: no such folder")
    if not any(WORDS[name] in path for path in shards):
        raise ValueError(
            f"{option} {folder}: its shards are known by {WORDS[name]!r} in their path, which no shard has"
        )


@dataclass(frozen=True, slots=True)
class ExternalCaptions:
    """The folders of captions outside the shards.

    Attributes:
        sa1b: captions of SA-1B; None: its samples use their own text.
        laion12m: captions of LAION-12M; None likewise.
        cc12m: captions of CC12M; None likewise.
        variants: True for t2i: choose the first sentence or the whole caption, either without openings such
            as "The image depicts". False: the whole caption, unchanged.
    """

    sa1b: str | None = None
    laion12m: str | None = None
    cc12m: str | None = None
    variants: bool = False

    def find(self, shard: str, key: str) -> tuple[str, ...] | None:
        """Return the captions to choose from, an empty tuple if the file is missing or empty.

        None means that the sample belongs to none of the sets with external captions and has its own text.
        """
        path = self._path(shard, key)
        if path is None:
            return None
        caption = _first_line(path)
        if self.variants:
            return short_or_long(caption)
        return (caption,) if caption else ()

    def _path(self, shard: str, key: str) -> Path | None:
        name = key.rpartition("/")[2]
        folder = Path(shard).name.partition(".")[0]
        if self.sa1b and "SA1B" in key:
            return Path(self.sa1b, f"{name}.txt")
        sets = (("laion12m", self.laion12m, key), ("cc12m", self.cc12m, name))
        # A path may have both words, as laion-bucket/cc12m/0.tar: the last one is the closest to the shard.
        found = [(shard.rfind(WORDS[which]), root, stem) for which, root, stem in sets if root]
        place, root, stem = max(found, default=(-1, "", ""))
        return Path(root, folder, f"{stem}.caption") if place >= 0 else None


def short_or_long(caption: str) -> tuple[str, ...]:
    """Return the first sentence and the whole caption, both without openings, unless they are empty."""
    cleaned = (without_openings(caption.partition(".")[0]), without_openings(caption))
    return tuple(text for text in cleaned if text.strip())


def without_openings(caption: str) -> str:
    """Remove phrases such as "The image depicts" anywhere in the caption."""
    return _OPENINGS.sub("", caption)


def _first_line(path: Path) -> str:
    """Read the first line; empty if the file does not exist or is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return stream.readline().strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
