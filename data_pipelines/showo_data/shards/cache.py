"""The cache of whole remote shards on the local disk: bounded, shared by all processes of a node."""

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from showo_data.shards.names import scheme
from showo_data.shards.remote import remote_copy, remote_size
from showo_data.shards.storage import Storage, digest

_COMPLETE, _PARTIAL = ".tar", ".partial"


def open_copy(shard: str, storage: Storage) -> int | None:
    """Return a file descriptor of a remote shard's copy in the cache; None if it has no place there.

    Raises:
        UnreadableShardError: the shard cannot be copied.
    """
    if not storage.limit:
        return None
    cache = ShardCache(storage.folder / "shards", storage.limit)
    return cache.open(
        digest(shard),
        lambda: remote_size(shard, storage),
        lambda stream: remote_copy(shard, stream, storage),
    )


def open_whole(shard: str, storage: Storage) -> BinaryIO:
    """Open a shard for reading from its beginning to its end.

    A remote shard is read from its copy in the cache, or from a temporary copy if it has no place there.

    Raises:
        OSError: the shard cannot be read.
    """
    if not scheme(shard):
        return open(shard, "rb")
    copy = open_copy(shard, storage)
    if copy is not None:
        return open(copy, "rb")
    storage.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as on_error:
        stream = on_error.enter_context(tempfile.TemporaryFile(dir=storage.folder))
        remote_copy(shard, stream, storage)
        on_error.pop_all()
    stream.seek(0)
    return stream


class ShardCache:
    """A folder with at most ``limit`` bytes of copies, of which the least recently opened is deleted first.

    One process makes a copy while the others that need it wait, and the copy gets its name by one rename once
    it is complete. Its space is reserved before it is filled. A process that has a copy open can continue to
    read it after its deletion.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def open(
        self, name: str, size: Callable[[], int | None], fill: Callable[[BinaryIO], None]
    ) -> int | None:
        """Return a file descriptor of the copy called ``name``; None when there is no room for it.

        Args:
            name: of the copy.
            size: returns the bytes to reserve; None: they are not known before the copy is made.
            fill: writes the copy, if there is none yet.
        """
        path = self.folder / (name + _COMPLETE)
        with suppress(FileNotFoundError):
            return self._used(path)
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            with suppress(FileNotFoundError):  # another process was faster
                return self._used(path)
            return self._fill(path, size() or 0, fill)

    def _fill(self, path: Path, size: int, fill: Callable[[BinaryIO], None]) -> int | None:
        """Make the copy ``path``."""
        # Not showo_data.files.written_aside: the size of this unfinished file is the reserved space, which
        # other processes find by its name; and a copy that can be fetched again needs no fsync.
        aside = path.with_suffix(_PARTIAL)
        if not self._reserve(aside, size):
            return None
        try:
            with aside.open("r+b") as stream:
                fill(stream)
                stream.flush()
                written = os.fstat(stream.fileno()).st_size
            if written > size and not self._reserve(aside, written):
                return None
            aside.replace(path)
            return self._used(path)
        finally:
            aside.unlink(missing_ok=True)

    def _used(self, path: Path) -> int:
        """Open a copy, which makes it the most recently used one."""
        opened = os.open(path, os.O_RDONLY)
        os.utime(opened)
        return opened

    def _reserve(self, aside: Path, size: int) -> bool:
        """Reserve ``size`` bytes for an unfinished copy, deleting older copies if necessary."""
        with self._lock("room"):
            if not self._make_room(size, aside):
                return False
            with aside.open("ab") as stream:
                stream.truncate(size)
            return True

    def _make_room(self, size: int, aside: Path) -> bool:
        """Delete copies until ``size`` bytes are free beside those of other unfinished copies."""
        if size > self.limit:
            return False
        found = [(entry, entry.stat()) for entry in os.scandir(self.folder) if entry.is_file()]
        taken = {Path(e.path): s for e, s in found if e.path != str(aside)}
        free = self.limit - sum(state.st_size for state in taken.values()) - size
        for path, state in sorted(taken.items(), key=lambda item: item[1].st_mtime_ns):
            if free >= 0:
                break
            if path.suffix == _COMPLETE or self._is_abandoned(path):
                path.unlink(missing_ok=True)
                free += state.st_size
        return free >= 0

    def _is_abandoned(self, aside: Path) -> bool:
        """Whether the process that was making a copy has died: its lock is then free."""
        try:
            with self._lock(aside.stem, timeout=0):
                return True
        except Timeout:
            return False

    def _lock(self, name: str, timeout: float = -1) -> FileLock:
        return FileLock(self.folder / "locks" / f"{name}.lock", timeout=timeout)
