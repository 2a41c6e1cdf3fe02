"""The rows of spine files of any stored type are read, or refused with an error that names the column.

The types of the first file are checked when the training set is requested; other files may differ.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.errors import WrongSpine
from flywheel_feature.definitions.model import DataType, FeatureSet, Field
from flywheel_feature.offline import spines
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.model import LABEL, FileSpine

UTC_TIMES = pl.Series([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)] * 2)
NAIVE_TIMES = pl.Series([dt.datetime(2020, 1, 1)] * 2)
NUMBERS: dict[str, pl.Series] = {
    "int64": pl.Series([1, None]),
    "int8": pl.Series([1, -1], dtype=pl.Int8),
    "uint64": pl.Series([2**63 + 5, 1], dtype=pl.UInt64),
    "float64": pl.Series([1e30, 0.5]),
    "float32": pl.Series([0.1, float("nan")], dtype=pl.Float32),
    "decimal": pl.Series([Decimal("1.5"), Decimal("-2.25")]),
    "decimal of 38 digits": pl.Series([Decimal("9" * 38)] * 2),
    "bool": pl.Series([True, None]),
    "null": pl.Series([None, None]),
}
OTHERS: dict[str, pl.Series] = {
    "string": pl.Series(["x", "1"]),
    "numeric string": pl.Series(["0", "1"]),
    "date": pl.Series([dt.date(2020, 1, 1), dt.date(9999, 12, 31)]),
    "naive": NAIVE_TIMES.cast(pl.Datetime("ms")),
    "nanoseconds": NAIVE_TIMES.cast(pl.Datetime("ns")),
    "zone": UTC_TIMES.dt.convert_time_zone("Europe/Berlin"),
    "duration": pl.Series([dt.timedelta(1)] * 2),
    "time": pl.Series([dt.time(1)] * 2),
    "list": pl.Series([[1], [2]]),
    "list with null": pl.Series([["a", None]] * 2),
    "list of structs": pl.Series([[{"a": 1}]] * 2),
    "struct": pl.Series([{"a": 1}] * 2),
    "array": pl.Series([[1.0, 2.0]] * 2, dtype=pl.Array(pl.Float64, 2)),
    "categorical": pl.Series(["a", "b"], dtype=pl.Categorical),
    "enum": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
    "binary": pl.Series([b"a", b"\xff"]),
}
STORED = NUMBERS | OTHERS
KEYS = tuple(
    Field(f"key_{t.name}", t) for t in (DataType.STRING, DataType.INT64, DataType.BYTES, DataType.BOOL)
)
REQUEST = tuple(Field(f"request_{t.name}", t, 2 if "VECTOR" in t.name else 0) for t in DataType if t)
PLAN = JoinPlan(FeatureSet("p", "set", (), version=1, join_keys=KEYS, request_fields=REQUEST), (), (), ())
SPINE = FileSpine("s3://b/spine/", "at", "target")
VALID: dict[str, pl.Series] = {"at": UTC_TIMES, "target": NUMBERS["int64"]}
VALID |= {field.name: NUMBERS["null"] for field in (*KEYS, *REQUEST)}


def read(**change: pl.Series) -> pl.DataFrame:
    columns: dict[str, Any] = VALID | change
    return spines.in_order(spines.labelled(spines.from_file(PLAN, SPINE, pl.DataFrame(columns))))


def refusal(column: str, stored: pl.Series) -> str:
    """The message with which a stored column is refused; empty if it is read."""
    try:
        read(**{column: stored})
    except FlywheelError as error:
        return error.message
    return ""


@pytest.mark.parametrize("column", VALID)
def test_a_column_of_any_type_is_read_or_refused_by_name(column: str) -> None:
    messages = [refusal(column, stored) for stored in STORED.values()]
    assert [m for m in messages if m and repr(column) not in m] == []
    assert "" in messages


@pytest.mark.parametrize("stored", NUMBERS)
def test_numbers_and_bools_are_labels(stored: str) -> None:
    expected = [float(v) for v in NUMBERS[stored] if v is not None and v == v]
    assert sorted(expected) == sorted(read(target=NUMBERS[stored])[LABEL])


@pytest.mark.parametrize("stored", OTHERS)
def test_other_types_are_no_labels(stored: str) -> None:
    with pytest.raises(WrongSpine, match="not a number or bool"):
        read(target=OTHERS[stored])


def test_all_rows_of_a_spine_as_of_a_time_have_it() -> None:
    spine = FileSpine("s3://b/spine/", "", "target", as_of=1_700_000_000_123_456)
    columns = {name: stored for name, stored in VALID.items() if name != "at"}
    rows = spines.from_file(PLAN, spine, pl.DataFrame(columns))
    assert [dt.datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=dt.UTC)] * 2 == rows[
        "event_timestamp"
    ].to_list()
    assert "at" not in spines.required_columns(PLAN, spine)


def test_a_file_spine_has_either_a_time_column_or_one_time() -> None:
    stored = {name: values.dtype for name, values in VALID.items()}
    spines.check_file_spine(PLAN, FileSpine("s3://b/spine/", "", as_of=1), stored)
    for spine in (FileSpine("s3://b/spine/", ""), FileSpine("s3://b/spine/", "at", as_of=1)):
        with pytest.raises(WrongSpine, match="either timestamp_field or as_of"):
            spines.check_file_spine(PLAN, spine, stored)
