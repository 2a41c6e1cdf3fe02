"""Files of any stored types that a skew check reads are predictions, or refused by name."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from flywheel_common.errors import FlywheelError
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.offline.prediction_log import read_answers

AT = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
VALID: dict[str, pl.Series] = {
    "prediction_id": pl.Series(["a", "b"]),
    "event_time": pl.Series([AT, AT]).cast(pl.Datetime("us", "UTC")),
    "feature_set": pl.Series(["projects/p/featureSets/s/versions/1"] * 2),
    "source": pl.Series(["MODEL", "MODEL"]),
}
STORED: dict[str, pl.Series] = {
    "string": pl.Series(["x", ""]),
    "int": pl.Series([1, 2]),
    "float": pl.Series([1.5, float("nan")]),
    "bool": pl.Series([True, None]),
    "null": pl.Series([None, None]),
    "date": pl.Series([dt.date(2024, 5, 1)] * 2),
    "duration": pl.Series([dt.timedelta(1)] * 2),
    "list": pl.Series([["a"], None]),
    "struct": pl.Series([{"a": 1}] * 2),
    "binary": pl.Series([b"a", b"\xff"]),
    "categorical": pl.Series(["MODEL", "b"], dtype=pl.Categorical),
}


def answers(**change: pl.Series) -> list[pl.DataFrame]:
    tables = MemoryTables()
    tables.write("s3://bucket/log/a.parquet", pl.DataFrame(VALID | change))
    return read_answers(tables, "s3://bucket/log/", None, None, 0)


@pytest.mark.parametrize("column", VALID)
@pytest.mark.parametrize("stored", STORED)
def test_a_column_of_any_type_is_read_or_refused_by_name(column: str, stored: str) -> None:
    refused = ""
    try:
        found = answers(**{column: STORED[stored]})
    except FlywheelError as error:
        refused = error.message
    else:
        assert sum(frame.height for frame in found) <= 2
    assert refused == "" or repr(column) in refused


def test_text_and_what_stands_for_text_is_read() -> None:
    (frame,) = answers(prediction_id=STORED["int"], source=STORED["int"])
    assert frame.get_column("prediction_id").to_list() == ["1"]
    (frame,) = answers(source=STORED["categorical"])
    assert frame.get_column("prediction_id").to_list() == ["a"]
