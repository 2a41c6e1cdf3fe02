"""Views, sources and events for joins in partitions, and the training sets that are built from them."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from flywheel_common.clock import SystemClock
from flywheel_common.ray.jobs import RayJobs
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
from flywheel_feature.offline.model import SourceSpine, TrainingSetRequest
from flywheel_feature.offline.partitioned.build import JoinLimits
from flywheel_feature.offline.ports import PartitionEngine
from flywheel_feature.store.engines.process import PartitionProcess
from flywheel_feature.store.engines.ray import PartitionRay
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.tables.ports import Segment, Tables
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from tests.support.servers.feature import s3_files, s3_tables
from tests.support.servers.join_signing import JoinSigning

D = DataType
UTC_US = pl.Datetime("us", "UTC")
START = 1_357_000_000_000_000
SMALL = JoinLimits(memory_bytes=1_000_000, ray_rows=10**12)
"""Limits below the memory that a few thousand rows need."""
ORIGINS = [f"A{i:02d}" for i in range(40)]
KEY, CARRIER = Field("origin", D.STRING), Field("carrier", D.INT64)


def sources(bucket: str) -> list[Source]:
    """Weather and fleet as tables, landings as a stream, the distance as a request field."""
    weather = (
        KEY,
        Field("hour", D.TIMESTAMP),
        Field("written", D.TIMESTAMP),
        Field("wind", D.FLOAT64),
        Field("tags", D.STRING_LIST),
    )
    fleet = (
        KEY,
        CARRIER,
        Field("day", D.TIMESTAMP),
        Field("planes", D.INT64),
        Field("shape", D.FLOAT32_VECTOR, 2),
    )
    landings = (
        KEY,
        CARRIER,
        Field("landed", D.TIMESTAMP),
        Field("scheduled", D.TIMESTAMP),
        Field("known", D.TIMESTAMP),
        Field("distance", D.INT64),
        Field("delay", D.FLOAT64),
    )
    return [
        Source("p", "weather", weather, "hour", "written", ParquetSource(f"s3://{bucket}/weather/")),
        Source("p", "fleet", fleet, "day", "", ParquetSource(f"s3://{bucket}/fleet/")),
        Source("p", "landings", landings, "landed", "known", StreamSource()),
        Source("p", "request", (Field("distance", D.INT64),), "", "", RequestSource()),
    ]


def views() -> list[View]:
    """Views with TTL, with a key of two columns, with windows, and with an expression."""
    weather = Feature("wind", D.FLOAT64, field="wind"), Feature("tags", D.STRING_LIST, field="tags")
    fleet = Feature("planes", D.INT64, field="planes"), Feature("shape", D.FLOAT32_VECTOR, 2, field="shape")
    windows = (
        Aggregation("mean_delay", AggregationFunction.MEAN, "delay", DAY),
        Aggregation("spread", AggregationFunction.STD, "delay", 7 * DAY),
        Aggregation("flights", AggregationFunction.COUNT, "", DAY),
        Aggregation("recent", AggregationFunction.LAST_N, "delay", DAY, 3),
    )
    traffic = (
        Feature("mean_delay", D.FLOAT64),
        Feature("spread", D.FLOAT64),
        Feature("flights", D.INT64),
        Feature("recent", D.FLOAT64_LIST),
    )
    strain = Expression(
        Feature("strain", D.FLOAT32), "weather__wind * distance + COALESCE(traffic__mean_delay, 0)"
    )
    return [
        View(
            "p",
            "weather",
            "origin",
            BatchView("weather", weather),
            ttl=30 * HOUR,
            version=1,
            features=weather,
        ),
        View("p", "fleet", "pair", BatchView("fleet", fleet), version=1, features=fleet),
        View(
            "p",
            "traffic",
            "origin",
            StreamView("landings", windows, filter="distance > 0", tile=HOUR),
            version=1,
            features=traffic,
        ),
        View(
            "p",
            "computed",
            "",
            OnDemandView(("weather", "traffic"), ("request",), (strain,)),
            version=1,
            features=(strain.feature,),
            inputs=(VersionRef("weather", 1), VersionRef("traffic", 1)),
        ),
    ]


def definitions(bucket: str) -> Catalog:
    """The catalog of these sources and views, with a feature set of all features."""
    known = views()
    schema = (
        Field("weather__wind", D.FLOAT64),
        Field("weather__tags", D.STRING_LIST),
        Field("fleet__planes", D.INT64),
        Field("fleet__shape", D.FLOAT32_VECTOR, 2),
        Field("traffic__mean_delay", D.FLOAT64),
        Field("traffic__spread", D.FLOAT64),
        Field("traffic__flights", D.INT64),
        Field("traffic__recent", D.FLOAT64_LIST),
        Field("computed__strain", D.FLOAT32),
    )
    flights = FeatureSet(
        "p",
        "flights",
        tuple(f.name.replace("__", ":") for f in schema),
        version=1,
        views=tuple(v.ref for v in known),
        schema=schema,
        join_keys=(KEY, CARRIER),
        request_fields=(Field("distance", D.INT64),),
    )
    return Catalog(
        "p",
        entities={"origin": Entity("p", "origin", (KEY,)), "pair": Entity("p", "pair", (KEY, CARRIER))},
        sources={s.id: s for s in sources(bucket)},
        views={v.ref: v for v in known},
        feature_sets={VersionRef("flights", 1): flights},
        latest_views={v.id: v for v in known},
        latest_feature_sets={"flights": flights},
    )


class JoinInputs:
    """The rows and events of the views in tables of a bucket, and builders of training sets over them."""

    def __init__(self, tables: Tables, bucket: str) -> None:
        self.tables, self.bucket = tables, bucket
        self.catalog = definitions(bucket)
        self.archive = MemoryArchive()
        self.training_sets = MemoryTrainingSets()
        self._fill(random.Random(13))

    async def catalogs(self, project: str) -> Catalog:
        return self.catalog

    def builder(self, *engines: PartitionEngine, limits: JoinLimits = SMALL) -> TrainingSetBuilder:
        return TrainingSetBuilder(
            catalogs=self.catalogs,
            tables=self.tables,
            archive=self.archive,
            training_sets=self.training_sets,
            clock=SystemClock(),
            archive_wait_seconds=1.0,
            engines=engines,
            limits=limits,
        )

    def write(self, key: str, rows: list[tuple[Any, ...]], schema: dict[str, Any]) -> None:
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        self.tables.write(f"s3://{self.bucket}/{key}", frame)

    def read(self, uri: str, columns: list[str]) -> pl.DataFrame:
        return self.tables.read(uri, columns)

    def _fill(self, chance: random.Random) -> None:
        for file in range(3):
            self._write_weather(f"weather/year=2013/part-{file}.parquet", chance)
        self._write_fleet(chance)
        for segment in range(4):
            self._archive_landings(segment, chance)

    def _write_weather(self, key: str, chance: random.Random) -> None:
        times = (_moment(chance) for _ in range(1500))
        rows = [
            (
                chance.choice([*ORIGINS, None]),
                t,
                chance.choice([None, t, t + HOUR, t + 40 * HOUR]),
                chance.random(),
                chance.choice([None, [], ["wet", "cold"]]),
            )
            for t in times
        ]
        types = {"hour": UTC_US, "written": UTC_US, "wind": pl.Float64, "tags": pl.List(pl.String)}
        self.write(key, rows, {"origin": pl.String, **types})

    def _write_fleet(self, chance: random.Random) -> None:
        rows = [
            (
                chance.choice(ORIGINS),
                chance.randrange(5),
                _moment(chance),
                chance.randrange(90),
                [chance.random(), 2.0],
            )
            for _ in range(2000)
        ]
        types = {"carrier": pl.Int64, "day": UTC_US, "planes": pl.Int64, "shape": pl.Array(pl.Float32, 2)}
        self.write("fleet/all.parquet", rows, {"origin": pl.String, **types})

    def _archive_landings(self, segment: int, chance: random.Random) -> None:
        partition, first = segment % 2, 1000 * (segment // 2)
        events = []
        for i in range(1000):
            t = _moment(chance)
            delay = None if chance.random() < 0.1 else chance.gauss(10, 40)
            origin, carrier = chance.choice(ORIGINS), chance.randrange(5)
            known, distance = chance.choice([None, t + 2 * HOUR]), chance.choice([0, 500, 2500])
            place = (f"{segment}-{i}", partition, first + i)
            events.append((origin, carrier, t, t - 3 * HOUR, known, distance, delay, *place))
        types = {
            "origin": pl.String,
            "carrier": pl.Int64,
            "landed": UTC_US,
            "scheduled": UTC_US,
            "known": UTC_US,
            "distance": pl.Int64,
            "delay": pl.Float64,
            "__event_id": pl.String,
            "__partition": pl.Int32,
            "__offset": pl.Int64,
        }
        self.write(f"archive/{segment}.parquet", events, types)
        times = [e[2] for e in events]
        uri = f"s3://{self.bucket}/archive/{segment}.parquet"
        archived = Segment(uri, partition, first, first + 1000, min(times), max(times), 1000)
        self.archive.add("p", "landings", archived, {partition: first + 1000})


def _moment(chance: random.Random) -> int:
    """One of few different times, so that many rows have equal times."""
    return START + chance.randrange(0, 20 * 24) * HOUR


class S3JoinInputs(JoinInputs):
    """The same in a new bucket on S3, and the local engine, which spills to a folder."""

    def __init__(self, s3: S3, bucket: str, spill: Path) -> None:
        self.s3, self.spill = s3, spill
        self.files = s3_files(s3)
        self.files.create_dir(bucket)
        self.environment = {
            "FLYWHEEL_FEATURE_S3_ENDPOINT": s3.endpoint,
            "FLYWHEEL_FEATURE_S3_ACCESS_KEY": s3.access_key,
            "FLYWHEEL_FEATURE_S3_SECRET_KEY": s3.secret_key,
            "FLYWHEEL_FEATURE_S3_BUCKET": bucket,
        }
        self.process = PartitionProcess(str(spill), self.environment)
        super().__init__(s3_tables(s3, bucket), bucket)

    def on_ray(self, ray: Ray, jobs: RayJobs, signing: JoinSigning) -> PartitionRay:
        return PartitionRay(
            jobs,
            python=sys.executable,
            files=self.files,
            root=f"{self.bucket}/joins",
            deletion=S3Deletion(self.s3.endpoint, self.s3.access_key, self.s3.secret_key),
            access=signing.access,
            tokens=signing.tokens,
            address=signing.address,
            environment={"FLYWHEEL_FEATURE_S3_BUCKET": self.bucket, **ray.environment},
        )

    def processes(self, wanted: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
        """The processes that work on joins of this bucket."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FLYWHEEL_FEATURE_S3_BUCKET") == self.bucket and wanted(process):
                    yield process


def drives_join(process: psutil.Process) -> bool:
    """Whether a process is the driver of a join."""
    command = process.cmdline()
    return "flywheel_feature.join_worker" in command and "python" in command[0]


def request(training_set_id: str, **changes: Any) -> TrainingSetRequest:
    """A request for the feature set on 18 days of landings."""
    spine = SourceSpine("landings", "scheduled", "delay >= 15", START, START + 18 * DAY)
    fields: dict[str, Any] = {
        "project": "p",
        "training_set_id": training_set_id,
        "feature_set": "flights",
        "feature_set_version": 0,
        "spine": spine,
    }
    return TrainingSetRequest(**{**fields, **changes})


def without_identity(built: Any) -> Any:
    """A training set without the fields that differ between two builds of the same set."""
    return dataclasses.replace(built, id="", uri="", created_at=None, build_seconds=0.0)
