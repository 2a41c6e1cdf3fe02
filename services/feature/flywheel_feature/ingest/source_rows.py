"""Rows of a stream source as arrays, as they go to tiles and archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Ints, Mask
from flywheel_feature.definitions.model import Source
from flywheel_feature.encoding.frames import Columns, take_rows
from flywheel_feature.windows.event_order import event_ranks, known_times
from flywheel_feature.windows.lateness import late_events


@dataclass(frozen=True)
class SourceRows:
    """Rows of one partition of a source, in the order of their offsets."""

    source: Source
    partition: int
    columns: Columns
    event_ids: Sequence[str]
    offset: Ints
    """[n] the offset of each row's record; rows of one record share it."""
    next_offset: int
    """Offset after the last record."""
    arrived: Ints | None = None
    """[n] when Kafka stored each row's record, microseconds, 0: unknown; None: unknown for all."""

    def take(self, rows: npt.NDArray[Any]) -> SourceRows:
        """The rows at `rows` (places or a mask)."""
        columns = take_rows(self.columns, rows)
        ids = [self.event_ids[i] for i in np.arange(len(self.event_ids))[rows].tolist()]
        arrived = None if self.arrived is None else self.arrived[rows]
        return SourceRows(
            self.source, self.partition, columns, ids, self.offset[rows], self.next_offset, arrived
        )

    @cached_property
    def ranks(self) -> Ints:
        """event_order.event_ranks of the ids, computed once for all views and the archive."""
        return event_ranks(self.event_ids)

    def times(self) -> tuple[Ints, Ints]:
        """[n] event times and [n] known times."""
        event = self.columns[self.source.timestamp_field][0].astype(np.int64)
        if not self.source.created_field:
            return event, event
        created, given = self.columns[self.source.created_field]
        return event, known_times(event, created, given)

    def late(self) -> Mask | None:
        """[n] the rows that windows leave out (windows/lateness.py); None: none."""
        allowed = self.source.allowed_lateness
        if not allowed:
            return None
        event = self.columns[self.source.timestamp_field][0].astype(np.int64)
        arrived = np.zeros(len(event), np.int64) if self.arrived is None else self.arrived
        if self.source.created_field:
            created, given = self.columns[self.source.created_field]
            arrived = np.where(given, created, arrived)
        return late_events(event, arrived, allowed)


Part = tuple[Ints, Columns, Sequence[str]]
"""Rows of one or more records: the offset of each row's record, columns, event ids."""


def joined(source: Source, partition: int, parts: Sequence[Part], next_offset: int) -> SourceRows:
    """The rows of several parts together."""
    if len(parts) == 1:
        offsets, columns, ids = parts[0]
        return SourceRows(source, partition, columns, list(ids), offsets, next_offset)
    offsets = np.concatenate([p[0] for p in parts])
    columns = {
        f.name: (
            np.concatenate([p[1][f.name][0] for p in parts]),
            np.concatenate([p[1][f.name][1] for p in parts]),
        )
        for f in source.schema
    }
    return SourceRows(source, partition, columns, [i for p in parts for i in p[2]], offsets, next_offset)
