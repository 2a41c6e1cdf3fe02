"""A world of views, sources and events for joins that are computed in partitions, and what a training set of it says."""

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
import pyarrow.fs as fs

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
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.jobs.runner import JobCancelled
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import (
    SourceSpine,
    TrainingSetRequest,
)
from flywheel_feature.offline.partitioned.build import JoinLimits
from flywheel_feature.offline.ports import PartitionEngine
from flywheel_feature.store.engines.process import PartitionProcess
from flywheel_feature.store.engines.ray import PartitionRay
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.tables.pinned_archive import MemoryArchive
from flywheel_feature.tables.ports import Segment, Tables
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3

D = DataType
UTC_US = pl.Datetime("us", "UTC")
START = 1_357_000_000_000_000
SMALL = JoinLimits(memory_bytes=1_000_000, ray_rows=10**12)
"""A few thousand rows do not fit."""
ORIGINS = [f"A{i:02d}" for i in range(40)]


class Watched:
    """A job; `stop_at` cancels it once a message begins so."""

    def __init__(self, stop_at: str | tuple[str, ...] = "never") -> None:
        self.messages: list[str] = []
        self.progressed: list[tuple[int, int]] = []
        self._stop_at = stop_at
        self._stopped = False

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        self.messages.append(message)
        self.progressed.append((done, total))
        self._stopped = self._stopped or message.startswith(self._stop_at)

    def check_cancelled(self) -> None:
        if self._stopped:
            raise JobCancelled


def definitions(bucket: str) -> Catalog:
    """Views over two entities, with late rows, TTL, windows and expressions."""
    key, carrier = Field("origin", D.STRING), Field("carrier", D.INT64)
    weather = Source(
        "p", "weather",
        (key, Field("hour", D.TIMESTAMP), Field("written", D.TIMESTAMP), Field("wind", D.FLOAT64), Field("tags", D.STRING_LIST)),
        "hour", "written", ParquetSource(f"s3://{bucket}/weather/"),
    )  # fmt: skip
    fleet = Source(
        "p", "fleet", (key, carrier, Field("day", D.TIMESTAMP), Field("planes", D.INT64), Field("shape", D.FLOAT32_VECTOR, 2)),
        "day", "", ParquetSource(f"s3://{bucket}/fleet/"),
    )  # fmt: skip
    landed = Source(
        "p", "landings",
        (key, carrier, Field("landed", D.TIMESTAMP), Field("scheduled", D.TIMESTAMP), Field("known", D.TIMESTAMP),
         Field("distance", D.INT64), Field("delay", D.FLOAT64)),
        "landed", "known", StreamSource(),
    )  # fmt: skip
    request = Source("p", "request", (Field("distance", D.INT64),), "", "", RequestSource())
    wind, tags = Feature("wind", D.FLOAT64, field="wind"), Feature("tags", D.STRING_LIST, field="tags")
    planes = Feature("planes", D.INT64, field="planes")
    shape = Feature("shape", D.FLOAT32_VECTOR, 2, field="shape")
    views = [
        View("p", "weather", "origin", BatchView("weather", (wind, tags)), ttl=30 * HOUR, version=1, features=(wind, tags)),
        View("p", "fleet", "pair", BatchView("fleet", (planes, shape)), version=1, features=(planes, shape)),
        View(
            "p", "traffic", "origin",
            StreamView(
                "landings",
                (
                    Aggregation("mean_delay", AggregationFunction.MEAN, "delay", DAY),
                    Aggregation("spread", AggregationFunction.STD, "delay", 7 * DAY),
                    Aggregation("flights", AggregationFunction.COUNT, "", DAY),
                    Aggregation("recent", AggregationFunction.LAST_N, "delay", DAY, 3),
                ),
                filter="distance > 0", tile=HOUR,
            ),
            version=1,
            features=(
                Feature("mean_delay", D.FLOAT64), Feature("spread", D.FLOAT64), Feature("flights", D.INT64),
                Feature("recent", D.FLOAT64_LIST),
            ),
        ),
        View(
            "p", "computed", "",
            OnDemandView(
                ("weather", "traffic"), ("request",),
                (Expression(Feature("strain", D.FLOAT32), "weather__wind * distance + COALESCE(traffic__mean_delay, 0)"),),
            ),
            version=1, features=(Feature("strain", D.FLOAT32),), inputs=(VersionRef("weather", 1), VersionRef("traffic", 1)),
        ),
    ]  # fmt: skip
    schema = [
        Field("weather__wind", D.FLOAT64), Field("weather__tags", D.STRING_LIST), Field("fleet__planes", D.INT64),
        Field("fleet__shape", D.FLOAT32_VECTOR, 2), Field("traffic__mean_delay", D.FLOAT64), Field("traffic__spread", D.FLOAT64),
        Field("traffic__flights", D.INT64), Field("traffic__recent", D.FLOAT64_LIST), Field("computed__strain", D.FLOAT32),
    ]  # fmt: skip
    flights = FeatureSet(
        "p", "flights", tuple(f.name.replace("__", ":") for f in schema), version=1, views=tuple(v.ref for v in views),
        schema=tuple(schema), join_keys=(key, carrier), request_fields=(Field("distance", D.INT64),),
    )  # fmt: skip
    return Catalog(
        "p",
        entities={"origin": Entity("p", "origin", (key,)), "pair": Entity("p", "pair", (key, carrier))},
        sources={s.id: s for s in (weather, fleet, landed, request)},
        views={v.ref: v for v in views},
        feature_sets={VersionRef("flights", 1): flights},
        latest_views={v.id: v for v in views},
        latest_feature_sets={"flights": flights},
    )


class World:
    """The views' rows and events, in tables of a bucket."""

    def __init__(self, tables: Tables, bucket: str) -> None:
        self.tables, self.bucket = tables, bucket
        self.catalog = definitions(bucket)
        self.archive = MemoryArchive()
        self.training_sets = MemoryTrainingSets()
        self._fill()

    async def catalogs(self, project: str) -> Catalog:
        return self.catalog

    def builder(self, *engines: PartitionEngine, limits: JoinLimits = SMALL) -> TrainingSetBuilder:
        return TrainingSetBuilder(
            catalogs=self.catalogs, tables=self.tables, archive=self.archive, training_sets=self.training_sets,
            clock=SystemClock(), archive_wait_seconds=1.0, engines=engines, limits=limits,
        )  # fmt: skip

    def write(self, key: str, rows: list[tuple[Any, ...]], schema: dict[str, Any]) -> None:
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        self.tables.write(f"s3://{self.bucket}/{key}", frame)

    def _fill(self) -> None:
        chance = random.Random(13)

        def moment() -> int:
            # Few different times: many ties.
            return START + chance.randrange(0, 20 * 24) * HOUR

        key = {"origin": pl.String}
        for file in range(3):
            rows = [
                (chance.choice([*ORIGINS, None]), t, chance.choice([None, t, t + HOUR, t + 40 * HOUR]), chance.random(),
                 chance.choice([None, [], ["wet", "cold"]]))
                for t in (moment() for _ in range(1500))
            ]  # fmt: skip
            types = {**key, "hour": UTC_US, "written": UTC_US, "wind": pl.Float64, "tags": pl.List(pl.String)}
            self.write(f"weather/year=2013/part-{file}.parquet", rows, types)
        rows = [
            (chance.choice(ORIGINS), chance.randrange(5), moment(), chance.randrange(90), [chance.random(), 2.0]) for _ in range(2000)
        ]  # fmt: skip
        types = {
            **key,
            "carrier": pl.Int64,
            "day": UTC_US,
            "planes": pl.Int64,
            "shape": pl.Array(pl.Float32, 2),
        }
        self.write("fleet/all.parquet", rows, types)
        for segment in range(4):
            first = 1000 * (segment // 2)
            events = []
            for i in range(1000):
                t = moment()
                delay = None if chance.random() < 0.1 else chance.gauss(10, 40)
                events.append(
                    (chance.choice(ORIGINS), chance.randrange(5), t, t - 3 * HOUR, chance.choice([None, t + 2 * HOUR]),
                     chance.choice([0, 500, 2500]), delay, f"{segment}-{i}", segment % 2, first + i)
                )  # fmt: skip
            types = {
                **key, "carrier": pl.Int64, "landed": UTC_US, "scheduled": UTC_US, "known": UTC_US, "distance": pl.Int64,
                "delay": pl.Float64, "__event_id": pl.String, "__partition": pl.Int32, "__offset": pl.Int64,
            }  # fmt: skip
            self.write(f"archive/{segment}.parquet", events, types)
            times = [e[2] for e in events]
            self.archive.add(
                "p", "landings",
                Segment(f"s3://{self.bucket}/archive/{segment}.parquet", segment % 2, first, first + 1000, min(times), max(times), 1000),
                {segment % 2: first + 1000},
            )  # fmt: skip

    def read(self, uri: str, columns: list[str]) -> pl.DataFrame:
        return self.tables.read(uri, columns)


class S3World(World):
    """The same on S3, and the engine of this machine, which spills to a folder."""

    def __init__(self, s3: S3, bucket: str, spill: Path) -> None:
        self.s3, self.spill = s3, spill
        self.files = fs.S3FileSystem(
            access_key=s3.access_key, secret_key=s3.secret_key, scheme="http", allow_bucket_creation=True,
            endpoint_override=s3.endpoint.removeprefix("http://"),
        )  # fmt: skip
        self.files.create_dir(bucket)
        self.environment = {
            "FLYWHEEL_FEATURE_S3_ENDPOINT": s3.endpoint,
            "FLYWHEEL_FEATURE_S3_ACCESS_KEY": s3.access_key,
            "FLYWHEEL_FEATURE_S3_SECRET_KEY": s3.secret_key,
            "FLYWHEEL_FEATURE_S3_BUCKET": bucket,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
        }
        self.process = PartitionProcess(str(spill), self.environment)
        tables = S3Tables(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
        )
        super().__init__(tables, bucket)

    def on_ray(self, ray: Ray, jobs: RayJobs) -> PartitionRay:
        return PartitionRay(
            jobs, python=sys.executable, files=self.files, root=f"{self.bucket}/joins",
            deletion=S3Deletion(self.s3.endpoint, self.s3.access_key, self.s3.secret_key),
            environment={**self.environment, **ray.environment},
        )  # fmt: skip

    def processes(self, wanted: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
        """Those that work for this world."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FLYWHEEL_FEATURE_S3_BUCKET") == self.bucket and wanted(process):
                    yield process


def carries_out(process: psutil.Process) -> bool:
    """Whether it drives a join."""
    command = process.cmdline()
    return "flywheel_feature.join_worker" in command and "python" in command[0]


def request(training_set_id: str, **changes: Any) -> TrainingSetRequest:
    spine = SourceSpine("landings", "scheduled", "delay >= 15", START, START + 18 * DAY)
    return TrainingSetRequest(**{
        "project": "p", "training_set_id": training_set_id, "feature_set": "flights", "feature_set_version": 0, "spine": spine,
        **changes,
    })  # fmt: skip


def told(built: Any) -> Any:
    """The manifest, less what names and times it."""
    return dataclasses.replace(built, id="", uri="", created_at=None, build_seconds=0.0)
