"""Views, sources and events for training sets whose expected rows are written out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from flywheel_common.clock import SystemClock
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    DAY,
    HOUR,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Expression,
    Feature,
    FeatureSet,
    Field,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamSource,
    StreamView,
    VersionRef,
    View,
)
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import JoinMode, SourceSpine, TrainingSetRequest
from flywheel_feature.offline.skew import SkewCheck
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.tables.ports import Segment

START = datetime(2013, 1, 1, tzinfo=UTC)
UTC_US = pl.Datetime("us", "UTC")
D = DataType


def at(hours: float) -> datetime:
    """The time so many hours after START."""
    return START + timedelta(hours=hours)


def micros(hours: float) -> int:
    return round(at(hours).timestamp()) * 1_000_000


LANDINGS = [
    # origin, landed, scheduled, distance, delay
    ("JFK", 10.0, 8.0, 2000, 30.0),
    ("JFK", 11.5, 9.0, 500, 0.0),
    ("JFK", 12.5, 11.75, 700, None),
    ("LGA", 13.0, 12.0, 300, 45.0),
    ("JFK", 14.0, 12.25, 1500, 10.0),
    ("JFK", 14.5, 12.25, 0, 999.0),
]
WEATHER = [
    # origin, hour, written, wind
    ("JFK", 8.0, 8.0, 1.0),
    ("JFK", 9.0, 9.0, 2.0),
    ("JFK", 11.0, 12.0, 4.0),
    ("JFK", 11.0, 13.0, 5.0),
    ("LGA", 8.0, 8.0, 7.0),
]
EXPECTED = [
    # origin, event_timestamp, distance, wind, mean_delay, flights, headwind, far, label
    ("JFK", 8.0, 2000, 1.0, None, None, 2000.0, "far", 1.0),
    ("JFK", 9.0, 500, 2.0, None, None, 1000.0, "near", 0.0),
    ("LGA", 12.0, 300, None, None, None, None, "near", 1.0),
    ("JFK", 12.25, 0, 4.0, 15.0, 2, 15.0, "near", 1.0),
    ("JFK", 12.25, 1500, 4.0, 15.0, 2, 6015.0, "far", 0.0),
]
"""The rows of the training set of `request()`."""
COLUMNS = [
    *("origin", "event_timestamp", "distance", "weather__wind", "traffic__mean_delay"),
    *("traffic__flights", "computed__headwind", "computed__far", "label"),
]


def sources(bucket: str) -> list[Source]:
    weather = (
        Field("origin", D.STRING),
        Field("hour", D.TIMESTAMP),
        Field("written", D.TIMESTAMP),
        Field("wind", D.FLOAT64),
    )
    landings = (
        Field("origin", D.STRING),
        Field("landed", D.TIMESTAMP),
        Field("scheduled", D.TIMESTAMP),
        Field("distance", D.INT64),
        Field("delay", D.FLOAT64),
    )
    return [
        Source("p", "weather", weather, "hour", "written", ParquetSource(f"s3://{bucket}/weather/")),
        Source("p", "landings", landings, "landed", "", StreamSource()),
        Source("p", "request", (Field("distance", D.INT64),), "", "", RequestSource()),
    ]


def views() -> list[View]:
    """A batch view with a TTL of three hours, a stream view and an on-demand view that reads both."""
    wind = Feature("wind", D.FLOAT64, field="wind")
    windows = (
        Aggregation("mean_delay", AggregationFunction.MEAN, "delay", DAY),
        Aggregation("flights", AggregationFunction.COUNT, "", DAY),
    )
    headwind, far = Feature("headwind", D.FLOAT32), Feature("far", D.STRING)
    expressions = (
        Expression(headwind, "weather__wind * distance + COALESCE(traffic__mean_delay, 0)"),
        Expression(far, "CASE WHEN distance > 1000 THEN 'far' ELSE 'near' END"),
    )
    return [
        View(
            "p", "weather", "origin", BatchView("weather", (wind,)), ttl=3 * HOUR, version=1, features=(wind,)
        ),
        View(
            "p",
            "traffic",
            "origin",
            StreamView("landings", windows, filter="distance > 0", tile=HOUR),
            version=1,
            features=(Feature("mean_delay", D.FLOAT64), Feature("flights", D.INT64)),
        ),
        View(
            "p",
            "computed",
            "",
            OnDemandView(("weather", "traffic"), ("request",), expressions),
            version=1,
            features=(headwind, far),
            inputs=(VersionRef("weather", 1), VersionRef("traffic", 1)),
        ),
    ]


def definitions(bucket: str) -> Catalog:
    """The catalog of these sources and views, with the feature set `flights` of all features."""
    known = {v.id: v for v in views()}
    schema = (
        Field("weather__wind", D.FLOAT64),
        Field("traffic__mean_delay", D.FLOAT64),
        Field("traffic__flights", D.INT64),
        Field("computed__headwind", D.FLOAT32),
        Field("computed__far", D.STRING),
    )
    flights = FeatureSet(
        "p",
        "flights",
        tuple(f.name.replace("__", ":") for f in schema),
        version=1,
        views=tuple(v.ref for v in known.values()),
        schema=schema,
        join_keys=(Field("origin", D.STRING),),
        request_fields=(Field("distance", D.INT64),),
    )
    return Catalog(
        "p",
        entities={"origin": Entity("p", "origin", (Field("origin", D.STRING),))},
        sources={s.id: s for s in sources(bucket)},
        views={v.ref: v for v in known.values()},
        feature_sets={VersionRef("flights", 1): flights},
        latest_views=known,
        latest_feature_sets={"flights": flights},
    )


def request(
    training_set_id: str = "winter", mode: JoinMode = JoinMode.POINT_IN_TIME, **spine: Any
) -> TrainingSetRequest:
    """A request for the first day of landings; `spine` changes fields of the spine."""
    fields = {"label": "delay >= 15", "start": micros(0), "end": micros(24), **spine}
    return TrainingSetRequest(
        "p", training_set_id, "flights", 0, SourceSpine("landings", "scheduled", **fields), mode
    )


class TrainingSetInputs:
    """The sources in a bucket, an archive of events, and the use cases over them."""

    def __init__(self, tables: S3Tables, bucket: str) -> None:
        self.tables, self.bucket = tables, bucket
        self.catalog = definitions(bucket)
        self.archive = MemoryArchive()
        self.training_sets = MemoryTrainingSets()

    async def catalogs(self, project: str) -> Catalog:
        assert project == "p"
        return self.catalog

    def builder(self, clock: Any = None, wait: float = 1.0) -> TrainingSetBuilder:
        return TrainingSetBuilder(
            catalogs=self.catalogs,
            tables=self.tables,
            archive=self.archive,
            training_sets=self.training_sets,
            clock=clock or SystemClock(),
            archive_wait_seconds=wait,
        )

    def skew_check(self) -> SkewCheck:
        return SkewCheck(
            catalogs=self.catalogs,
            tables=self.tables,
            archive=self.archive,
            clock=SystemClock(),
            archive_wait_seconds=1.0,
        )

    def write_weather(self, rows: list[Any], *, files: int = 1) -> None:
        """Rows as in WEATHER, spread over files."""
        for i in range(files):
            part = rows[i::files]
            frame = pl.DataFrame(
                {
                    "origin": [r[0] for r in part],
                    "hour": [at(r[1]) for r in part],
                    "written": [at(r[2]) for r in part],
                    "wind": [r[3] for r in part],
                },
                schema={"origin": pl.String, "hour": UTC_US, "written": UTC_US, "wind": pl.Float64},
            )
            self.tables.write(f"s3://{self.bucket}/weather/year=2013/part-{i}.parquet", frame)

    def archive_landings(
        self, rows: list[Any], *, first: int = 0, name: str = "a", ids: list[str] | None = None
    ) -> None:
        """Archive rows as in LANDINGS as one segment whose first event has the offset `first`."""
        frame = pl.DataFrame(
            {
                "origin": [r[0] for r in rows],
                "landed": [at(r[1]) for r in rows],
                "scheduled": [at(r[2]) for r in rows],
                "distance": [r[3] for r in rows],
                "delay": [r[4] for r in rows],
                "__event_id": ids or [f"e{first + i}" for i in range(len(rows))],
                "__event_time": [at(r[1]) for r in rows],
                "__partition": [0] * len(rows),
                "__offset": list(range(first, first + len(rows))),
            },
            schema_overrides={
                **dict.fromkeys(("landed", "scheduled", "__event_time"), UTC_US),
                "__partition": pl.Int32,
                "distance": pl.Int64,
                "delay": pl.Float64,
            },
        )
        uri = f"s3://{self.bucket}/archive/landings/{name}.parquet"
        self.tables.write(uri, frame)
        times = [micros(r[1]) for r in rows]
        end = first + len(rows)
        segment = Segment(uri, 0, first, end, min(times), max(times), len(rows))
        self.archive.add("p", "landings", segment, {0: end})

    def read(self, uri: str) -> pl.DataFrame:
        return self.tables.read(uri, COLUMNS)
