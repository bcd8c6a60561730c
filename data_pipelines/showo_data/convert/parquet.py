"""Read Parquet files row by row, with a few rows in memory at a time."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from showo_data.convert.items import FILE, Item, Pieces, bad_item, is_passing
from showo_data.members import BadSampleError

# Rows decoded at a time: at a few MB per image, a few hundred MB.
_ROWS = 64
# Bytes read at a time, so that pyarrow holds a page of a column instead of the whole row group.
_BUFFER = 1 << 20


class UnreadableFileError(ValueError):
    """A file is no Parquet, or its footer is damaged; the message names it."""


class ParquetRows:
    """Rows of one Parquet file. Reading forward is cheap; a row needs the rows before it in its row group."""

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        """Open ``path``.

        Raises:
            UnreadableFileError: ``path`` is not a Parquet file.
            OSError: it does not exist, or the machine fails; ``filename`` is set.
            ValueError: a column is missing, or pyarrow is not installed.
        """
        parquet = _pyarrow_parquet()
        try:
            self._file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            if is_passing(error):
                error.filename = path
                raise
            reason = " ".join(str(error).split())[:200]
            raise UnreadableFileError(f"{path}: cannot be read as Parquet: {reason}") from None
        present = self.names = list(self._file.schema_arrow.names)
        missing = [column for column in columns if column not in present]
        if missing:
            raise ValueError(
                f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, present))}"
            )
        self._columns = list(columns)
        meta = self._file.metadata
        counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._group, self._first = -1, 0
        self._rows: list[dict[str, Any] | None] = []
        self._batches: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return row ``number`` as a dictionary of the columns.

        Raises:
            BadSampleError: the file is damaged there, or a text is not UTF-8.
            OSError: the machine fails.
        """
        group = bisect_right(self._starts, number) - 1
        if group != self._group or number < self._first:
            self._group, self._first, self._rows = group, self._starts[group], []
            self._batches = self._file.iter_batches(
                _ROWS, row_groups=[group], columns=self._columns, use_threads=False
            )
        while number >= self._first + len(self._rows):
            self._advance()
        row = self._rows[number - self._first]
        if row is None:
            raise BadSampleError("not-utf8")
        return row

    def _advance(self) -> None:
        try:
            batch = next(self._batches, None)
        except (ValueError, OSError) as error:  # pyarrow's errors are of these two families
            if is_passing(error):
                raise
            batch = None  # the iterator has ended: the rest of the row group is bad as well
        if batch is None:
            raise BadSampleError("unreadable-rows")
        self._first += len(self._rows)
        try:
            self._rows = batch.to_pylist()
        except ValueError:  # a text that is not UTF-8 must not cost the rows around it
            self._rows = [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row(batch: Any) -> dict[str, Any] | None:
    """The one row of a batch; None if a value has no form in Python."""
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except ValueError:
        return None
    return row


class ParquetFiles:
    """Rows of many Parquet files, of which one is open at a time."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._path = ""
        self._open: ParquetRows | None = None

    def places(self, paths: Iterable[str]) -> Iterator[tuple[str, int]]:
        """Yield the file and number of every row; reads only the footers."""
        for path in paths:
            for number in range(len(ParquetRows(path, self._columns))):
                yield path, number

    def items(
        self, paths: Iterable[str], load: Callable[[dict[str, Any]], Pieces]
    ) -> Iterator[Item]:
        """Yield an input for every row, which ``load`` makes samples of.

        A file that cannot be read is one bad input.
        """
        for path in paths:
            try:
                count = len(ParquetRows(path, self._columns))
            except UnreadableFileError as error:
                yield bad_item(str(error), FILE)
                continue
            mark = f"{count} rows, {os.path.getsize(path)} bytes"
            for number in range(count):
                load_row = partial(self._load, path, number, load)
                yield Item(f"{path}, row {number}", load_row, mark)

    def _load(self, path: str, number: int, load: Callable[[dict[str, Any]], Pieces]) -> Pieces:
        return load(self.row(path, number))

    def row(self, path: str, number: int) -> dict[str, Any]:
        """Return a row as a dictionary of the columns; raises as :class:`ParquetRows`."""
        if self._open is None or path != self._path:
            self._path, self._open = path, ParquetRows(path, self._columns)
        return self._open[number]


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            "Parquet files are read with pyarrow: install it with pip install 'showo-dist[data]'"
        ) from None
    return parquet
