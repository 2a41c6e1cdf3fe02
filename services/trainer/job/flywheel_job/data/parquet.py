"""Reads windows of Parquet files; one window at a time is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.data.order import EpochOrder, Range, RowGroup, Window
from flywheel_job.errors import UnusableTrainingSet


class ParquetFiles:
    """The Parquet files under an address, in the order of their names."""

    def __init__(self, store: fs.FileSystem, uri: str, columns: Sequence[str] | None = None) -> None:
        """`columns` is None for all. Raises UnusableTrainingSet if a column is missing."""
        self._store, self._columns = store, None if columns is None else list(columns)
        self._paths = objects.files_under(store, uri, ".parquet")
        self._open: tuple[int, pq.ParquetFile] | None = None
        self._window: tuple[EpochOrder, Window, pa.Table] | None = None
        self.groups: list[RowGroup] = []
        for number in range(len(self._paths)):
            file = self._file(number)
            missing = [name for name in self._columns or () if name not in file.schema_arrow.names]
            if missing:
                raise UnusableTrainingSet(f"The data set at {uri} has no column {missing[0]!r}.")
            self.groups += [
                RowGroup(number, group, file.metadata.row_group(group).num_rows)
                for group in range(file.metadata.num_row_groups)
                if file.metadata.row_group(group).num_rows
            ]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def read(self, order: EpochOrder, window: Window, rows: Range) -> pa.Table:
        """These positions of a window; the window is kept for the next call."""
        if self._window is None or self._window[0] is not order or self._window[1] is not window:
            self._window = None  # freed before the next one is read
            tables = [
                self._file(one.file).read_row_group(one.group, columns=self._columns) for one in window.groups
            ]
            self._window = (order, window, pa.concat_tables(tables, promote_options="permissive"))
        return self._window[2].take(pa.array(order.permutation(window)[rows[0] : rows[1]]))

    def _file(self, number: int) -> pq.ParquetFile:
        if self._open is None or self._open[0] != number:
            source = self._store.open_input_file(self._paths[number])
            self._open = (number, pq.ParquetFile(source, pre_buffer=False))
        return self._open[1]
