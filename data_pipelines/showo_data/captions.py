"""Captions that lie outside the shards, as the recaptioned SA-1B, LAION-12M and CC12M have them.

A sample's set is known by names: "SA1B" in its key; "laion" or "cc12m" in the path of its shard. Where its
caption lies:

    SA-1B       FOLDER/NAME.txt                NAME: the key without its folders
    LAION-12M   FOLDER/SHARD/KEY.caption       SHARD: the shard's file name up to the first dot
    CC12M       FOLDER/SHARD/NAME.caption

The caption is the first line of the file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Openings that say nothing about the image; captioning models write many of them.
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


@dataclass(frozen=True, slots=True)
class ExternalCaptions:
    """Where captions outside the shards are looked up.

    Attributes:
        sa1b: folder of the captions of SA-1B; None: its samples have their own text. The others likewise.
        laion12m: folder of the captions of LAION-12M.
        cc12m: folder of the captions of CC12M.
        variants: for images from text: the first sentence or the whole caption, either without openings
            such as "The image depicts"; else the whole caption as it stands.
    """

    sa1b: str | None = None
    laion12m: str | None = None
    cc12m: str | None = None
    variants: bool = False

    def find(self, shard: str, key: str) -> tuple[str, ...] | None:
        """The captions to choose from; none where the file is missing or empty.

        Returns:
            None where the sample belongs to no set that lies outside: its own text counts.
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
        if self.laion12m and "laion" in shard:
            return Path(self.laion12m, folder, f"{key}.caption")
        if self.cc12m and "cc12m" in shard:
            return Path(self.cc12m, folder, f"{name}.caption")
        return None


def short_or_long(caption: str) -> tuple[str, ...]:
    """The first sentence and the whole caption, both without openings; what is empty then is left out."""
    cleaned = (without_openings(caption.partition(".")[0]), without_openings(caption))
    return tuple(text for text in cleaned if text)


def without_openings(caption: str) -> str:
    """The caption without phrases such as "The image depicts", wherever they stand."""
    return _OPENINGS.sub("", caption)


def _first_line(path: Path) -> str:
    """The first line; empty where there is no such file, or no UTF-8 text in it."""
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.readline().strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
