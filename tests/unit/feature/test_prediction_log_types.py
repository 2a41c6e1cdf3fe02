"""Files of any stored types that a skew check reads are predictions, or refused by name."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from flywheel_common.errors import FlywheelError
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.offline.prediction_log import read_answers
from flywheel_feature.offline.skew import comparable, mismatched

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


RECOMPUTED: dict[str, pl.Series] = {
    "BOOL": pl.Series([True, None]),
    "INT64": pl.Series([1, None]),
    "FLOAT32": pl.Series([1.5, None], dtype=pl.Float32),
    "STRING": pl.Series(["x", None]),
    "BYTES": pl.Series([b"\xff", None]),
    "TIMESTAMP": pl.Series([AT, None]),
    "INT64_LIST": pl.Series([[1], None]),
    "STRING_LIST": pl.Series([["a"], None]),
    "TIMESTAMP_LIST": pl.Series([[AT], None]),
    "FLOAT64_VECTOR": pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float64, 2)),
}
LISTS: dict[str, pl.Series] = {
    "list of lists": pl.Series([[[1]], None]),
    "list of nulls": pl.Series([[None], None]),
    "list of structs": pl.Series([[{"a": 1}], None]),
}


@pytest.mark.parametrize("feature", RECOMPUTED)
def test_features_of_any_stored_type_are_compared_or_not_comparable(feature: str) -> None:
    recomputed = RECOMPUTED[feature]
    for served in (STORED | LISTS | RECOMPUTED).values():
        if comparable(served.dtype, recomputed.dtype):
            assert len(mismatched(served, recomputed)) == 2
    assert comparable(recomputed.dtype, recomputed.dtype)
    assert mismatched(recomputed, recomputed).to_list() == [False, False]


def test_text_and_numbers_are_not_comparable_with_lists_and_structs() -> None:
    for feature in ("BOOL", "INT64", "STRING", "BYTES", "TIMESTAMP"):
        for stored in (STORED["list"], STORED["struct"], STORED["duration"]):
            assert not comparable(stored.dtype, RECOMPUTED[feature].dtype)
    assert not comparable(STORED["int"].dtype, RECOMPUTED["INT64_LIST"].dtype)
    assert not comparable(STORED["binary"].dtype, RECOMPUTED["INT64"].dtype)


def test_bytes_and_text_are_compared_as_bytes() -> None:
    assert mismatched(pl.Series(["a", "b", None]), pl.Series([b"a", b"\xff", b""])).to_list() == [
        False,
        True,
        True,
    ]
    assert mismatched(pl.Series([b"\xff"]), pl.Series(["a"])).to_list() == [True]
