"""Every physical Parquet type as every declared type: both paths read equal values or refuse alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_common.errors import FailedPrecondition
from flywheel_feature.definitions.model import DataType, ParquetSource
from tests.support.builders.both_paths import KEY, T0, TIME, BothPaths, LocalTables
from tests.support.builders.parquet_types import PARQUET, VECTOR_SIZE

KIND = ParquetSource("s3://local/t")


@pytest.fixture
def tables(tmp_path: Path) -> LocalTables:
    return LocalTables(tmp_path / "bucket")


ACCEPTED = [stored for stored, (_, expected) in PARQUET.items() if expected]


@pytest.mark.parametrize("stored", ACCEPTED)
async def test_accepted_types_have_equal_values_on_both_paths(tables: LocalTables, stored: str) -> None:
    array, expected = PARQUET[stored]
    columns = {f"as_{kind.name.lower()}": kind for kind in expected}
    values = dict.fromkeys(columns, array)
    tables.write_arrow("t/a.parquet", pa.table({KEY: ["A", "B"], TIME: [T0] * 2, **values}))
    both = BothPaths(tables, KIND, columns, vector_size=VECTOR_SIZE)
    assert await both.materialize() == ""
    wanted = {"A": (None,) * len(columns), "B": tuple(expected.values())}
    assert await both.online(["A", "B"]) == wanted
    assert await both.offline(["A", "B"]) == wanted


@pytest.mark.parametrize("stored", PARQUET)
async def test_all_other_types_are_refused_alike_on_both_paths(tables: LocalTables, stored: str) -> None:
    array, expected = PARQUET[stored]
    tables.write_arrow("t/bad.parquet", pa.table({KEY: ["A", "B"], TIME: [T0] * 2, "x": array}))
    tables.write_arrow("t/good.parquet", pa.table({KEY: ["C"], TIME: [T0], "x": pa.nulls(1)}))
    for kind in DataType:
        if kind in expected:
            continue
        both = BothPaths(tables, KIND, {"x": kind}, vector_size=VECTOR_SIZE)
        left_out = await both.materialize()
        (reason,) = re.findall(r"s3://local/t/bad\.parquet: (Column 'x', row 1: .*)\.$", left_out)
        assert await both.online(["A", "B", "C"]) == {"C": (None,)}
        with pytest.raises(FailedPrecondition) as refused:
            await both.offline(["A"])
        assert refused.value.reason == "SOURCE_MISMATCH"
        assert f"s3://local/t/bad.parquet: {reason}" in refused.value.message


@pytest.mark.parametrize(
    ("time", "accepted"),
    [
        (datetime(2024, 5, 1, 12, 0, 0, 7, tzinfo=UTC), True),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), True),
        # As nanoseconds of 64 bits these would be times in 1816 and 2184.
        (datetime(9999, 12, 31, tzinfo=UTC), False),
        (datetime(1600, 1, 1, tzinfo=UTC), False),
    ],
)
async def test_times_of_96_bits_are_exact_or_refused(
    tables: LocalTables, time: datetime, accepted: bool
) -> None:
    table = pa.table({KEY: ["A"], TIME: [T0], "x": pa.array([time], pa.timestamp("us", "UTC"))})
    with tables._fs.open_output_stream("local/t.parquet") as stream:
        pq.write_table(table, stream, use_deprecated_int96_timestamps=True, store_schema=False)
    both = BothPaths(tables, ParquetSource("s3://local/t.parquet"), {"x": DataType.TIMESTAMP})
    left_out = await both.materialize()
    if accepted:
        assert left_out == ""
        assert await both.online(["A"]) == await both.offline(["A"]) == {"A": (time,)}
        return
    assert "a time must lie between the years 1642 and 2100" in left_out
    with pytest.raises(FailedPrecondition, match="a time must lie between the years 1642 and 2100"):
        await both.offline(["A"])


KEYS = [
    (stored, kind)
    for kind in (DataType.STRING, DataType.INT64)
    for stored, (_, expected) in PARQUET.items()
    if expected.get(kind) is not None
]


@pytest.mark.parametrize(("stored", "kind"), KEYS)
async def test_keys_of_every_accepted_type_join(tables: LocalTables, stored: str, kind: DataType) -> None:
    array, expected = PARQUET[stored]
    tables.write_arrow("t/a.parquet", pa.table({KEY: array, TIME: [T0] * 2, "x": [1.0, 2.0]}))
    both = BothPaths(tables, KIND, {"x": DataType.FLOAT64}, key=kind)
    assert await both.materialize() == ""
    key = expected[kind]
    assert await both.online([key]) == await both.offline([key]) == {key: (2.0,)}


@pytest.mark.parametrize("stored", [s for s, (_, e) in PARQUET.items() if e.get(DataType.TIMESTAMP)])
async def test_event_times_of_every_accepted_type_are_read(tables: LocalTables, stored: str) -> None:
    array, _ = PARQUET[stored]
    tables.write_arrow("t/a.parquet", pa.table({KEY: ["A", "B"], TIME: array, "x": [1.0, 2.0]}))
    both = BothPaths(tables, KIND, {"x": DataType.FLOAT64})
    assert await both.materialize() == ""
    # The first row has no time.
    assert await both.online(["A", "B"]) == {"B": (2.0,)}
    assert await both.offline(["A", "B"]) == {"A": (None,), "B": (2.0,)}
