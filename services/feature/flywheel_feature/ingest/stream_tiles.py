"""Applies events of a source to the tiles of every view that reads it; each counts once per view and entity.

Four rules guarantee this under crashes and rebalances:

- A row whose id was first seen at another place is a duplicate, wherever the stream is read from.
- The state of an entity holds, per partition, the offset up to which it has applied the events.
- The position of a view moves after its states, and only from the value that this process knows. When Redis
  lost data or another process took the partition, the move fails, and this process starts again from the
  stored position.
- Every state belongs to a generation of the contents of Redis. A state that was written after Redis lost its
  data lacks earlier events; it is absent in the next generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_feature.definitions.model import Field, Source, StreamView, VersionRef, View
from flywheel_feature.definitions.ttl import state_lifetime_ms
from flywheel_feature.encoding.frames import to_frame
from flywheel_feature.encoding.keys import entity_keys, key_prefix
from flywheel_feature.expressions.sql import compile_predicate
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.tile_store import Position, PositionLost, TileStore, position_field
from flywheel_feature.windows import hyperloglog
from flywheel_feature.windows.lateness import LATE_EVENTS
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_writing import Events, partials


class ViewTiles:
    """Applies rows to the tiles of one stream view version."""

    def __init__(self, view: View, keys: tuple[Field, ...], schema: tuple[Field, ...]) -> None:
        assert isinstance(view.kind, StreamView)
        self.view = view
        self.layout = TileLayout(view.kind.aggregations, view.kind.tile, [f.data_type for f in view.features])
        self._keys = keys
        self._prefix = key_prefix(view)
        self._filter = (
            compile_predicate(view.kind.filter, {f.name: int(f.data_type) for f in schema})
            if view.kind.filter
            else None
        )
        self._filter_fields = [
            f for f in schema if self._filter is not None and f.name in self._filter.input_columns
        ]
        self.lifetime_ms = state_lifetime_ms(self.layout.kept_tiles * self.layout.tile, view.ttl)

    async def apply(self, rows: SourceRows, store: TileStore, generation: int) -> None:
        """Merge the events that the states have not applied yet.

        It may be repeated with the same or other batches of the partition. Raises PositionLost.
        """
        counted = self._counted(rows)
        late = rows.late()
        if late is not None and (left_out := counted & late).any():
            LATE_EVENTS.labels(rows.source.id, self.view.id, "online").inc(int(left_out.sum()))
            counted &= ~late
        if not counted.any():
            return
        chosen = rows if counted.all() else rows.take(counted)
        names = entity_keys([(k.data_type, chosen.columns[k.name][0].tolist()) for k in self._keys])
        codes: dict[bytes, int] = {}
        code = np.fromiter((codes.setdefault(n, len(codes)) for n in names), np.int64, len(names))
        event, known = chosen.times()
        values = {f: _as_floats(*chosen.columns[f]) for f in self.layout.fields}
        observed = {f: hyperloglog.observations(chosen.columns[f][0]) for f in self.layout.sketches}
        texts = {f: _as_bytes(*chosen.columns[f]) for f in self.layout.texts}
        values.update({f: (_lengths(t), chosen.columns[f][1]) for f, t in texts.items()})
        bits = {f: _as_bits(*chosen.columns[f]) for f in self.layout.bits}
        events = Events(code, event, known, rows.ranks[counted], values, observed, texts, bits)
        await self._merge(events, chosen.offset, list(codes), rows.partition, store, generation)

    async def _merge(
        self,
        events: Events,
        offset: Ints,
        names: list[bytes],
        partition: int,
        store: TileStore,
        generation: int,
    ) -> None:
        while events.code.size:
            order = np.argsort(events.code, kind="stable")
            codes, starts = np.unique(events.code[order], return_index=True)
            first = np.minimum.reduceat(offset[order], starts)
            following = np.maximum.reduceat(offset[order], starts) + 1
            deltas = partials(self.layout, events)
            calls = [
                (self._prefix + names[c], deltas[c], f, n)
                for c, f, n in zip(codes.tolist(), first.tolist(), following.tolist(), strict=True)
            ]
            applied = np.array(
                await store.merge_tiles(self.layout, calls, partition, self.lifetime_ms, generation), np.int64
            )
            if (applied < 0).any():
                raise PositionLost
            # A state that had applied a part of its events returns where the others begin: merge only those.
            begin = np.zeros(len(names), np.int64)
            begin[codes] = np.where(applied >= following, np.iinfo(np.int64).max, applied)
            left = offset >= begin[events.code]
            events, offset = events.take(left), offset[left]

    def _counted(self, rows: SourceRows) -> Mask:
        """Rows with all join keys that pass the filter."""
        counted: Mask = np.ones(len(rows.event_ids), np.bool_)
        for key in self._keys:
            counted &= rows.columns[key.name][1]
        if self._filter is not None:
            frame = to_frame(self._filter_fields, rows.columns, len(rows.event_ids))
            passed = self._filter.evaluate(frame).to_series().fill_null(False)
            counted &= passed.to_numpy().astype(np.bool_)
        return counted


def _as_floats(values: npt.NDArray[Any], valid: Mask) -> tuple[Floats, Mask]:
    if values.dtype == object or values.ndim > 1:
        # Only the presence of these values is counted.
        return np.zeros(len(values)), valid
    return np.where(valid, values, values.dtype.type(0)).astype(np.float64), valid


def _as_bits(values: npt.NDArray[Any], valid: Mask) -> Floats:
    """Integers viewed as doubles with the same bytes."""
    return np.where(valid, values, 0).astype("<i8").view("<f8")


def _as_bytes(values: npt.NDArray[Any], valid: Mask) -> npt.NDArray[Any]:
    found = np.full(len(values), b"", dtype=object)
    for i in np.flatnonzero(valid).tolist():
        found[i] = values[i].encode() if isinstance(values[i], str) else bytes(values[i])
    return found


def _lengths(texts: npt.NDArray[Any]) -> Floats:
    return np.fromiter(map(len, texts), np.float64, len(texts))


class SourceTiles:
    """All live views of a source, and their positions as this process stored them."""

    def __init__(self, store: TileStore) -> None:
        self._store = store
        self._views: dict[tuple[str, VersionRef], ViewTiles] = {}
        self._positions: dict[tuple[str, str], str] = {}
        self._generations: dict[tuple[str, int], int] = {}

    def views(
        self, source: Source, views: Sequence[View], join_keys: Mapping[str, tuple[Field, ...]]
    ) -> list[ViewTiles]:
        """The ViewTiles of these views, made once per view version."""
        found: list[ViewTiles] = []
        for view in views:
            key = source.project, view.ref
            if key not in self._views:
                self._views[key] = ViewTiles(view, join_keys[view.entity], source.schema)
            found.append(self._views[key])
        return found

    async def load(self, source: Source, partition: int, views: Sequence[View], generation: int) -> int:
        """Load the stored positions of a partition in a generation.

        Returns the lowest offset from which a view needs events, -1 without any view.
        """
        stored = await self._store.take_positions(source.project, source.id, generation)
        self._generations[source.name, partition] = generation
        begin: list[int] = []
        for view in views:
            field = position_field(view.ref, partition)
            text = stored.get(field, "")
            self._positions[source.name, field] = text
            begin.append(Position.parse(text).next_offset if text else 0)
        return min(begin, default=-1)

    def generation(self, source: Source, partition: int) -> int:
        """The generation in which the positions of a partition were loaded; 0 if they never were."""
        return self._generations.get((source.name, partition), 0)

    async def apply(self, rows: SourceRows, views: Sequence[ViewTiles]) -> None:
        """Apply rows to every view and move the positions. Raises PositionLost."""
        source, moves = rows.source, {}
        generation = self.generation(source, rows.partition)
        newest = int(rows.times()[0].max()) if len(rows.event_ids) else 0
        for view in views:
            field = position_field(view.view.ref, rows.partition)
            old = self._positions.get((source.name, field), "")
            position = Position.parse(old) if old else Position(0)
            if position.next_offset >= rows.next_offset:
                continue
            fresh = rows.offset >= position.next_offset
            if fresh.any():
                await view.apply(rows if fresh.all() else rows.take(fresh), self._store, generation)
            moves[field] = old, str(Position(rows.next_offset, max(newest, position.watermark)))
        if not moves:
            return
        moved = await self._store.advance(source.project, source.id, moves, generation)
        if not all(moved):
            raise PositionLost
        for field, (_, new) in moves.items():
            self._positions[source.name, field] = new
