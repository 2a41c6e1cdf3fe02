"""Joining the features of one batch or stream view to a spine: which rows to read, and the join itself."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from flywheel_feature.definitions.frame_types import converted
from flywheel_feature.definitions.model import BatchView, Entity, Source, StreamView, View
from flywheel_feature.definitions.ttl import earliest_fresh
from flywheel_feature.expressions.sql import CompiledExpressions, compile_predicate
from flywheel_feature.offline.joins.applied_windows import Stream, applied_features
from flywheel_feature.offline.joins.point_in_time import MATCHED_TIME, as_of_join, latest_join, latest_rows
from flywheel_feature.offline.joins.windows import WindowFeature, windowed_features
from flywheel_feature.offline.model import JoinMode
from flywheel_feature.tables.sources import ARRIVED, EVENT_ID, OFFSET, PARTITION
from flywheel_feature.windows.lateness import LATE_EVENTS, late_rows


@dataclass(frozen=True, slots=True)
class StoredView:
    """A batch or stream view, and the features that are read from it."""

    view: View
    entity: Entity
    source: Source
    wanted: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        return [k.name for k in self.entity.join_keys]

    @property
    def fields(self) -> list[str]:
        """Fields of the source that the join needs."""
        kind = self.view.kind
        if isinstance(kind, BatchView):
            used = [f.field or f.name for f in kind.features if f.name in self.wanted]
        else:
            assert isinstance(kind, StreamView)
            predicate = self.predicate
            used = [a.field for a in kind.aggregations if a.field and a.name in self.wanted]
            used += predicate.input_columns if predicate else ()
        created = [self.source.created_field] if self.source.created_field else []
        return list(dict.fromkeys([*self.keys, *used, *created, self.source.timestamp_field]))

    @property
    def predicate(self) -> CompiledExpressions | None:
        kind = self.view.kind
        if not isinstance(kind, StreamView) or not kind.filter:
            return None
        return compile_predicate(kind.filter, {f.name: f.data_type for f in self.source.schema})

    @property
    def pushed_to(self) -> View | None:
        """The view whose pushed rows count together with the rows of its source; None for a stream view."""
        return self.view if isinstance(self.view.kind, BatchView) else None

    @property
    def windows(self) -> list[WindowFeature]:
        kind = self.view.kind
        assert isinstance(kind, StreamView)
        kinds = {f.name: f.data_type for f in self.view.features}
        return [
            WindowFeature(a.name, a.function, a.field, a.window, kinds[a.name], a.limit)
            for a in kind.aggregations
            if a.name in self.wanted
        ]

    def between(
        self, earliest: int | None, latest: int | None, mode: JoinMode
    ) -> tuple[int | None, int | None]:
        """The event times low <= t < high to read for spine times `earliest` to `latest`; microseconds."""
        if mode == JoinMode.NAIVE_LATEST or earliest is None or latest is None:
            return None, None
        # A stream view reads all earlier events: an entity with any event has COUNT 0, not null, outside its
        # windows.
        low = earliest_fresh(earliest, self.view.ttl) if isinstance(self.view.kind, BatchView) else None
        return low, latest + 1

    def kept(self, rows: pl.DataFrame, late: dict[str, int] | None = None) -> pl.DataFrame:
        """The rows that pass the filter of the view and are not late; `late` counts the others by view."""
        predicate = self.predicate
        if predicate is not None:
            rows = rows.filter(predicate.evaluate(rows).to_series().fill_null(False))
        if not self.source.allowed_lateness:
            return rows
        on_time = rows.filter(~late_rows(self.source, ARRIVED))
        left_out = rows.height - on_time.height
        LATE_EVENTS.labels(self.source.id, self.view.id, "offline").inc(left_out)
        if late is not None and left_out:
            late[self.view.name] = late.get(self.view.name, 0) + left_out
        return on_time

    def join(self, spine: pl.DataFrame, spine_time: str, mode: JoinMode, rows: pl.DataFrame) -> pl.DataFrame:
        """One column per wanted feature, rows as in `spine`; `rows` come from `kept`, in source order."""
        if isinstance(self.view.kind, BatchView):
            return _join_batch(self, self.view.kind, spine, spine_time, mode, rows)
        assert isinstance(self.view.kind, StreamView)
        return _join_stream(self, self.view.kind, spine, spine_time, mode, rows)

    def join_applied(
        self, spine: pl.DataFrame, spine_time: str, applied: pl.Series, events: pl.DataFrame
    ) -> pl.DataFrame:
        """As `join`, from exactly the events that `applied` names; `events` have `PARTITION` and `OFFSET`."""
        source, kind = self.source, self.view.kind
        assert isinstance(kind, StreamView)
        stream = Stream(
            events,
            self.keys,
            source.timestamp_field,
            source.created_field or None,
            EVENT_ID,
            PARTITION,
            OFFSET,
        )
        return applied_features(
            spine,
            applied,
            stream,
            spine_time=spine_time,
            tile=kind.tile,
            ttl=self.view.ttl,
            features=self.windows,
        )


def _join_batch(
    stored: StoredView,
    kind: BatchView,
    spine: pl.DataFrame,
    spine_time: str,
    mode: JoinMode,
    rows: pl.DataFrame,
) -> pl.DataFrame:
    source = stored.source
    fields = {f.name: f for f in kind.features if f.name in stored.wanted}
    rows = rows.with_columns(
        converted(rows, f.field or f.name, f.data_type, f.vector_size).alias(_column(name))
        for name, f in fields.items()
    )
    columns = {_column(name): name for name in fields}
    created = source.created_field or None
    if mode == JoinMode.NAIVE_LATEST:
        return latest_join(
            spine,
            rows,
            keys=stored.keys,
            event_time=source.timestamp_field,
            created_time=created,
            columns=columns,
        )
    return as_of_join(
        spine,
        rows,
        keys=stored.keys,
        spine_time=spine_time,
        event_time=source.timestamp_field,
        created_time=created,
        ttl=stored.view.ttl,
        columns=columns,
    )


def _join_stream(
    stored: StoredView,
    kind: StreamView,
    spine: pl.DataFrame,
    spine_time: str,
    mode: JoinMode,
    events: pl.DataFrame,
) -> pl.DataFrame:
    view, source = stored.view, stored.source
    features = stored.windows
    if mode == JoinMode.POINT_IN_TIME:
        return windowed_features(
            spine,
            events,
            keys=stored.keys,
            spine_time=spine_time,
            event_time=source.timestamp_field,
            created_time=source.created_field or None,
            event_id=EVENT_ID,
            tile=kind.tile,
            ttl=view.ttl,
            features=features,
        )
    # NAIVE_LATEST: every spine row gets the values as of the last event of its entity.
    newest = latest_rows(events, keys=stored.keys, event_time=source.timestamp_field).select(
        *stored.keys, source.timestamp_field
    )
    values = windowed_features(
        newest,
        events,
        keys=stored.keys,
        spine_time=source.timestamp_field,
        event_time=source.timestamp_field,
        event_id=EVENT_ID,
        tile=kind.tile,
        features=features,
    )
    table = newest.select(stored.keys).hstack(values.drop(MATCHED_TIME))
    return (
        spine.select(stored.keys)
        .join(table, on=stored.keys, how="left", maintain_order="left")
        .drop(stored.keys)
    )


def _column(feature: str) -> str:
    return f"__feature_{feature}"
