"""The order of the rows of a data set in one epoch, and its division among ranks. Pure: no input or output.

All ranks know the same sequence of all rows. It consists of windows: some row groups whose rows are shuffled
together. A rank's share is a list of ranges of this sequence, so the position of a rank, in a checkpoint too,
is the list of ranges that it has not read yet, and another number of ranks can divide what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Range = tuple[int, int]
"""Half-open range of positions in the sequence of an epoch."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file."""

    file: int
    group: int
    rows: int


@dataclass(frozen=True)
class Window:
    """Row groups whose rows are shuffled together; `start` is its first position in the sequence."""

    index: int
    start: int
    rows: int
    groups: tuple[RowGroup, ...]


class EpochOrder:
    """The sequence of all rows in one epoch; it is the same for every number of ranks."""

    def __init__(
        self, groups: Sequence[RowGroup], seed: int, epoch: int, window_rows: int, *, shuffle: bool
    ) -> None:
        """A window has as few row groups as give it at least `window_rows` rows."""
        self._seed = (seed, epoch) if shuffle else None
        order = self._random(0).permutation(len(groups)) if shuffle else np.arange(len(groups))
        self.windows: list[Window] = []
        start = rows = 0
        members: list[RowGroup] = []
        for position, number in enumerate(order):
            members.append(groups[number])
            rows += groups[number].rows
            if rows >= window_rows or position == len(order) - 1:
                self.windows.append(Window(len(self.windows), start, rows, tuple(members)))
                start, rows, members = start + rows, 0, []
        self.rows = start

    def permutation(self, window: Window) -> npt.NDArray[np.int64]:
        """Position in the sequence → row of the window, both relative to the window."""
        if self._seed is None:
            return np.arange(window.rows)
        return self._random(window.index + 1).permutation(window.rows)

    def pieces(self, ranges: Sequence[Range]) -> Iterator[tuple[Window, Range]]:
        """The windows that the ranges touch, in order, each with the range relative to the window."""
        starts = np.array([window.start for window in self.windows])
        for begin, end in ranges:
            while begin < end:
                window = self.windows[int(np.searchsorted(starts, begin, side="right")) - 1]
                stop = min(end, window.start + window.rows)
                yield window, (begin - window.start, stop - window.start)
                begin = stop

    def _random(self, stream: int) -> np.random.Generator:
        assert self._seed is not None
        return np.random.default_rng([*self._seed, stream])


def deal(ranges: Sequence[Range], ranks: int) -> list[list[Range]]:
    """Divide ranges into `ranks` shares of equally many rows, in order.

    The last rows, fewer than `ranks`, belong to no share: every rank must do equally many steps.
    """
    share = sum(end - begin for begin, end in ranges) // ranks
    rest = list(ranges)
    shares = []
    for _ in range(ranks):
        head, rest = take(rest, share)
        shares.append(head)
    return shares


def take(ranges: Sequence[Range], rows: int) -> tuple[list[Range], list[Range]]:
    """The first `rows` rows of the ranges, and the rest."""
    head: list[Range] = []
    rest = list(ranges)
    while rows > 0 and rest:
        begin, end = rest.pop(0)
        stop = min(end, begin + rows)
        if stop > begin:
            head.append((begin, stop))
        if stop < end:
            rest.insert(0, (stop, end))
        rows -= stop - begin
    return head, rest


def interleaved(start: int, rows: int, rank: int, ranks: int, batch: int) -> Iterator[tuple[Range, int]]:
    """This rank's range of each global batch of `batch` × `ranks` rows, and the position after that batch.

    The rows of a global batch are the same for every number of ranks. Rows that cannot be divided equally are
    left out at the end.
    """
    while start < rows:
        own = min(batch, (rows - start) // ranks)
        if own == 0:
            return
        yield (start + rank * own, start + (rank + 1) * own), start + own * ranks
        start += own * ranks
