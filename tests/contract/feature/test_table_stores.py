"""Contract tests for Parquet tables: in memory and on S3."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.store.s3.table_files import S3TableFiles
from flywheel_feature.tables.ports import Between
from flywheel_local.s3 import S3

T0 = datetime(2013, 1, 1, tzinfo=UTC)
MICROS = 1_356_998_400_000_000  # date -u -d 2013-01-01 +%s, times 10^6
HOUR = 3_600_000_000
PARQUET = TableFormat.PARQUET


@pytest.fixture(params=["memory", "s3"])
def tables(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return MemoryTables()
    s3: S3 = request.getfixturevalue("s3")
    return S3TableFiles(
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=request.getfixturevalue("bucket"),
    )


def rows(first: int, count: int = 3) -> pl.DataFrame:
    """Rows with the numbers first, first + 1, …; row i has the time T0 + i hours."""
    numbers = range(first, first + count)
    at = pl.Series("at", [T0 + timedelta(hours=i) for i in numbers], dtype=pl.Datetime("us", "UTC"))
    return pl.DataFrame([pl.Series("n", numbers, dtype=pl.Int64), pl.Series("s", map(str, numbers)), at])


def numbers(frame: pl.DataFrame) -> list[int]:
    return frame.get_column("n").to_list()


def test_a_file_reads_back_and_is_replaced(tables: Any) -> None:
    uri = tables.bucket_uri("t/one.parquet")
    tables.write(uri, rows(0))
    assert_frame_equal(rows(0), tables.read(uri, ["n", "s", "at"]))
    assert {"n": pl.Int64, "s": pl.String, "at": pl.Datetime("us", "UTC")} == tables.schema(uri)
    tables.write(uri, rows(5, 1))
    assert [5] == numbers(tables.read(uri, ["n"]))


def test_table_consists_of_its_visible_files_by_path(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    for key, first in (("b/2", 6), ("a", 0), ("b/1", 3), ("_hidden/x", 90), (".staging/x", 90)):
        tables.write(f"{base}{key}.parquet", rows(first))
    assert list(range(9)) == numbers(tables.read(base, ["n"]))
    assert [f"{base}{key}.parquet" for key in ("a", "b/1", "b/2")] == [
        piece.uri for piece in tables.snapshot(base, PARQUET).files
    ]
    assert [f.uri for f in tables.files(base)] == [p.uri for p in tables.snapshot(base, PARQUET).files]
    between = Between("at", MICROS + 2 * HOUR, MICROS + 7 * HOUR)
    assert [2, 3, 4, 5, 6] == numbers(tables.read(base, ["n"], between))


def test_hive_folders_become_columns(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    tables.write(f"{base}origin=JFK/a.parquet", rows(0, 1))
    tables.write(f"{base}origin=L%20A/a.parquet", rows(1, 1))
    snapshot = tables.snapshot(base, PARQUET)
    assert [(("origin", "JFK"),), (("origin", "L A"),)] == [piece.partition for piece in snapshot.files]
    assert pl.String == snapshot.stored["origin"]
    read = pl.concat(tables.read_piece(piece, ["n", "origin"]) for piece in snapshot.files)
    assert {"n": [0, 1], "origin": ["JFK", "L A"]} == read.to_dict(as_series=False)


def test_pieces_have_the_rows_of_their_files_and_nulls_for_missing_columns(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    for i, count in enumerate((3, 0, 2)):
        tables.write(f"{base}{i}.parquet", rows(10 * i, count))
    pieces = tables.pieces(tables.snapshot(base, PARQUET).files, 1000)
    assert [3, 2] == [piece.rows for piece in pieces], "a file without rows has no piece"
    read = [tables.read_piece(piece, ["n", "absent"]) for piece in pieces]
    assert [0, 1, 2, 20, 21] == [n for frame in read for n in numbers(frame)]
    assert all(frame.get_column("absent").null_count() == frame.height for frame in read)
    late = tables.read_piece(pieces[0], ["n"], Between("at", low=MICROS + HOUR))
    assert [1, 2] == numbers(late)
    tables.remove(base)
    with pytest.raises(FailedPrecondition) as gone:
        tables.read_piece(pieces[0], ["n"])
    assert "TABLE_CHANGED" == gone.value.reason


def test_files_are_read_in_the_requested_order(tables: Any) -> None:
    one, two = (tables.bucket_uri(f"t/{n}.parquet") for n in (1, 2))
    tables.write(one, rows(0, 2))
    tables.write(two, rows(5, 1).drop("s"))
    found = tables.read_files([two, one], ["n", "s"])
    assert {"n": [5, 0, 1], "s": [None, "0", "1"]} == found.to_dict(as_series=False)
    assert (["n"], 0) == ((empty := tables.read_files([], ["n"])).columns, empty.height)
    assert [2, 1] == tables.row_counts([one, two])


def test_rewritten_file_has_another_stamp(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    tables.write(f"{base}a.parquet", rows(0))
    (before,) = tables.files(base)
    assert [before] == tables.files(base)
    tables.write(f"{base}a.parquet", rows(0, 5))
    (after,) = tables.files(base)
    assert (before.uri, before.table) == (after.uri, after.table)
    assert before.stamp != after.stamp


def test_a_file_is_always_split_into_the_same_batches(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    tables.write(f"{base}origin=JFK/a.parquet", rows(0, 7))
    (file,) = tables.files(base)

    def batches(skip: int = 0, where: Between | None = None) -> list[tuple[int, list[int]]]:
        found = tables.batches(file, ["n", "origin", "absent"], where, 3, skip)
        return [(number, numbers(frame)) for number, frame in found]

    assert [(1, [0, 1, 2]), (2, [3, 4, 5]), (3, [6])] == batches()
    assert [(2, [3, 4, 5]), (3, [6])] == batches(skip=1)
    (_, frame), *_ = tables.batches(file, ["n", "origin", "absent"], None, 3, 0)
    assert {"n", "origin"} == set(frame.columns)
    assert ["JFK"] * 3 == frame.get_column("origin").to_list()
    assert [5, 6] == [n for _, ns in batches(where=Between("at", low=MICROS + 5 * HOUR)) for n in ns]


def test_remove_deletes_a_prefix_except_the_kept_one(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    for key in ("a/1", "a/2", "b/1"):
        tables.write(f"{base}{key}.parquet", rows(0))
    tables.remove(base, keep=f"{base}b/")
    assert [f"{base}b/1.parquet"] == [f.uri for f in tables.files(base)]
    tables.remove(base)
    tables.remove(base)
    assert [] == tables.older_than(base, -60.0)


def test_only_files_older_than_the_limit_are_old(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    tables.write(f"{base}a.parquet", rows(0))
    assert [] == tables.older_than(base, 3600.0)
    assert [f"{base}a.parquet"] == tables.older_than(base, -3600.0)


def test_modification_times_of_many_files_are_correct(tables: Any) -> None:
    base = tables.bucket_uri("young/")
    for n in range(60):
        tables.write(f"{base}{n}.parquet", rows(n))
    assert [] == tables.older_than(base, 3600.0)


def test_missing_tables_and_invalid_addresses_are_refused(tables: Any) -> None:
    for uri in (tables.bucket_uri("none/"), tables.bucket_uri("none.parquet")):
        for read in (
            lambda u=uri: tables.read(u, ["n"]),
            lambda u=uri: tables.schema(u),
            lambda u=uri: tables.snapshot(u, PARQUET),
            lambda u=uri: tables.files(u),
        ):
            with pytest.raises(NotFound) as absent:
                read()
            assert "UNKNOWN_TABLE" == absent.value.reason
    for uri in ("file:///etc/passwd", "s3://b", "s3://bucket/a/../b", "s3://B/x"):
        with pytest.raises(InvalidArgument) as wrong:
            tables.read(uri, ["n"])
        assert "INVALID_URI" == wrong.value.reason
