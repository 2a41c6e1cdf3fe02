"""Parquet files as others write them: what is materialized online equals what a training set reads."""

from __future__ import annotations

import itertools
import random
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_common.errors import FailedPrecondition, FlywheelError, InvalidArgument
from flywheel_feature.definitions.model import DataType, ParquetSource, TableFormat
from flywheel_feature.tables.ports import Between, Piece, TableFile
from flywheel_feature.tables.sources import SourceReader
from tests.support.builders.both_paths import KEY, T0, TIME, BothPaths, LocalTables

D = DataType
TABLE = "s3://local/t"


@pytest.fixture
def tables(tmp_path: Path) -> LocalTables:
    return LocalTables(tmp_path / "bucket")


def rows(*keys: str, **columns: Any) -> pa.Table:
    """One row per key at T0; a column is a list of values or an Arrow array."""
    times = pa.array([T0] * len(keys), pa.timestamp("us", "UTC"))
    return pa.table({KEY: list(keys), TIME: times, **columns})


async def answers(both: BothPaths, *keys: Any) -> dict[Any, Any]:
    """The values of both paths, which must be equal; an entity without a row has nulls offline."""
    assert await both.materialize() == ""
    online, offline = await both.online(keys), await both.offline(keys)
    missing = (None,) * len(both.view.features)
    assert {key: online.get(key, missing) for key in keys} == offline
    return offline


@pytest.mark.parametrize("uri", ["s3://local/t", "s3://local/t/", "s3://local//t//"])
async def test_hive_folders_take_their_declared_type_on_both_paths(tables: LocalTables, uri: str) -> None:
    for store in ("01", "1", "a%20b"):
        file = rows("-", x=[store]).drop([KEY])
        tables.write_arrow(f"t/{KEY}={store}/day=7/part.parquet", file)
    both = BothPaths(tables, ParquetSource(uri), {"x": D.STRING, "day": D.INT64})
    expected = {"01": ("01", 7), "1": ("1", 7), "a b": ("a%20b", 7), "1.0": (None, None)}
    assert await answers(both, *expected) == expected


async def test_integer_folders_are_integers_on_both_paths(tables: LocalTables) -> None:
    tables.write_arrow(f"t/{KEY}=01/part.parquet", rows("-", x=[1.5]).drop([KEY]))
    tables.write_arrow(f"t/{KEY}=__HIVE_DEFAULT_PARTITION__/part.parquet", rows("-", x=[9.0]).drop([KEY]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64}, key=D.INT64)
    assert await answers(both, 1, 2) == {1: (1.5,), 2: (None,)}


async def test_a_column_of_the_file_counts_more_than_its_folder(tables: LocalTables) -> None:
    tables.write_arrow("t/x=7/a.parquet", rows("A", x=[1.5]))
    tables.write_arrow("t/x=8/b.parquet", rows("B"))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64})
    assert await answers(both, "A", "B") == {"A": (1.5,), "B": (8.0,)}


async def test_text_in_a_file_is_not_parsed_as_a_folder_is(tables: LocalTables) -> None:
    tables.write_arrow("t/x=7/a.parquet", rows("A", x=["7"]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.INT64})
    assert "row 0: '7' (stored as large_string) does not fit INT64" in await both.materialize()
    with pytest.raises(FailedPrecondition, match="does not fit INT64") as refused:
        await both.offline(["A"])
    assert refused.value.reason == "SOURCE_MISMATCH"
    assert "x=7/a.parquet" in refused.value.message


FILES = {"old": rows("A"), "new": rows("B", gust=[2.5]), "newer": rows("C", gust=[3.5], x=[1.0])}


@pytest.mark.parametrize("order", list(itertools.permutations(FILES)))
async def test_an_added_column_is_null_in_older_files(tables: LocalTables, order: tuple[str, ...]) -> None:
    for place, name in enumerate(order):
        tables.write_arrow(f"t/{place}.parquet", FILES[name])
    both = BothPaths(tables, ParquetSource(TABLE), {"gust": D.FLOAT64, "x": D.FLOAT64})
    assert await answers(both, "A", "B", "C") == {"A": (None, None), "B": (2.5, None), "C": (3.5, 1.0)}


async def test_a_file_without_the_added_column_may_come_last(tables: LocalTables) -> None:
    """The run that reads the last file reads no file that has the column."""
    both = BothPaths(tables, ParquetSource(TABLE), {"gust": D.FLOAT64})
    tables.write_arrow("t/1.parquet", FILES["new"])
    await answers(both, "B")
    tables.write_arrow("t/2.parquet", FILES["old"])
    assert await answers(both, "A", "B") == {"A": (None,), "B": (2.5,)}


async def test_an_added_column_is_null_in_rows_that_were_pushed_before(tables: LocalTables) -> None:
    both = BothPaths(tables, ParquetSource(TABLE), {"gust": D.FLOAT64})
    tables.write_arrow("pushes/1.parquet", FILES["old"])
    both.push("s3://local/pushes/1.parquet")
    assert await answers(both, "A") == {"A": (None,)}
    tables.write_arrow("t/1.parquet", FILES["new"])
    assert await answers(both, "A", "B") == {"A": (None,), "B": (2.5,)}


async def test_a_field_in_no_file_is_refused_on_both_paths(tables: LocalTables) -> None:
    for place in range(3):
        tables.write_arrow(f"t/{place}.parquet", rows(f"K{place}", x=[1.0]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64, "typo": D.FLOAT64})
    for read in (both.materialize(), both.offline(["K0"])):
        with pytest.raises(FailedPrecondition, match="no column 'typo'") as refused:
            await read
        assert refused.value.reason == "SOURCE_MISMATCH"


@pytest.mark.parametrize("column", [KEY, TIME])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_file_without_a_key_or_time_is_named(tables: LocalTables, column: str, place: int) -> None:
    bad, good = f"t/{place}.parquet", f"t/{1 - place}.parquet"
    tables.write_arrow(bad, rows("A", x=[1.0]).drop([column]))
    tables.write_arrow(good, rows("B", x=[2.0]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64})
    reason = f"s3://local/{bad}: there is no column '{column}'"
    assert reason in await both.materialize()
    assert await both.online(["A", "B"]) == {"B": (2.0,)}
    with pytest.raises(FailedPrecondition) as refused:
        await both.offline(["B"])
    assert reason in refused.value.message


def parquet_bytes(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    return stream.getvalue().to_pybytes()


def not_utf8() -> pa.Array:
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "text": (b"store,at,x\nA,1,2\n", "CORRUPT_TABLE"),
    "empty": (b"", "CORRUPT_TABLE"),
    "cut": (parquet_bytes(rows("A", x=[1.0]))[:-20], "CORRUPT_TABLE"),
    "cut data": (b"PAR1" + parquet_bytes(rows("A", x=[1.0]))[200:], "CORRUPT_TABLE"),
    "type": (parquet_bytes(rows("A", x=["one"])), "SOURCE_MISMATCH"),
    "list": (parquet_bytes(rows("A", x=[[1.0]])), "SOURCE_MISMATCH"),
    "twice": (
        parquet_bytes(pa.table([["A"], [T0], [1.0], [2.0]], [KEY, TIME, "x", "x"])),
        "UNSUPPORTED_FORMAT",
    ),
    "not UTF-8": (parquet_bytes(rows("A", x=[1.0]).set_column(0, KEY, not_utf8())), "CORRUPT_TABLE"),
}


@pytest.mark.parametrize("name", ["a", "z"])
@pytest.mark.parametrize("bad", BAD_FILES)
async def test_a_bad_file_never_hides_good_ones_and_is_named(
    tables: LocalTables, bad: str, name: str
) -> None:
    content, reason = BAD_FILES[bad]
    for place, key in enumerate("BC"):
        tables.write_arrow(f"t/good{place}.parquet", rows(key, x=[float(place)]))
    with tables._fs.open_output_stream(f"local/t/{name}.parquet") as stream:
        stream.write(content)
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64})
    left_out = await both.materialize()
    assert left_out.startswith("1 files were left out, all others are online: ")
    assert left_out.count(f"s3://local/t/{name}.parquet") == 1
    assert await both.online(["A", "B", "C"]) == {"B": (0.0,), "C": (1.0,)}
    with pytest.raises(FlywheelError) as refused:
        await both.offline(["B"])
    assert reason == refused.value.reason
    assert f"s3://local/t/{name}.parquet" in refused.value.message


async def test_a_column_that_exists_twice_is_no_fault_unless_it_is_read(tables: LocalTables) -> None:
    names = [KEY, TIME, "x", "y", "y"]
    tables.write_arrow("t/a.parquet", pa.table([["A"], [T0], [1.0], [2.0], ["3"]], names))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64})
    assert await answers(both, "A") == {"A": (1.0,)}


async def test_hidden_files_and_folders_are_not_data(tables: LocalTables) -> None:
    tables.write_arrow("t/a.parquet", rows("A", x=[1.0]))
    for hidden in ("_temporary/b", ".spark/b", "_b", ".b", "c/_delta_log/b"):
        tables.write_arrow(f"t/{hidden}.parquet", rows("B", x=[2.0]))
    tables.write_arrow("t/_day=3/c.parquet", rows("C", x=[3.0]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64})
    assert await answers(both, "A", "B", "C") == {"A": (1.0,), "B": (None,), "C": (3.0,)}


NAMES = ["Order Amount", "Größe", "2nd price", "a.b", "x,y", "SELECT", "ORDER_AMOUNT", "_hidden", "f'\"`"]


@pytest.mark.parametrize("stored", NAMES)
async def test_a_column_of_any_name_is_mapped_to_a_field(tables: LocalTables, stored: str) -> None:
    tables.write_arrow("t/a.parquet", rows("A", **{stored: [1.5]}))
    tables.write_arrow("t/b.parquet", rows("B"))
    kind = ParquetSource(TABLE, columns={stored: "order_amount"})
    both = BothPaths(tables, kind, {"order_amount": D.FLOAT64})
    tables.write_arrow("pushes/1.parquet", rows("C", order_amount=[2.5]))
    both.push("s3://local/pushes/1.parquet")
    expected = {"A": (1.5,), "B": (None,), "C": (2.5,)}
    assert await answers(both, *expected) == expected
    # In partitions, the files of the table and the pushed ones are read piece by piece.
    reader = SourceReader(tables, both.archive)
    pieces = await reader.pieces(both.source, [KEY, "order_amount"], 1, pushed_to=both.view)
    found = reader.read_pieces(both.source, [KEY, "order_amount"], pieces, high=2**62)
    assert found.select(KEY, "order_amount").rows() == [("A", 1.5), ("B", None), ("C", 2.5)]


async def test_keys_times_and_folders_are_mapped(tables: LocalTables) -> None:
    table = rows("A", "B", x=[1.0, 2.0]).rename_columns(["Store Nr", "When?", "x"])
    tables.write_arrow("t/Day Of=07/a.parquet", table)
    columns = {"Store Nr": KEY, "When?": TIME, "Day Of": "day"}
    both = BothPaths(tables, ParquetSource(TABLE, columns=columns), {"x": D.FLOAT64, "day": D.STRING})
    assert await answers(both, "A", "B") == {"A": (1.0, "07"), "B": (2.0, "07")}


async def test_two_columns_may_swap_their_names(tables: LocalTables) -> None:
    tables.write_arrow("t/a.parquet", rows("A", x=[1.0], y=[2.0]))
    both = BothPaths(tables, ParquetSource(TABLE, columns={"x": "y", "y": "x"}), {"x": D.INT64, "y": D.INT64})
    assert await answers(both, "A") == {"A": (2, 1)}


@pytest.mark.parametrize("both_columns", [True, False])
async def test_a_real_column_of_a_mapped_name_is_refused(tables: LocalTables, both_columns: bool) -> None:
    mapped = {"X": [1.0]} if both_columns else {}
    tables.write_arrow("t/bad.parquet", rows("A", x=[9.0], **mapped))
    tables.write_arrow("t/good.parquet", rows("B", X=[2.0]))
    both = BothPaths(tables, ParquetSource(TABLE, columns={"X": "x"}), {"x": D.FLOAT64})
    reason = "s3://local/t/bad.parquet: there is a column 'x', and the field is mapped from column 'X'"
    assert reason in await both.materialize()
    assert await both.online(["A", "B"]) == {"B": (2.0,)}
    with pytest.raises(FailedPrecondition) as refused:
        await both.offline(["A"])
    assert reason in refused.value.message


async def test_a_mapped_column_in_no_file_is_refused(tables: LocalTables) -> None:
    tables.write_arrow("t/a.parquet", rows("A", y=[1.0]))
    both = BothPaths(tables, ParquetSource(TABLE, columns={"Typo": "x"}), {"x": D.FLOAT64})
    for read in (both.materialize(), both.offline(["A"])):
        with pytest.raises(FailedPrecondition, match="no column 'Typo'"):
            await read


OUTSIDE: dict[str, tuple[DataType, Any, str]] = {
    "infinity": (D.FLOAT64, float("-inf"), "infinity is not accepted"),
    "infinity in a list": (D.FLOAT64_LIST, [1.0, float("inf")], "infinity is not accepted"),
    "a time after 2100": (D.TIMESTAMP, datetime(9999, 12, 31, tzinfo=UTC), "between the years 1642 and 2100"),
    "a long text": (D.STRING, "é" * 131_073, "larger than 262144 bytes"),
    "long bytes": (D.BYTES, b"x" * 262_145, "larger than 262144 bytes"),
    "a long text in a list": (D.STRING_LIST, ["", "x" * 262_145], "larger than 262144 bytes"),
}


@pytest.mark.parametrize("name", OUTSIDE)
async def test_a_value_outside_the_limits_is_refused_on_both_paths(tables: LocalTables, name: str) -> None:
    kind, value, reason = OUTSIDE[name]
    tables.write_arrow("t/bad.parquet", rows("A", "B", x=[None, value]))
    tables.write_arrow("t/good.parquet", rows("C", x=pa.nulls(1)))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": kind})
    named = f"s3://local/t/bad.parquet: Column 'x', row 1: .*{reason}"
    assert re.search(named, await both.materialize())
    assert await both.online(["A", "B", "C"]) == {"C": (None,)}
    with pytest.raises(FailedPrecondition, match=named) as refused:
        await both.offline(["A"])
    assert refused.value.reason == "SOURCE_MISMATCH"


@pytest.mark.parametrize("value", [1.7e308, "é" * 131_072, datetime(2099, 12, 31, tzinfo=UTC)])
async def test_a_value_within_the_limits_is_read_on_both_paths(tables: LocalTables, value: Any) -> None:
    kinds = {float: D.FLOAT64, str: D.STRING, datetime: D.TIMESTAMP}
    tables.write_arrow("t/a.parquet", rows("A", x=[value]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": kinds[type(value)]})
    assert await answers(both, "A") == {"A": (value,)}


@pytest.mark.parametrize("column", [KEY, "when"])
async def test_a_spine_file_without_a_key_or_time_is_named(tables: LocalTables, column: str) -> None:
    """The check of the call reads the first file only."""
    tables.write_arrow("t/a.parquet", rows("A", x=[1.0]))
    both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64})
    spine = pa.table({KEY: ["A"], "when": [T0 + timedelta(days=1)]})
    tables.write_arrow("spine/1.parquet", spine)
    tables.write_arrow("spine/2.parquet", spine)
    assert await both.joined("s3://local/spine") == [("A", 1.0)] * 2
    tables.write_arrow("spine/2.parquet", spine.drop([column]).append_column("x", [[1.0]]))
    with pytest.raises(
        InvalidArgument, match=f"s3://local/spine/2.parquet has no column '{column}'"
    ) as refused:
        await both.joined("s3://local/spine")
    assert refused.value.reason == "WRONG_SPINE"


def damaged(chance: random.Random, content: bytes) -> bytes:
    """A file with a few bytes changed, removed or added, often in its footer."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 2, 5, 50])):
        at = chance.randrange(chance.choice([0, max(len(changed) - 900, 0)]), len(changed))
        match chance.randrange(4):
            case 0:
                del changed[at : at + chance.randrange(1, 50)]
            case 1:
                changed[at:at] = chance.randbytes(chance.randrange(1, 20))
            case _:
                changed[at : at + 1] = chance.randbytes(1)
    return bytes(changed)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
async def test_a_damaged_file_is_named_whatever_the_damage(tables: LocalTables, compression: str) -> None:
    chance = random.Random(compression)
    names = [f"K{i}" for i in range(50)]
    table = rows(*names, x=[i / 7 for i in range(50)], d=pa.array(names).dictionary_encode())
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression=compression, row_group_size=20)
    tables.write_arrow("t/good.parquet", rows("good", x=[1.0], d=["d"]))
    path, columns = "s3://local/t/bad.parquet", [KEY, TIME, "x", "d"]
    refused: set[tuple[str, bool]] = set()
    for _ in range(60):
        with tables._fs.open_output_stream("local/t/bad.parquet") as file:
            file.write(damaged(chance, stream.getvalue().to_pybytes()))
        (footer,) = tables.footers([path])
        reads = (
            partial(tables.snapshot, path, TableFormat.PARQUET),
            partial(tables.read_piece, Piece(path), columns, Between(TIME, 0, 2**62)),
            lambda: list(tables.batches(TableFile(path, ""), columns, None, 10, 0)),
        )
        for read in reads:
            try:
                read()
            except FlywheelError as error:
                refused.add((error.reason, path in error.message))
        if isinstance(footer, FlywheelError):
            both = BothPaths(tables, ParquetSource(TABLE), {"x": D.FLOAT64, "d": D.STRING})
            assert path in await both.materialize()
            assert await both.online(["good"]) == {"good": (1.0, "d")}
    assert ("CORRUPT_TABLE", True) in refused
    assert refused <= {("CORRUPT_TABLE", True), ("UNSUPPORTED_FORMAT", True)}
