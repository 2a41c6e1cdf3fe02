"""Training sets and skew checks on S3: sources as files, streams as archived segments."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel_common.clock import ManualClock
from flywheel_common.errors import DataLoss, FailedPrecondition, FlywheelError, InvalidArgument, NotFound
from flywheel_feature.definitions.model import ParquetSource
from flywheel_feature.offline.manifest import ROWS_PER_FILE
from flywheel_feature.offline.model import FileSpine, JoinMode, TrainingSetRequest
from flywheel_feature.offline.skew import SkewRequest
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.tables.content_hash import content_hash
from flywheel_feature.tables.sources import ROW_CREATED_TIME, ROW_EVENT_TIME, SourceReader
from flywheel_local.s3 import S3
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.training_sets import (
    COLUMNS,
    EXPECTED,
    LANDINGS,
    UTC_US,
    WEATHER,
    TrainingSetInputs,
    at,
    micros,
    request,
)


@pytest.fixture
def inputs(tables: S3Tables, bucket: str) -> TrainingSetInputs:
    made = TrainingSetInputs(tables, bucket)
    made.write_weather(WEATHER)
    made.archive_landings(LANDINGS)
    return made


async def test_a_training_set_has_the_values_known_at_the_time_of_each_row(inputs: TrainingSetInputs) -> None:
    built = await inputs.builder().build(request(), RecordingJob())
    frame = inputs.read(built.uri)
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
    assert built == await inputs.training_sets.get("p", "winter")


async def test_equal_inputs_give_an_equal_hash_for_any_file_layout(inputs: TrainingSetInputs) -> None:
    first = await inputs.builder().build(request("first"), RecordingJob())
    inputs.write_weather(WEATHER[::-1][:2] + WEATHER[:3], files=3)
    again = await inputs.builder().build(request("again"), RecordingJob())
    assert first.content_hash == again.content_hash
    assert content_hash(inputs.read(first.uri)) == first.content_hash
    inputs.archive_landings([("JFK", 12.0, 11.0, 100, 90.0)], first=6, name="b")
    changed = await inputs.builder().build(request("changed"), RecordingJob())
    assert first.content_hash != changed.content_hash
    assert 6 == changed.row_count


async def test_an_event_archived_twice_is_applied_once(inputs: TrainingSetInputs) -> None:
    before = await inputs.builder().build(request("before"), RecordingJob())
    inputs.archive_landings(LANDINGS[:3], first=6, name="again", ids=["e0", "e1", "e2"])
    after = await inputs.builder().build(request("after"), RecordingJob())
    assert before.content_hash == after.content_hash


async def test_rows_whose_label_was_known_too_late_are_left_out(inputs: TrainingSetInputs) -> None:
    built = await inputs.builder().build(request(known_before=micros(11.5)), RecordingJob())
    assert [at(8.0), at(9.0)] == inputs.read(built.uri)["event_timestamp"].to_list()


async def test_a_naive_join_leaks_later_values_and_is_marked(inputs: TrainingSetInputs) -> None:
    built = await inputs.builder().build(request(mode=JoinMode.NAIVE_LATEST), RecordingJob())
    frame = inputs.read(built.uri)
    assert JoinMode.NAIVE_LATEST == built.mode
    jfk = frame.filter(pl.col("origin") == "JFK")
    # The mean of 30, 0 and 10, of which the row of 8:00 knows none.
    assert [pytest.approx(40 / 3)] * 4 == jfk["traffic__mean_delay"].to_list()
    assert [5.0] * 4 == jfk["weather__wind"].to_list()


async def test_a_spine_file_gives_rows_and_label(inputs: TrainingSetInputs) -> None:
    spine = pl.DataFrame(
        {
            "origin": ["LGA", "JFK", "JFK"],
            "when": [at(9.5), at(12.25), at(12.25)],
            "distance": [10, 1500, 1500],
            "late": [0, 1, 1],
            "order_id": ["c", "a", "b"],
        }
    )
    inputs.tables.write(f"s3://{inputs.bucket}/spines/one.parquet", spine)
    wanted = TrainingSetRequest(
        "p", "from-file", "flights", 1, FileSpine(f"s3://{inputs.bucket}/spines/one.parquet", "when", "late")
    )
    await inputs.builder().validate(wanted)
    built = await inputs.builder().build(wanted, RecordingJob())
    frame = inputs.tables.read(built.uri, [f.name for f in built.schema])
    assert [("LGA", "c", 7.0, 0.0), ("JFK", "a", 4.0, 1.0), ("JFK", "b", 4.0, 1.0)] == frame.select(
        "origin", "order_id", "weather__wind", "label"
    ).rows()


async def test_the_sdk_reads_rows_in_the_order_of_the_spine(
    inputs: TrainingSetInputs, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 2 * ROWS_PER_FILE + 10
    chance = random.Random(3)
    spine = pl.DataFrame(
        {
            "origin": [chance.choice(["LGA", "JFK"]) for _ in range(rows)],
            "when": [at(chance.randrange(20)) for _ in range(rows)],
            "distance": [10] * rows,
            "order_id": range(rows),
        }
    )
    inputs.tables.write(f"s3://{inputs.bucket}/spines/large.parquet", spine)
    uri = f"s3://{inputs.bucket}/spines/large.parquet"
    wanted = TrainingSetRequest("p", "large", "flights", 1, FileSpine(uri, "when"))
    built = await inputs.builder().build(wanted, RecordingJob())
    for name, value in (
        ("ENDPOINT", s3.endpoint),
        ("ACCESS_KEY", s3.access_key),
        ("SECRET_KEY", s3.secret_key),
    ):
        monkeypatch.setenv(f"FLYWHEEL_S3_{name}", value)
    found = fw.read_table(built.uri)
    assert [f.name for f in built.schema] == found.column_names
    assert ["order_id"] == list(built.extra_columns)
    assert list(range(rows)) == found["order_id"].to_pylist()
    assert spine["origin"].to_list() == found["origin"].to_pylist()


async def test_a_restarted_build_gives_the_same_training_set(inputs: TrainingSetInputs) -> None:
    first = await inputs.builder().build(request(), RecordingJob())
    assert first == await inputs.builder().build(request(), RecordingJob())
    with pytest.raises(FlywheelError) as refused:
        await inputs.builder().build(request(label="delay >= 60"), RecordingJob())
    assert "TRAINING_SET_EXISTS" == refused.value.reason


async def test_a_build_waits_for_the_archive_and_then_fails_with_a_reason(inputs: TrainingSetInputs) -> None:
    inputs.archive.topic_ends("p", "landings", {0: 7})
    job = RecordingJob()
    with pytest.raises(FailedPrecondition, match="1 events behind") as behind:
        await inputs.builder(wait=0.3).build(request(), job)
    assert "ARCHIVE_BEHIND" == behind.value.reason
    assert any("waiting for 1 events" in m for m in job.messages)
    inputs.archive_landings([("LGA", 15.0, 14.0, 100, 90.0)], first=6, name="b")
    assert 6 == (await inputs.builder(wait=0.3).build(request(), RecordingJob())).row_count


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
async def test_an_invalid_spine_is_refused_before_the_build(
    inputs: TrainingSetInputs, change: dict[str, Any], reason: str
) -> None:
    wrong = request()
    wrong = dataclasses.replace(wrong, spine=dataclasses.replace(wrong.spine, **change))
    with pytest.raises((InvalidArgument, NotFound)) as refused:
        await inputs.builder().validate(wrong)
    assert reason == refused.value.reason


async def test_errors_about_mismatched_or_missing_sources_name_the_source(inputs: TrainingSetInputs) -> None:
    inputs.tables.write(
        f"s3://{inputs.bucket}/weather/year=2013/part-0.parquet",
        pl.DataFrame({"origin": ["JFK"], "wind": ["strong"]}),
    )
    with pytest.raises(FailedPrecondition, match=r"hour|wind|written") as mismatch:
        await inputs.builder().build(request(), RecordingJob())
    assert "SOURCE_MISMATCH" == mismatch.value.reason
    with inputs.tables._fs.open_output_stream(f"{inputs.bucket}/weather/year=2013/part-0.parquet") as stream:
        stream.write(b"PAR1 half a file")
    with pytest.raises(DataLoss) as corrupt:
        await inputs.builder().build(request(), RecordingJob())
    assert "CORRUPT_TABLE" == corrupt.value.reason
    inputs.catalog.sources["weather"] = dataclasses.replace(  # type: ignore[index]
        inputs.catalog.sources["weather"], kind=ParquetSource(f"s3://{inputs.bucket}/nowhere/")
    )
    with pytest.raises(NotFound) as absent:
        await inputs.builder().build(request(), RecordingJob())
    assert "UNKNOWN_TABLE" == absent.value.reason


async def test_rows_for_materialization_have_declared_types_and_range(inputs: TrainingSetInputs) -> None:
    reader = SourceReader(inputs.tables, inputs.archive)
    catalog = inputs.catalog
    rows = await reader.read_batch_rows(
        catalog.view("weather"), catalog.entity("origin"), catalog.source("weather"), micros(9), micros(11.01)
    )
    assert ["origin", "wind", ROW_EVENT_TIME, ROW_CREATED_TIME] == rows.columns
    assert [
        ("JFK", 2.0, at(9), at(9)),
        ("JFK", 4.0, at(11), at(12)),
        ("JFK", 5.0, at(11), at(13)),
    ] == rows.rows()


def predictions(inputs: TrainingSetInputs, change: Callable[[pl.DataFrame], pl.DataFrame]) -> str:
    """Write a prediction log with all rows of EXPECTED, modified by `change`; returns its address."""
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
    inputs.tables.write(f"s3://{inputs.bucket}/predictions/day=1/a.parquet", change(frame))
    return f"s3://{inputs.bucket}/predictions/"


async def test_a_skew_check_of_correct_predictions_finds_no_mismatch(inputs: TrainingSetInputs) -> None:
    report = await inputs.skew_check().check(
        SkewRequest("p", predictions(inputs, lambda f: f)), RecordingJob()
    )
    assert (5, 25, 0) == (report.predictions, report.values, report.mismatches)
    assert [] == [f.examples for f in report.features if f.examples]


async def test_mismatches_are_counted_per_feature_with_examples(inputs: TrainingSetInputs) -> None:
    def plant(frame: pl.DataFrame) -> pl.DataFrame:
        row = pl.int_range(pl.len())
        return frame.with_columns(
            pl.when(row == 1)
            .then(pl.col("weather__wind") * (1 + 1e-4))
            .otherwise("weather__wind")
            .alias("weather__wind"),
            pl.when(row == 3).then(None).otherwise("traffic__flights").alias("traffic__flights"),
            pl.when(row == 4).then(pl.lit("near")).otherwise("computed__far").alias("computed__far"),
            # Float32 rounding does not count as skew.
            (pl.col("computed__headwind") * (1 + 1e-7)).alias("computed__headwind"),
        )

    report = await inputs.skew_check().check(SkewRequest("p", predictions(inputs, plant)), RecordingJob())
    found = {f.feature: f for f in report.features}
    assert 3 == report.mismatches
    assert {"weather__wind": 1, "traffic__flights": 1, "computed__far": 1} == {
        name: f.mismatches for name, f in found.items() if f.mismatches
    }
    assert "p1" in found["weather__wind"].examples[0]
    assert "origin=JFK" in found["weather__wind"].examples[0]
    assert "online 'near', offline 'far'" in found["computed__far"].examples[0]


async def test_values_that_were_not_yet_valid_are_counted_apart(inputs: TrainingSetInputs) -> None:
    def plant(frame: pl.DataFrame) -> pl.DataFrame:
        row = pl.int_range(pl.len())
        unknown = ["weather__wind", "computed__headwind"]
        return frame.with_columns(
            *(pl.when(row == 1).then(None).otherwise(name).alias(name) for name in unknown),
            pl.when(row == 1).then(pl.lit(",".join(unknown))).otherwise(pl.lit("")).alias("not_yet_valid"),
            # A null that was served as NULL is skew.
            pl.when(row == 4).then(None).otherwise("computed__far").alias("computed__far"),
        )

    report = await inputs.skew_check().check(SkewRequest("p", predictions(inputs, plant)), RecordingJob())
    assert (5, 23, 1, 2) == (report.predictions, report.values, report.mismatches, report.not_yet_valid)
    found = {f.feature: (f.compared, f.mismatches, f.not_yet_valid) for f in report.features}
    assert (4, 0, 1) == found["weather__wind"] == found["computed__headwind"]
    assert ((5, 1, 0), (5, 0, 0)) == (found["computed__far"], found["traffic__flights"])


async def test_a_skew_check_skips_default_answers_and_samples_evenly(inputs: TrainingSetInputs) -> None:
    def plant(frame: pl.DataFrame) -> pl.DataFrame:
        default = frame.head(1).with_columns(
            source=pl.lit("DEFAULT"), weather__wind=pl.lit(99.0, dtype=pl.Float32)
        )
        return pl.concat([default, frame])

    uri = predictions(inputs, plant)
    everything = await inputs.skew_check().check(SkewRequest("p", uri), RecordingJob())
    assert (5, 0) == (everything.predictions, everything.mismatches)
    some = await inputs.skew_check().check(
        SkewRequest("p", uri, start=micros(9), end=micros(12.25) + 1, sample_limit=2), RecordingJob()
    )
    assert 2 == some.predictions
    with pytest.raises(FlywheelError) as nothing:
        await inputs.skew_check().check(SkewRequest("p", f"s3://{inputs.bucket}/none/"), RecordingJob())
    assert "UNKNOWN_TABLE" == nothing.value.reason


async def test_features_are_compared_only_where_a_model_version_logs_them(inputs: TrainingSetInputs) -> None:
    """Version 1 logs two features, in the first file; version 2 logs all five."""
    path = f"s3://{inputs.bucket}/predictions/"

    def first(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.drop("traffic__mean_delay", "computed__headwind", "computed__far").with_columns(
            model_version=pl.lit("1")
        )

    def second(frame: pl.DataFrame) -> pl.DataFrame:
        wrong = pl.when(pl.col("prediction_id") == "p4").then(pl.lit("near")).otherwise("computed__far")
        # One column has another type, and the columns have another order.
        return frame.select(reversed(frame.columns)).with_columns(
            wrong.alias("computed__far"),
            pl.col("traffic__flights").cast(pl.Float64),
            model_version=pl.lit("2"),
        )

    predictions(inputs, second)
    written = f"{path}day=1/a.parquet"
    later = inputs.tables.read_files([written], list(inputs.tables.schema(written)))
    inputs.tables.write(f"{path}day=1/b.parquet", later)
    predictions(inputs, first)
    report = await inputs.skew_check().check(SkewRequest("p", path), RecordingJob())
    assert (10, 5 * 2 + 5 * 5, 1) == (report.predictions, report.values, report.mismatches)
    assert {
        "weather__wind": (10, 0),
        "traffic__flights": (10, 0),
        "traffic__mean_delay": (5, 0),
        "computed__headwind": (5, 0),
        "computed__far": (5, 1),
    } == {f.feature: (f.compared, f.mismatches) for f in report.features}
    assert "p4 at" in report.features[0].examples[0]
    some = await inputs.skew_check().check(SkewRequest("p", path, sample_limit=4), RecordingJob())
    # Ordered by time the versions alternate: p0 p0 p1 p1 p2 p2 …; the sample is the 1st, 3rd, 6th and 8th.
    assert (4, 2 * 2 + 2 * 5) == (some.predictions, some.values)


async def test_a_build_succeeds_with_a_clock_that_does_not_advance(inputs: TrainingSetInputs) -> None:
    built: Awaitable[Any] = inputs.builder(clock=ManualClock()).build(request(), RecordingJob())
    assert 5 == (await built).row_count
