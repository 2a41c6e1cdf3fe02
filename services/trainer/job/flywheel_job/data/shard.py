"""One rank's share of a data set, as batches that a background thread reads ahead."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from flywheel_job.data.batch import Batch, to_batch
from flywheel_job.data.order import EpochOrder, Range, deal, interleaved, take
from flywheel_job.data.parquet import ParquetFiles
from flywheel_job.errors import EmptyDataSet

WINDOW_ROWS = 131_072
"""A row group of a training set; rows are shuffled inside windows of at least this size."""
READ_AHEAD = 2
"""Batches that are ready before they are needed."""


class Shard:
    """Iterates over one epoch of this rank's rows; the next iteration is the next epoch.

    `position` is the state after the last batch that the loop received: after `restore`, the iteration
    continues with the batch that follows. It can be restored on another number of ranks.
    """

    def __init__(
        self,
        files: ParquetFiles,
        *,
        rank: int,
        ranks: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        same_batches: bool = False,
        window_rows: int = WINDOW_ROWS,
        pin: bool = False,
    ) -> None:
        """With `same_batches` the rows of a global batch are the same for every number of ranks.

        Every rank then reads all files, while each rank reads 1 / ranks of them otherwise. Raises
        EmptyDataSet.
        """
        if files.rows < ranks:
            raise EmptyDataSet(
                f"The data set has {files.rows} rows, but each of {ranks} workers needs at least one."
            )
        self._files, self.rank, self.ranks, self._batch = files, rank, ranks, batch_size
        self._seed, self._shuffle, self._same = seed, shuffle, same_batches
        self._window_rows, self._pin = window_rows, pin
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._order = EpochOrder(
            self._files.groups, self._seed, epoch, self._window_rows, shuffle=self._shuffle
        )
        self._next = 0
        self._ranges = deal([(0, self._order.rows)], self.ranks)[self.rank]

    @property
    def rows(self) -> int:
        """Rows of the whole data set."""
        return self._files.rows

    def first(self) -> Batch:
        """The first row of the first file, to see the shape of the columns; the position does not change."""
        order = EpochOrder(self._files.groups, 0, 0, 1, shuffle=False)
        return to_batch(self._files.read(order, order.windows[0], (0, 1)))

    def __len__(self) -> int:
        """Number of batches that are left in this epoch."""
        if self._same:
            rows = self._order.rows
            return sum(1 for _ in interleaved(self._next, rows, self.rank, self.ranks, self._batch))
        return math.ceil(sum(end - begin for begin, end in self._ranges) / self._batch)

    def __iter__(self) -> Iterator[Batch]:
        for batch, next_row, ranges in _read_ahead(self._batches()):
            self._next, self._ranges = next_row, ranges
            yield batch
        self._start_epoch(self.epoch + 1)

    def position(self) -> dict[str, Any]:
        """The position of this rank as JSON."""
        return {"epoch": self.epoch, "next": self._next, "ranges": self._ranges, "ranks": self.ranks}

    def restore(self, positions: Sequence[dict[str, Any]]) -> None:
        """Continue at the positions of all ranks, in the order of the ranks that saved them."""
        own = positions[self.rank % len(positions)]
        self._start_epoch(own["epoch"])
        self._next = own["next"]
        left = [[(begin, end) for begin, end in one["ranges"]] for one in positions]
        if len(positions) == self.ranks:
            self._ranges = left[self.rank]
        else:
            self._ranges = deal([one for share in left for one in share], self.ranks)[self.rank]

    def _batches(self) -> Iterator[tuple[Batch, int, list[Range]]]:
        """Each batch with the position after it."""
        if self._same:
            every = interleaved(self._next, self._order.rows, self.rank, self.ranks, self._batch)
            for rows, after in every:
                yield self._read([rows]), after, self._ranges
            return
        rest = self._ranges
        while rest:
            head, rest = take(rest, self._batch)
            yield self._read(head), self._next, rest

    def _read(self, ranges: list[Range]) -> Batch:
        tables = [self._files.read(self._order, window, rows) for window, rows in self._order.pieces(ranges)]
        return to_batch(pa.concat_tables(tables), pin=self._pin)


def _read_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The items of an iterator that a thread computes ahead, at most READ_AHEAD of them."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(READ_AHEAD)
    stop = threading.Event()

    def put(kind: str, item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in batches:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001 - raised again in the loop that reads the batches
            put("error", error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        stop.set()
        thread.join()
