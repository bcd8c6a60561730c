"""Writes WebDataset shards: all or nothing, and the same bytes from the same samples."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from showo_data.shards.atomic import written_aside
from showo_data.shards.index import build_index

# A fixed date of modification, so that equal samples give equal bytes.
_MTIME = 0.0


def write_shard(path: str | Path, samples: Iterable[Mapping[str, Any]]) -> int:
    """Write ``samples`` to the tar ``path`` and its index beside it; returns how many there were.

    A sample is ``{"__key__": key, extension: value, …}``; a value is bytes, or what webdataset encodes by
    its extension (text, JSON, arrays). Folders are created as needed. The file appears under its name
    only once it is complete.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with written_aside(target) as stream, TarWriter(stream, mtime=_MTIME) as tar:
        for sample in samples:
            tar.write(dict(sample))
            count += 1
    build_index(str(target))
    return count
