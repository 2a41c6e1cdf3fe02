"""Contract tests for Parquet tables: in memory and on S3."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from flywheel_common.errors import FailedPrecondition, FlywheelError, InvalidArgument, NotFound
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.store.s3.table_files import S3TableFiles
from flywheel_feature.tables.file_columns import read_columns
from flywheel_feature.tables.ports import Between, Footer
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
    return S3TableFiles.connect(
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
    # A Hive folder is visible, whatever the name of its column begins with.
    for key, first in (("b/2", 6), ("a", 0), ("b/1", 3), ("_n=1/x", 9), ("c/_d=1/x", 12)):
        tables.write(f"{base}{key}.parquet", rows(first))
    for hidden in ("_hidden/x", ".staging/x", "_n=2/.x", "b/_x", ".d=1/x"):
        tables.write(f"{base}{hidden}.parquet", rows(90))
    assert [*range(9, 12), *range(9), *range(12, 15)] == numbers(tables.read(base, ["n"]))
    assert [f"{base}{key}.parquet" for key in ("_n=1/x", "a", "b/1", "b/2", "c/_d=1/x")] == [
        piece.uri for piece in tables.snapshot(base, PARQUET).files
    ]
    assert [f.uri for f in tables.files(base)] == [p.uri for p in tables.snapshot(base, PARQUET).files]
    between = Between("at", MICROS + 2 * HOUR, MICROS + 7 * HOUR)
    assert [2, 3, 4, 5, 6] == numbers(tables.read(f"{base}a.parquet", ["n"], between)) + numbers(
        tables.read(f"{base}b", ["n"], between)
    )


def test_hive_folders_become_columns(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    tables.write(f"{base}origin=JFK/a.parquet", rows(0, 1))
    tables.write(f"{base}origin=L%20A/a.parquet", rows(1, 1))
    tables.write(f"{base}year%20of=__HIVE_DEFAULT_PARTITION__/a.parquet", rows(2, 1))
    snapshot = tables.snapshot(base, PARQUET)
    assert [(("origin", "JFK"),), (("origin", "L A"),), (("year of", None),)] == [
        piece.partition for piece in snapshot.files
    ]
    assert [piece.partition for piece in snapshot.files] == [f.partition for f in tables.files(base)]
    assert pl.String == snapshot.stored["origin"]
    read = pl.concat(read_columns(tables, piece, ["n", "origin"]) for piece in snapshot.files[:2])
    assert {"n": [0, 1], "origin": ["JFK", "L A"]} == read.to_dict(as_series=False)


def test_pieces_have_the_rows_of_their_files_without_missing_columns(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    for i, count in enumerate((3, 0, 2)):
        tables.write(f"{base}{i}.parquet", rows(10 * i, count))
    pieces = tables.pieces(tables.snapshot(base, PARQUET).files, 1000)
    assert [3, 2] == [piece.rows for piece in pieces], "a file without rows has no piece"
    read = [tables.read_piece(piece, ["n", "absent"]) for piece in pieces]
    assert [0, 1, 2, 20, 21] == [n for frame in read for n in numbers(frame)]
    assert [["n"], ["n"]] == [frame.columns for frame in read]
    null = read_columns(tables, pieces[0], ["n", "absent"]).get_column("absent")
    assert (pl.Null, [None] * 3) == (null.dtype, null.to_list())
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
    found = tables.read_files([two, one], ["n", "s", "absent"])
    expected = {"n": [5, 0, 1], "s": [None, "0", "1"], "absent": [None] * 3}
    assert expected == found.to_dict(as_series=False)
    assert (["n"], 0) == ((empty := tables.read_files([], ["n"])).columns, empty.height)


def test_footers_name_columns_and_the_files_that_cannot_be_read(tables: Any) -> None:
    one, two = (tables.bucket_uri(f"t/{n}.parquet") for n in (1, 2))
    tables.write(one, rows(0, 2))
    tables.write(two, rows(5, 1).drop("s"))
    found = tables.footers([one, tables.bucket_uri("t/none.parquet"), two, "file:///etc/passwd"])
    assert [Footer(2, frozenset({"n", "s", "at"})), Footer(1, frozenset({"n", "at"}))] == found[::2]
    assert ["UNKNOWN_TABLE", "INVALID_URI"] == [error.reason for error in found[1::2]]


@pytest.mark.parametrize("file", ["", "a.parquet"])
def test_every_spelling_of_an_address_is_the_same_table(tables: Any, file: str) -> None:
    tables.write(tables.bucket_uri("t/day=1/a.parquet"), rows(0, 2))
    tables.write(tables.bucket_uri("tt/a.parquet"), rows(5, 2))
    root = tables.bucket_uri("").rstrip("/")
    expected = tables.files(tables.bucket_uri(f"t/day=1/{file}"))
    assert [tables.bucket_uri("t/day=1/a.parquet")] == [f.uri for f in expected]
    for spelling in ("t/day=1", "t/day=1/", "t//day=1//", "/t/day=1"):
        uri = f"{root}/{spelling}/{file}" if file else f"{root}/{spelling}"
        for end in ("", "/"):
            assert expected == tables.files(uri + end)
            assert [f.uri for f in expected] == [f.uri for f in tables.snapshot(uri + end, PARQUET).files]
            assert [0, 1] == numbers(tables.read(uri + end, ["n"]))
            assert tables.schema(uri + end).keys() >= {"n", "s", "at"}
    (whole,) = tables.files(f"{root}/t")
    assert (("day", "1"),) == whole.partition


def test_rewritten_file_has_another_stamp(tables: Any) -> None:
    base = tables.bucket_uri("t/")
    tables.write(f"{base}a.parquet", rows(0))
    (before,) = tables.files(base)
    assert [before] == tables.files(base)
    tables.write(f"{base}a.parquet", rows(0, 5))
    (after,) = tables.files(base)
    assert before.uri == after.uri
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
    assert ["n"] == frame.columns
    assert (("origin", "JFK"),) == file.partition
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


@pytest.mark.parametrize("table_format", [PARQUET, TableFormat.DELTA])
def test_missing_buckets_and_wrong_credentials_are_refused(
    s3: S3, bucket: str, table_format: TableFormat
) -> None:
    for name, secret, reason in (
        (bucket, "another-secret", "INVALID_URI"),
        ("bucket-that-is-missing", s3.secret_key, "UNKNOWN_TABLE"),
    ):
        tables = S3TableFiles.connect(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=secret, bucket=name
        )
        for address in ("t/", "t/403.parquet"):
            with pytest.raises(FlywheelError) as refused:
                tables.snapshot(tables.bucket_uri(address), table_format)
            assert reason == refused.value.reason
