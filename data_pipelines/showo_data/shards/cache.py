"""The cache of whole remote shards on the local disk: bounded, shared by all processes of a node."""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from showo_data.shards.names import scheme
from showo_data.shards.outages import attempt
from showo_data.shards.remote import remote_copy, remote_state
from showo_data.shards.storage import Storage, UnreadableShardError, digest

log = logging.getLogger(__name__)

_STAMP_BITS = 28  # seconds up to the year 1978, when no file was written
_unusable: set[Path] = set()  # cache folders with an error in this process
_COMPLETE, _PARTIAL = ".tar", ".partial"


def open_copy(
    shard: str, storage: Storage, sha256: str | None = None, *, fresh: bool = False
) -> int | None:
    """Return a file descriptor of a remote shard's copy in the cache; None if it has no place there.

    If the cache cannot be written (a full disk, a read-only folder), this process logs it once and does not
    use the cache again. Another process that makes the copy is waited for until the time of ``storage`` ends.

    Args:
        shard: the URL.
        storage: access to it.
        sha256: of the shard, by its index; None: not known.
        fresh: replace a copy that exists.

    Raises:
        UnreadableShardError: the shard cannot be copied; "changed-shard": it does not have that SHA-256.
    """
    if not storage.limit or storage.folder in _unusable:
        return None
    storage = storage.timed()
    cache = ShardCache(storage.folder / "shards", storage.limit, max(storage.left_s, 0))

    def size() -> int | None:
        with attempt(shard, storage) as asked:
            return remote_state(shard, asked).size

    def fill(stream: BinaryIO) -> None:
        with attempt(shard, storage) as asked:
            remote_copy(shard, stream, asked, storage.limit)

    try:
        return cache.open(digest(shard), size, fill, sha256, fresh=fresh)
    except UnreadableShardError:
        raise
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        _unusable.add(storage.folder)
        log.warning(
            "the cache of shards %s cannot be used (%s): this process reads remote shards by ranges",
            storage.folder,
            error,
        )
        return None


def open_whole(shard: str, storage: Storage, *, fresh: bool = False) -> BinaryIO:
    """Open a shard for reading from its beginning to its end.

    A remote shard is read from its copy in the cache, or from a temporary copy if it has no place there;
    ``fresh`` replaces a copy that exists.

    Raises:
        OSError: the shard cannot be read.
    """
    if not scheme(shard):
        return open(shard, "rb")
    copy = open_copy(shard, storage, fresh=fresh)
    if copy is not None:
        return open(copy, "rb")
    with ExitStack() as on_error:
        try:
            storage.folder.mkdir(parents=True, exist_ok=True)
            stream = on_error.enter_context(tempfile.TemporaryFile(dir=storage.folder))
        except OSError:  # a read-only cache
            stream = on_error.enter_context(tempfile.TemporaryFile())
        with attempt(shard, storage) as asked:
            remote_copy(shard, stream, asked)
        on_error.pop_all()
    stream.seek(0)
    return stream


class ShardCache:
    """A folder with at most ``limit`` bytes of copies, of which the least recently opened is deleted first.

    One process makes a copy while the others that need it wait, and the copy gets its name by one rename once
    it is complete and on the disk. Its space is reserved before it is filled. A process that has a copy open
    can continue to read it after its deletion.

    A complete copy has a part of its SHA-256 as its time of modification. So a copy that was written to since
    it was compared with its checksum, or that is of an older version of the shard, is made again. The time of
    access is when it was last opened.
    """

    def __init__(self, folder: Path, limit: int, wait_s: float = -1) -> None:
        """Use ``folder``, and wait ``wait_s`` at most for a process that makes a copy; -1: for ever."""
        self.folder, self.limit, self.wait_s = folder, limit, wait_s

    def open(
        self,
        name: str,
        size: Callable[[], int | None],
        fill: Callable[[BinaryIO], None],
        sha256: str | None = None,
        *,
        fresh: bool = False,
    ) -> int | None:
        """Return a file descriptor of the copy called ``name``; None when there is no room for it.

        Args:
            name: of the copy.
            size: returns the bytes to reserve; None: they are not known before the copy is made.
            fill: writes the copy, if there is none yet.
            sha256: checksum that the copy must have; None: any.
            fresh: make the copy even if there is one.

        Raises:
            UnreadableShardError: "changed-shard": the new copy has another checksum.
            Timeout: another process did not finish the copy in time.
        """
        path = self.folder / (name + _COMPLETE)
        used = None if fresh else self._used(path, sha256)
        if used is not None:
            return used
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            # Another process may have been faster.
            used = None if fresh else self._used(path, sha256)
            return self._fill(path, size() or 0, fill, sha256) if used is None else used

    def _fill(
        self, path: Path, size: int, fill: Callable[[BinaryIO], None], sha256: str | None
    ) -> int | None:
        """Make the copy ``path``."""
        # Not showo_data.files.written_aside: the size of this unfinished file is the reserved space, which
        # other processes find by its name.
        aside = path.with_suffix(_PARTIAL)
        if not self._reserve(aside, size):
            return None
        try:
            with aside.open("r+b") as stream:
                fill(stream)
                stream.truncate()  # the reserved space, if the shard has shrunk since
                stream.flush()
                os.fsync(stream.fileno())
                stream.seek(0)
                found = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
                written = os.fstat(stream.fileno()).st_size
            if sha256 not in (None, found):
                raise UnreadableShardError(
                    "changed-shard", f"{path.stem}: a copy has another checksum than the index"
                )
            if written > size and not self._reserve(aside, written):
                return None
            os.utime(aside, (time.time(), _stamp(found)))
            aside.replace(path)
            return self._used(path, found)
        finally:
            aside.unlink(missing_ok=True)

    def _used(self, path: Path, sha256: str | None) -> int | None:
        """Open a copy, which makes it the most recently used one; None if there is no such copy."""
        try:
            opened = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        modified = os.fstat(opened).st_mtime_ns
        stamp = modified // 10**9
        if stamp >> _STAMP_BITS or (sha256 is not None and stamp != _stamp(sha256)):
            os.close(opened)
            return None
        with suppress(OSError):  # another user's copy, or a read-only file system
            os.utime(opened, ns=(time.time_ns(), modified))
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
        taken = {path: state for path, state in self._files() if path != aside}
        free = self.limit - sum(state.st_size for state in taken.values()) - size
        for path, state in sorted(taken.items(), key=lambda item: item[1].st_atime_ns):
            if free >= 0:
                break
            if path.suffix == _COMPLETE or self._is_abandoned(path):
                path.unlink(missing_ok=True)
                free += state.st_size
        return free >= 0

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the complete and unfinished copies; other processes rename and delete theirs meanwhile."""
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if entry.is_file():
                    yield Path(entry.path), entry.stat()

    def _is_abandoned(self, aside: Path) -> bool:
        """Whether the process that was making a copy has died: its lock is then free."""
        try:
            with self._lock(aside.stem, timeout=0):
                return True
        except Timeout:
            return False

    def _lock(self, name: str, timeout: float | None = None) -> FileLock:
        wait_s = self.wait_s if timeout is None else timeout
        return FileLock(self.folder / "locks" / f"{name}.lock", timeout=wait_s)


def _stamp(sha256: str) -> int:
    """Return the time of modification, in seconds, of a copy with this checksum."""
    return int(sha256, 16) >> (256 - _STAMP_BITS)
