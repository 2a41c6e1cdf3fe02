"""A skew check of predictions in any stored types ends with a report, or refuses a column by its name."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, cast

import polars as pl
import pytest

from flywheel_common.errors import FlywheelError, Internal
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.offline.skew import SkewRequest
from flywheel_feature.store.s3.tables import S3Tables
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.training_sets import LANDINGS, WEATHER, TrainingSetInputs, at

COLUMNS = [
    *("not_yet_valid", "applied__traffic@1", "entity__origin", "request__distance"),
    *("weather__wind", "traffic__flights", "computed__far"),
]
STORED: dict[str, pl.Series] = {
    "string": pl.Series(["x", ""]),
    "int": pl.Series([1, -2]),
    "uint64": pl.Series([2**64 - 1, 0], dtype=pl.UInt64),
    "float": pl.Series([1.5, float("nan")]),
    "decimal": pl.Series([Decimal("1.50"), None]),
    "bool": pl.Series([True, None]),
    "null": pl.Series([None, None]),
    "date": pl.Series([dt.date(2024, 5, 1)] * 2),
    "time": pl.Series([dt.time(5)] * 2),
    "naive datetime": pl.Series([dt.datetime(2024, 5, 1)] * 2),
    "duration": pl.Series([dt.timedelta(1)] * 2),
    "list of texts": pl.Series([["a"], None]),
    "list of integers": pl.Series([[0, 3], [1]]),
    "list of nulls": pl.Series([[None], [0, None]], dtype=pl.List(pl.Int64)),
    "negative offsets": pl.Series([[0, -3], [-1, 5]]),
    "one partition twice": pl.Series([[0, 3, 0, 5], [0, 2**62]]),
    "list of floats": pl.Series([[0.5, 3.0], [float("nan"), 1e300]]),
    "list of lists": pl.Series([[[1]], None]),
    "list of structs": pl.Series([[{"a": 1}], None]),
    "array": pl.Series([[0, 3], [0, 4]], dtype=pl.Array(pl.Int64, 2)),
    "struct": pl.Series([{"a": 1}] * 2),
    "binary": pl.Series([b"a", b"\xff"]),
    "categorical": pl.Series(["MODEL", "b"], dtype=pl.Categorical),
    "enum": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
}


def predictions() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prediction_id": ["a", "b"],
            "event_time": [at(12.25), at(13.0)],
            "feature_set": ["projects/p/featureSets/flights/versions/1"] * 2,
            "source": ["MODEL", "MODEL"],
            "not_yet_valid": [None, ""],
            "entity__origin": ["JFK", "LGA"],
            "request__distance": [1500, 300],
            "applied__traffic@1": [[0, 2], [0, 3]],
            "weather__wind": [4.0, None],
            "traffic__flights": [2, 0],
            "computed__far": ["far", "near"],
        },
        schema_overrides={"not_yet_valid": pl.String},
    )


async def check(frame: pl.DataFrame) -> Any:
    inputs = TrainingSetInputs(cast("S3Tables", MemoryTables()), "memory")
    inputs.write_weather(WEATHER)
    inputs.archive_landings(LANDINGS)
    inputs.tables.write("s3://memory/predictions/a.parquet", frame)
    return await inputs.skew_check().check(SkewRequest("p", "s3://memory/predictions/"), RecordingJob())


async def test_predictions_in_their_own_types_are_compared() -> None:
    report = await check(predictions())
    assert (2, 6, 2) == (report.predictions, report.values, report.exact_predictions)


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_column_of_any_stored_type_is_compared_or_refused_by_name(column: str) -> None:
    failures = []
    for kind, series in STORED.items():
        try:
            report = await check(predictions().with_columns(series.alias(column)))
        except FlywheelError as error:
            named = column.removeprefix("entity__").removeprefix("request__")
            if isinstance(error, Internal) or named not in error.message:
                failures.append(f"{kind}: {error!r} {error.message}")
        except Exception as error:  # the job would end as INTERNAL
            failures.append(f"{kind}: {type(error).__name__} {str(error)[:200]}")
        else:
            assert 2 == report.predictions
    assert [] == failures
