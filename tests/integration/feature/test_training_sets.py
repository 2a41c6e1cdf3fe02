"""Training sets and skew checks over a real S3: sources as files, streams as archived segments."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow.fs as fs
import pytest

from flywheel_common.clock import ManualClock, SystemClock
from flywheel_common.errors import DataLoss, FailedPrecondition, FlywheelError, InvalidArgument, NotFound
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
from flywheel_feature.offline.model import FileSpine, JoinMode, SourceSpine, TrainingSetRequest
from flywheel_feature.offline.skew import SkewCheck, SkewRequest
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.tables.content_hash import content_hash
from flywheel_feature.tables.ports import Segment
from flywheel_feature.tables.sources import ROW_CREATED_TIME, ROW_EVENT_TIME, SourceReader
from flywheel_local.s3 import S3

START = datetime(2013, 1, 1, tzinfo=UTC)
UTC_US = pl.Datetime("us", "UTC")
D = DataType


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def micros(hours: float) -> int:
    return round(at(hours).timestamp()) * 1_000_000


class Quiet:
    """A job that nobody watches."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        self.messages.append(message)

    def check_cancelled(self) -> None:
        pass


def definitions(bucket: str) -> Catalog:
    origin = Entity("p", "origin", (Field("origin", D.STRING),))
    weather = Source(
        "p",
        "weather",
        (
            Field("origin", D.STRING),
            Field("hour", D.TIMESTAMP),
            Field("written", D.TIMESTAMP),
            Field("wind", D.FLOAT64),
        ),
        "hour",
        "written",
        ParquetSource(f"s3://{bucket}/weather/"),
    )
    landed = Source(
        "p",
        "landings",
        (
            Field("origin", D.STRING),
            Field("landed", D.TIMESTAMP),
            Field("scheduled", D.TIMESTAMP),
            Field("distance", D.INT64),
            Field("delay", D.FLOAT64),
        ),
        "landed",
        "",
        StreamSource(),
    )
    request = Source("p", "request", (Field("distance", D.INT64),), "", "", RequestSource())
    wind = Feature("wind", D.FLOAT64, field="wind")
    weather_view = View(
        "p", "weather", "origin", BatchView("weather", (wind,)), ttl=3 * HOUR, version=1, features=(wind,)
    )
    traffic = View(
        "p",
        "traffic",
        "origin",
        StreamView(
            "landings",
            (
                Aggregation("mean_delay", AggregationFunction.MEAN, "delay", DAY),
                Aggregation("flights", AggregationFunction.COUNT, "", DAY),
            ),
            filter="distance > 0",
            tile=HOUR,
        ),
        version=1,
        features=(Feature("mean_delay", D.FLOAT64), Feature("flights", D.INT64)),
    )
    gust = Feature("headwind", D.FLOAT32)
    far = Feature("far", D.STRING)
    computed = View(
        "p",
        "computed",
        "",
        OnDemandView(
            ("weather", "traffic"),
            ("request",),
            (
                Expression(gust, "weather__wind * distance + COALESCE(traffic__mean_delay, 0)"),
                Expression(far, "CASE WHEN distance > 1000 THEN 'far' ELSE 'near' END"),
            ),
        ),
        version=1,
        features=(gust, far),
        inputs=(VersionRef("weather", 1), VersionRef("traffic", 1)),
    )
    flights = FeatureSet(
        "p",
        "flights",
        ("weather:wind", "traffic:mean_delay", "traffic:flights", "computed:headwind", "computed:far"),
        version=1,
        views=(VersionRef("weather", 1), VersionRef("traffic", 1), VersionRef("computed", 1)),
        schema=(
            Field("weather__wind", D.FLOAT64),
            Field("traffic__mean_delay", D.FLOAT64),
            Field("traffic__flights", D.INT64),
            Field("computed__headwind", D.FLOAT32),
            Field("computed__far", D.STRING),
        ),
        join_keys=(Field("origin", D.STRING),),
        request_fields=(Field("distance", D.INT64),),
    )
    views = {v.id: v for v in (weather_view, traffic, computed)}
    return Catalog(
        "p",
        entities={"origin": origin},
        sources={s.id: s for s in (weather, landed, request)},
        views={v.ref: v for v in views.values()},
        feature_sets={VersionRef("flights", 1): flights},
        latest_views=views,
        latest_feature_sets={"flights": flights},
    )


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
COLUMNS = [
    "origin", "event_timestamp", "distance", "weather__wind", "traffic__mean_delay", "traffic__flights",
    "computed__headwind", "computed__far", "label",
]  # fmt: skip


class World:
    """Sources on S3, an archive, and the use cases over them."""

    def __init__(self, s3: S3, bucket: str) -> None:
        self.tables = S3Tables(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
        )
        self.bucket = bucket
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

    def skew(self) -> SkewCheck:
        return SkewCheck(
            catalogs=self.catalogs,
            tables=self.tables,
            archive=self.archive,
            clock=SystemClock(),
            archive_wait_seconds=1.0,
        )

    def write_weather(self, rows: list[Any], *, files: int = 1) -> None:
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
                "landed": UTC_US, "scheduled": UTC_US, "__event_time": UTC_US, "__partition": pl.Int32,
                "distance": pl.Int64, "delay": pl.Float64,
            },
        )  # fmt: skip
        uri = f"s3://{self.bucket}/archive/landings/{name}.parquet"
        self.tables.write(uri, frame)
        times = [micros(r[1]) for r in rows]
        self.archive.add(
            "p",
            "landings",
            Segment(uri, 0, first, first + len(rows), min(times), max(times), len(rows)),
            {0: first + len(rows)},
        )

    def read(self, uri: str) -> pl.DataFrame:
        return self.tables.read(uri, COLUMNS)


@pytest.fixture
def world(s3: S3) -> World:
    bucket = f"test-{uuid.uuid4().hex[:16]}"
    # Through the API: the server remembers for a while which folders there were.
    fs.S3FileSystem(
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        endpoint_override=s3.endpoint.removeprefix("http://"),
        scheme="http",
        allow_bucket_creation=True,
    ).create_dir(bucket)
    world = World(s3, bucket)
    world.write_weather(WEATHER)
    world.archive_landings(LANDINGS)
    return world


def request(
    training_set_id: str = "winter", mode: JoinMode = JoinMode.POINT_IN_TIME, **spine: Any
) -> TrainingSetRequest:
    wanted = {"label": "delay >= 15", "start": micros(0), "end": micros(24), **spine}
    return TrainingSetRequest(
        "p", training_set_id, "flights", 0, SourceSpine("landings", "scheduled", **wanted), mode
    )


async def test_a_training_set_holds_for_every_row_what_was_known_at_its_time(world: World) -> None:
    built = await world.builder().build(request(), Quiet())
    frame = world.read(built.uri)
    expected = pl.DataFrame(
        [(r[0], at(r[1]), *r[2:]) for r in EXPECTED],
        schema=dict(zip(COLUMNS, frame.dtypes, strict=True)),
        orient="row",
    )
    assert COLUMNS == frame.columns == [f.name for f in built.schema]
    assert expected.rows() == frame.rows()
    assert (5, 1) == (built.row_count, built.unlabelled_count)
    assert built.label_mean == pytest.approx(3 / 5)
    assert (micros(8), micros(12.25)) == (built.min_time, built.max_time)
    assert "projects/p/featureSets/flights/versions/1" == built.feature_set
    assert {f"projects/p/views/{v}/versions/1" for v in ("weather", "traffic", "computed")} == set(
        built.view_versions
    )
    profile = {p.name: p for p in built.profile}
    assert [c for c in COLUMNS if "__" in c or c == "label"] == list(profile)
    assert (5, 1) == (profile["weather__wind"].count, profile["weather__wind"].null_count)
    assert ("near", "far") == profile["computed__far"].categories
    assert (3, 2) == profile["computed__far"].category_counts
    assert built == await world.training_sets.get("p", "winter")


async def test_equal_inputs_give_an_equal_hash_however_the_sources_are_stored(world: World) -> None:
    first = await world.builder().build(request("first"), Quiet())
    world.write_weather(WEATHER[::-1][:2] + WEATHER[:3], files=3)
    again = await world.builder().build(request("again"), Quiet())
    assert first.content_hash == again.content_hash
    assert content_hash(world.read(first.uri)) == first.content_hash
    world.archive_landings([("JFK", 12.0, 11.0, 100, 90.0)], first=6, name="b")
    changed = await world.builder().build(request("changed"), Quiet())
    assert first.content_hash != changed.content_hash
    assert 6 == changed.row_count


async def test_an_event_archived_twice_counts_once(world: World) -> None:
    before = await world.builder().build(request("before"), Quiet())
    world.archive_landings(LANDINGS[:3], first=6, name="again", ids=["e0", "e1", "e2"])
    after = await world.builder().build(request("after"), Quiet())
    assert before.content_hash == after.content_hash


async def test_rows_whose_label_was_not_known_in_time_are_left_out(world: World) -> None:
    built = await world.builder().build(request(known_before=micros(11.5)), Quiet())
    assert [at(8.0), at(9.0)] == world.read(built.uri)["event_timestamp"].to_list()


async def test_the_naive_join_leaks_and_says_so(world: World) -> None:
    built = await world.builder().build(request(mode=JoinMode.NAIVE_LATEST), Quiet())
    frame = world.read(built.uri)
    assert JoinMode.NAIVE_LATEST == built.mode
    jfk = frame.filter(pl.col("origin") == "JFK")
    # 30, 0 and 10 of the flights with a distance: the row of 8:00 could not know them.
    assert [pytest.approx(40 / 3)] * 4 == jfk["traffic__mean_delay"].to_list()
    assert [5.0] * 4 == jfk["weather__wind"].to_list()


async def test_a_spine_file_gives_the_rows_and_the_label(world: World) -> None:
    spine = pl.DataFrame(
        {
            "origin": ["LGA", "JFK", "JFK"],
            "when": [at(9.5), at(12.25), at(12.25)],
            "distance": [10, 1500, 1500],
            "late": [0, 1, 1],
        }
    )
    world.tables.write(f"s3://{world.bucket}/spines/one.parquet", spine)
    wanted = TrainingSetRequest(
        "p", "from-file", "flights", 1, FileSpine(f"s3://{world.bucket}/spines/one.parquet", "when", "late")
    )
    await world.builder().validate(wanted)
    built = await world.builder().build(wanted, Quiet())
    frame = world.read(built.uri)
    assert [("LGA", 7.0, 0.0), ("JFK", 4.0, 1.0), ("JFK", 4.0, 1.0)] == frame.select(
        "origin", "weather__wind", "label"
    ).rows()


async def test_a_build_that_starts_again_ends_with_the_same_set(world: World) -> None:
    first = await world.builder().build(request(), Quiet())
    assert first == await world.builder().build(request(), Quiet())
    with pytest.raises(FlywheelError) as refused:
        await world.builder().build(request(label="delay >= 60"), Quiet())
    assert "TRAINING_SET_EXISTS" == refused.value.reason


async def test_the_build_waits_for_the_archive_and_gives_up_with_a_reason(world: World) -> None:
    world.archive.topic_ends("p", "landings", {0: 7})
    job = Quiet()
    with pytest.raises(FailedPrecondition, match="1 events behind") as behind:
        await world.builder(wait=0.3).build(request(), job)
    assert "ARCHIVE_BEHIND" == behind.value.reason
    assert any("waiting for 1 events" in m for m in job.messages)
    world.archive_landings([("LGA", 15.0, 14.0, 100, 90.0)], first=6, name="b")
    assert 6 == (await world.builder(wait=0.3).build(request(), Quiet())).row_count


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "SUM(delay)"}, "INVALID_EXPRESSION"),
        ({"label": "arr_delay > 1"}, "INVALID_EXPRESSION"),
        ({"label": "origin"}, "INVALID_EXPRESSION"),
        ({"end": micros(-1)}, "WRONG_SPINE"),
        ({"timestamp_field": "delay"}, "UNKNOWN_FIELD"),
        ({"timestamp_field": "departed"}, "UNKNOWN_FIELD"),
        ({"source": "weather"}, "UNKNOWN_FIELD"),
        ({"source": "request"}, "WRONG_SPINE"),
        ({"source": "absent"}, "UNKNOWN_SOURCE"),
    ],
)
async def test_a_wrong_spine_is_refused_before_anything_runs(
    world: World, change: dict[str, Any], reason: str
) -> None:
    wrong = request()
    wrong = dataclasses.replace(wrong, spine=dataclasses.replace(wrong.spine, **change))
    with pytest.raises((InvalidArgument, NotFound)) as refused:
        await world.builder().validate(wrong)
    assert reason == refused.value.reason


async def test_sources_that_are_not_what_they_say_are_named(world: World) -> None:
    fs_write: Callable[..., None] = world.tables.write
    fs_write(
        f"s3://{world.bucket}/weather/year=2013/part-0.parquet",
        pl.DataFrame({"origin": ["JFK"], "wind": ["strong"]}),
    )
    with pytest.raises(FailedPrecondition, match=r"hour|wind|written") as mismatch:
        await world.builder().build(request(), Quiet())
    assert "SOURCE_MISMATCH" == mismatch.value.reason
    with world.tables._fs.open_output_stream(f"{world.bucket}/weather/year=2013/part-0.parquet") as stream:
        stream.write(b"PAR1 half a file")
    with pytest.raises(DataLoss) as corrupt:
        await world.builder().build(request(), Quiet())
    assert "CORRUPT_TABLE" == corrupt.value.reason
    world.catalog.sources["weather"] = dataclasses.replace(  # type: ignore[index]
        world.catalog.sources["weather"], kind=ParquetSource(f"s3://{world.bucket}/nowhere/")
    )
    with pytest.raises(NotFound) as absent:
        await world.builder().build(request(), Quiet())
    assert "UNKNOWN_TABLE" == absent.value.reason


async def test_rows_for_materialization_are_typed_and_in_range(world: World) -> None:
    reader = SourceReader(world.tables, world.archive)
    catalog = world.catalog
    rows = await reader.read_batch_rows(
        catalog.view("weather"), catalog.entity("origin"), catalog.source("weather"), micros(9), micros(11.01)
    )
    assert ["origin", "wind", ROW_EVENT_TIME, ROW_CREATED_TIME] == rows.columns
    assert [
        ("JFK", 2.0, at(9), at(9)),
        ("JFK", 4.0, at(11), at(12)),
        ("JFK", 5.0, at(11), at(13)),
    ] == rows.rows()


def predictions(world: World, change: Callable[[pl.DataFrame], pl.DataFrame]) -> str:
    """The log of a gateway that answered every row of EXPECTED, and once from a default."""
    frame = pl.DataFrame(
        {
            "prediction_id": [f"p{i}" for i in range(len(EXPECTED))],
            "event_time": [at(r[1]) for r in EXPECTED],
            "feature_set": ["projects/p/featureSets/flights/versions/1"] * len(EXPECTED),
            "role": ["CHAMPION"] * len(EXPECTED),
            "source": ["MODEL"] * len(EXPECTED),
            "entity__origin": [r[0] for r in EXPECTED],
            "request__distance": [r[2] for r in EXPECTED],
            "weather__wind": [r[3] for r in EXPECTED],
            "traffic__mean_delay": [float("nan") if r[4] is None else r[4] for r in EXPECTED],
            "traffic__flights": [r[5] for r in EXPECTED],
            "computed__headwind": [r[6] for r in EXPECTED],
            "computed__far": [r[7] for r in EXPECTED],
        },
        schema_overrides={
            "event_time": UTC_US,
            "computed__headwind": pl.Float32,
            "weather__wind": pl.Float32,
        },
    )
    world.tables.write(f"s3://{world.bucket}/predictions/day=1/a.parquet", change(frame))
    return f"s3://{world.bucket}/predictions/"


async def test_no_skew_is_found_where_there_is_none(world: World) -> None:
    report = await world.skew().check(SkewRequest("p", predictions(world, lambda f: f)), Quiet())
    assert (5, 25, 0) == (report.predictions, report.values, report.mismatches)
    assert [] == [f.examples for f in report.features if f.examples]


async def test_planted_mismatches_are_counted_per_feature_with_examples(world: World) -> None:
    def plant(frame: pl.DataFrame) -> pl.DataFrame:
        row = pl.int_range(pl.len())
        return frame.with_columns(
            pl.when(row == 1)
            .then(pl.col("weather__wind") * (1 + 1e-4))
            .otherwise("weather__wind")
            .alias("weather__wind"),
            pl.when(row == 3).then(None).otherwise("traffic__flights").alias("traffic__flights"),
            pl.when(row == 4).then(pl.lit("near")).otherwise("computed__far").alias("computed__far"),
            # A rounding of float32 is no skew.
            (pl.col("computed__headwind") * (1 + 1e-7)).alias("computed__headwind"),
        )

    report = await world.skew().check(SkewRequest("p", predictions(world, plant)), Quiet())
    found = {f.feature: f for f in report.features}
    assert 3 == report.mismatches
    assert {"weather__wind": 1, "traffic__flights": 1, "computed__far": 1} == {
        name: f.mismatches for name, f in found.items() if f.mismatches
    }
    assert "p1" in found["weather__wind"].examples[0]
    assert "origin=JFK" in found["weather__wind"].examples[0]
    assert "online 'near', offline 'far'" in found["computed__far"].examples[0]


async def test_answers_without_a_model_are_not_compared_and_samples_are_spread(world: World) -> None:
    def plant(frame: pl.DataFrame) -> pl.DataFrame:
        default = frame.head(1).with_columns(
            source=pl.lit("DEFAULT"), weather__wind=pl.lit(99.0, dtype=pl.Float32)
        )
        return pl.concat([default, frame])

    uri = predictions(world, plant)
    everything = await world.skew().check(SkewRequest("p", uri), Quiet())
    assert (5, 0) == (everything.predictions, everything.mismatches)
    some = await world.skew().check(
        SkewRequest("p", uri, start=micros(9), end=micros(12.25) + 1, sample_limit=2), Quiet()
    )
    assert 2 == some.predictions
    with pytest.raises(FlywheelError) as nothing:
        await world.skew().check(SkewRequest("p", f"s3://{world.bucket}/none/"), Quiet())
    assert "UNKNOWN_TABLE" == nothing.value.reason


async def test_features_are_compared_in_the_logs_of_the_model_versions_that_have_them(world: World) -> None:
    """The first version logs two features, in the file that is listed first; the second one logs all five."""
    path = f"s3://{world.bucket}/predictions/"

    def first(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.drop("traffic__mean_delay", "computed__headwind", "computed__far").with_columns(
            model_version=pl.lit("1")
        )

    def second(frame: pl.DataFrame) -> pl.DataFrame:
        wrong = pl.when(pl.col("prediction_id") == "p4").then(pl.lit("near")).otherwise("computed__far")
        # A column of that name has another type, and the columns another order.
        return frame.select(reversed(frame.columns)).with_columns(
            wrong.alias("computed__far"),
            pl.col("traffic__flights").cast(pl.Float64),
            model_version=pl.lit("2"),
        )

    predictions(world, second)
    whole = f"{path}day=1/a.parquet"
    later = world.tables.read_files([whole], list(world.tables.schema(whole)))
    world.tables.write(f"{path}day=1/b.parquet", later)
    predictions(world, first)
    report = await world.skew().check(SkewRequest("p", path), Quiet())
    assert (10, 5 * 2 + 5 * 5, 1) == (report.predictions, report.values, report.mismatches)
    assert {
        "weather__wind": (10, 0),
        "traffic__flights": (10, 0),
        "traffic__mean_delay": (5, 0),
        "computed__headwind": (5, 0),
        "computed__far": (5, 1),
    } == {f.feature: (f.compared, f.mismatches) for f in report.features}
    assert "p4 at" in report.features[0].examples[0]
    some = await world.skew().check(SkewRequest("p", path, sample_limit=4), Quiet())
    # In order of time the versions take turns: p0 p0 p1 p1 p2 p2 …, of which the 1st, 3rd, 6th and 8th are taken.
    assert (4, 2 * 2 + 2 * 5) == (some.predictions, some.values)


async def test_time_that_stands_still_does_not_make_a_difference(world: World) -> None:
    built: Awaitable[Any] = world.builder(clock=ManualClock()).build(request(), Quiet())
    assert 5 == (await built).row_count
