"""Joins of several views, in memory and in partitions, against an oracle that visits every row for every
spine row.

The views have different keys: one has two columns, created times and a TTL; one has a single column; one has
windows over a stream whose events are late, out of order and repeated.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_common.clock import SystemClock
from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Feature,
    FeatureSet,
    Field,
    ParquetSource,
    Source,
    StreamSource,
    StreamView,
    VersionRef,
    View,
)
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.partitions import MemoryPartitions
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import Compute, FileSpine, TrainingSetRequest
from flywheel_feature.offline.partitioned.build import RAY, JoinLimits
from flywheel_feature.offline.ports import PartitionEngine
from flywheel_feature.tables.errors import CorruptTable, ObjectStoreDown
from flywheel_feature.tables.ports import Segment
from tests.support.builders.feature_units import MINUTE, UTC_MICROSECONDS, at
from tests.support.builders.jobs import RecordingJob

TILE, WINDOW, TTL = 3, 6, 4
D = DataType
KEY = (Field("carrier", D.STRING), Field("flight", D.INT64))


def definitions() -> Catalog:
    time, created, value = Field("t", D.TIMESTAMP), Field("c", D.TIMESTAMP), Field("v", D.FLOAT64)
    seats = Field("seats", D.INT64)
    sources = [
        Source("p", "pairs", (*KEY, time, created, value), "t", "c", ParquetSource("s3://inputs/pairs/")),
        Source("p", "singles", (KEY[0], time, seats), "t", "", ParquetSource("s3://inputs/singles/")),
        Source("p", "stream", (KEY[0], time, created, seats), "t", "c", StreamSource()),
    ]
    v, s = Feature("v", D.FLOAT64, field="v"), Feature("seats", D.INT64, field="seats")
    windows = (
        Aggregation("n", AggregationFunction.COUNT, "", WINDOW * MINUTE),
        Aggregation("total", AggregationFunction.SUM, "seats", WINDOW * MINUTE),
        Aggregation("last", AggregationFunction.LAST, "seats", WINDOW * MINUTE),
    )
    numbers = tuple(Feature(a.name, D.INT64) for a in windows)
    stream_kind = StreamView("stream", windows, tile=TILE * MINUTE)
    views = [
        View("p", "pairs", "pair", BatchView("pairs", (v,)), ttl=TTL * MINUTE, version=1, features=(v,)),
        View("p", "singles", "carrier", BatchView("singles", (s,)), version=1, features=(s,)),
        View("p", "windows", "carrier", stream_kind, version=1, features=numbers),
    ]
    schema = [Field(f"{view.id}__{f.name}", f.data_type) for view in views for f in view.features]
    features = tuple(f.name.replace("__", ":") for f in schema)
    wanted = FeatureSet(
        "p",
        "set",
        features,
        version=1,
        views=tuple(x.ref for x in views),
        schema=tuple(schema),
        join_keys=KEY,
    )
    return Catalog(
        "p",
        entities={"pair": Entity("p", "pair", KEY), "carrier": Entity("p", "carrier", KEY[:1])},
        sources={x.id: x for x in sources},
        views={x.ref: x for x in views},
        feature_sets={VersionRef("set", 1): wanted},
        latest_views={x.id: x for x in views},
        latest_feature_sets={"set": wanted},
    )


def latest_value(spine: Any, rows: Sequence[tuple[Any, int, int | None, Any]], ttl: int | None) -> Any:
    """The value of the row (key, event, created, value) that is latest by event, created and place."""
    key, t = spine
    found = [
        (event, event if created is None else created, place, value)
        for place, (row_key, event, created, value) in enumerate(rows)
        if row_key == key
        and None not in (key, event)
        and None not in _parts(key)
        and event <= t
        and (created is None or created <= t)
    ]
    if not found or (ttl is not None and t - max(found)[0] > ttl):
        return None
    return max(found, key=lambda r: r[:3])[3]


def _parts(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def window_values(carrier: str | None, t: int, events: list[Any]) -> tuple[Any, Any, Any]:
    seen = [
        e for e in events if carrier is not None and e[0] == carrier and e[1] <= t and (e[2] or e[1]) <= t
    ]
    if not seen:
        return None, None, None
    first = (t - WINDOW) // TILE + 1
    inside = sorted((e for e in seen if e[1] // TILE >= first), key=lambda e: (e[1], max(e[1], e[2] or e[1])))
    values = [e[3] for e in inside if e[3] is not None]
    return len(inside), sum(values) if values else None, values[-1] if values else None


carriers = st.sampled_from(["AA", "UA", "", None])
minutes = st.integers(0, 8)
late = st.one_of(st.none(), st.integers(0, 16))
numbers = st.one_of(st.none(), st.integers(-50, 50))
extras = {"weight": pl.Float64, "words": pl.List(pl.String), "vector": pl.Array(pl.Float32, 2)}
spines = st.lists(
    st.tuples(
        carriers,
        st.sampled_from([1, 2, None]),
        minutes,
        st.sampled_from([None, 0.0, 0.5]),
        st.sampled_from([None, [], ["a"], ["a", ""]]),
        st.sampled_from([None, [1.0, -0.5]]),
    ),
    min_size=4,
    max_size=20,
)
sizes = {"min_size": 12, "max_size": 40}
pairs = st.one_of(
    st.just([]),
    st.lists(st.tuples(carriers, st.sampled_from([1, 2, None]), minutes, late, st.floats(-9, 9)), **sizes),
)
singles = st.one_of(st.just([]), st.lists(st.tuples(carriers, minutes, numbers), **sizes))
# One event per carrier and minute: other tests cover LAST among equal times.
streams = st.lists(
    st.tuples(st.sampled_from(["AA", "UA"]), minutes, late, numbers),
    max_size=40,
    unique_by=lambda e: (e[0], e[1]),
)


def frame(rows: Sequence[tuple[Any, ...]], **types: Any) -> pl.DataFrame:
    """Rows as a frame; minutes become times in columns of times."""
    columns = {
        name: [at(r[i]) if dtype == UTC_MICROSECONDS else r[i] for r in rows]
        for i, (name, dtype) in enumerate(types.items())
    }
    return pl.DataFrame(columns, schema=types)


def write_files(tables: MemoryTables, prefix: str, whole: pl.DataFrame, files: int) -> None:
    size = -(-max(whole.height, 1) // files)
    for i in range(files):
        tables.write(f"{prefix}{i}.parquet", whole.slice(i * size, size))


@settings(max_examples=40, deadline=None)
@given(
    spine=spines,
    pair_rows=pairs,
    single_rows=singles,
    events=streams,
    files=st.integers(1, 3),
    memory=st.sampled_from([6_000, 12_000, 50_000]),
)
def test_joins_in_memory_and_in_partitions_equal_the_oracle(
    spine: list[Any], pair_rows: list[Any], single_rows: list[Any], events: list[Any], files: int, memory: int
) -> None:
    tables, archive = MemoryTables(), MemoryArchive()
    carrier: dict[str, Any] = {"carrier": pl.String}
    write_files(
        tables,
        "s3://inputs/spine/",
        frame(spine, **carrier, flight=pl.Int64, t=UTC_MICROSECONDS, **extras),
        files,
    )
    pair_types = {
        **carrier,
        "flight": pl.Int64,
        "t": UTC_MICROSECONDS,
        "c": UTC_MICROSECONDS,
        "v": pl.Float64,
    }
    write_files(tables, "s3://inputs/pairs/", frame(pair_rows, **pair_types), files)
    write_files(
        tables,
        "s3://inputs/singles/",
        frame(single_rows, **carrier, t=UTC_MICROSECONDS, seats=pl.Int64),
        files,
    )
    _archive(tables, archive, events, files)

    async def catalogs(_: str) -> Catalog:
        return definitions()

    def builder(*engines: PartitionEngine) -> TrainingSetBuilder:
        return TrainingSetBuilder(
            catalogs=catalogs,
            tables=tables,
            archive=archive,
            training_sets=MemoryTrainingSets(),
            clock=SystemClock(),
            engines=engines,
            limits=JoinLimits(memory),
        )

    wanted = TrainingSetRequest("p", "one", "set", 0, FileSpine("s3://inputs/spine/", "t"))
    whole = asyncio.run(builder().build(wanted, RecordingJob()))
    keyed_pairs = [((a, b), e, k, v) for a, b, e, k, v in pair_rows]
    keyed_singles = [(a, e, None, v) for a, e, v in single_rows]
    expected = [
        (
            c,
            f,
            at(t),
            *own,
            latest_value(((c, f), t), keyed_pairs, TTL),
            latest_value((c, t), keyed_singles, None),
            *window_values(c, t, events),
        )
        for c, f, t, *own in spine
    ]
    columns = [f.name for f in whole.schema]
    answered = tables.read(whole.uri, columns)
    assert ["carrier", "flight", "event_timestamp", *extras] == columns[:6]
    assert expected == answered.rows()
    assert tuple(extras) == whole.extra_columns
    assert not {*extras} & {p.name for p in whole.profile}
    on_ray = dataclasses.replace(wanted, compute=Compute.RAY)
    parts = asyncio.run(builder(MemoryPartitions(tables, RAY)).build(on_ray, RecordingJob()))
    assert parts.uri.endswith("/feature-p-one/parts/"), "it was joined in memory"
    assert whole.content_hash == parts.content_hash
    assert whole.profile == parts.profile
    assert whole.extra_columns == parts.extra_columns
    assert answered.equals(tables.read(parts.uri, columns))


def _archive(tables: MemoryTables, archive: MemoryArchive, events: list[Any], files: int) -> None:
    """Archive the events in segments; the first segment is archived twice."""
    types = {"carrier": pl.String, "t": UTC_MICROSECONDS, "c": UTC_MICROSECONDS, "seats": pl.Int64}
    whole = frame(events, **types).with_columns(
        __event_id=pl.format("e{}", pl.int_range(pl.len())),
        __partition=pl.lit(0, pl.Int32),
        __offset=pl.int_range(pl.len(), dtype=pl.Int64),
    )
    size = -(-max(whole.height, 1) // files)
    for number, i in enumerate([*range(files), 0]):
        part = whole.slice(i * size, size)
        if part.height:
            uri = f"s3://memory/archive/{number}.parquet"
            tables.write(uri, part)
            times = part.get_column("t").dt.epoch("us")
            low, high = times.min(), times.max()
            assert isinstance(low, int)
            assert isinstance(high, int)
            archive.add(
                "p", "stream", Segment(uri, 0, i * size, i * size + part.height, low, high, part.height), {}
            )


class FailingTables(MemoryTables):
    """Reading written parts fails while `error` is set."""

    error: FlywheelError | None = None

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        if self.error is not None and "training-sets" in uris[0]:
            raise self.error
        return super().read_files(uris, columns)

    def parts(self) -> list[str]:
        return self.older_than("s3://memory/training-sets/", -60)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        # No retry follows.
        (CorruptTable("A part is corrupt."), 0),
        # A retry reuses the written part.
        (ObjectStoreDown("The object store does not answer."), 1),
    ],
    ids=["for good", "for now"],
)
async def test_only_a_retryable_failure_keeps_partition_files(error: FlywheelError, left: int) -> None:
    tables = FailingTables()
    carrier: dict[str, Any] = {"carrier": pl.String}
    write_files(
        tables, "s3://inputs/spine/", frame([("AA", 1, 7)], **carrier, flight=pl.Int64, t=UTC_MICROSECONDS), 1
    )
    pair = frame(
        [("AA", 1, 5, 5, 2.5)],
        **carrier,
        flight=pl.Int64,
        t=UTC_MICROSECONDS,
        c=UTC_MICROSECONDS,
        v=pl.Float64,
    )
    write_files(tables, "s3://inputs/pairs/", pair, 1)
    write_files(
        tables,
        "s3://inputs/singles/",
        frame([("AA", 6, 3)], **carrier, t=UTC_MICROSECONDS, seats=pl.Int64),
        1,
    )

    async def catalogs(_: str) -> Catalog:
        return definitions()

    registered = MemoryTrainingSets()
    builder = TrainingSetBuilder(
        catalogs=catalogs,
        tables=tables,
        archive=MemoryArchive(),
        training_sets=registered,
        clock=SystemClock(),
        engines=[MemoryPartitions(tables, RAY)],
        limits=JoinLimits(10_000),
    )
    wanted = TrainingSetRequest(
        "p", "one", "set", 0, FileSpine("s3://inputs/spine/", "t"), compute=Compute.RAY
    )
    tables.error = error
    with pytest.raises(FlywheelError) as raised:
        await builder.build(wanted, RecordingJob(), "job")
    assert (error.code, error.reason) == (raised.value.code, raised.value.reason)
    assert left == len(tables.parts())
    assert await registered.get("p", "one") is None
    tables.error = None
    built = await builder.build(wanted, RecordingJob(), "job")
    assert [f"{built.uri}part-00000.parquet"] == tables.parts()
    assert [(2.5, 3)] == tables.read(built.uri, ["pairs__v", "singles__seats"]).rows()
