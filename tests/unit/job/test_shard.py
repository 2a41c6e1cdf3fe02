"""A rank's share of a data set: completeness, resumption, batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pyarrow import fs

from flywheel_job.data.parquet import ParquetFiles
from flywheel_job.data.shard import Shard
from flywheel_job.errors import EmptyDataSet, UnusableTrainingSet

ROWS = 1000


@pytest.fixture
def files(tmp_path: Path) -> ParquetFiles:
    """Rows 0 … 999 in two files with row groups of 64 rows."""
    return dataset(tmp_path, pl.DataFrame({"row": range(ROWS), "text": [str(n) for n in range(ROWS)]}))


def dataset(folder: Path, frame: pl.DataFrame, columns: list[str] | None = None) -> ParquetFiles:
    (folder / "b" / "set").mkdir(parents=True)
    half = frame.height // 2 + 100
    for number, part in enumerate([frame.head(half), frame.slice(half)]):
        part.write_parquet(folder / "b" / "set" / f"part-{number}.parquet", row_group_size=64)
    return ParquetFiles(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "s3://b/set/", columns)


def shard(files: ParquetFiles, rank: int, ranks: int, **options: Any) -> Shard:
    return Shard(files, rank=rank, ranks=ranks, seed=7, window_rows=200, **{"batch_size": 32} | options)


def rows(batches: Any) -> list[int]:
    return [int(row) for batch in batches for row in batch["row"]]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("same", [True, False])
def test_the_ranks_read_every_row_once_in_equally_many_batches(
    files: ParquetFiles, ranks: int, same: bool
) -> None:
    shards = [shard(files, rank, ranks, same_batches=same) for rank in range(ranks)]
    expected = {len(one) for one in shards}
    batches = [list(one) for one in shards]
    assert {len(own) for own in batches} == expected
    assert len(expected) == 1
    assert sorted(rows(batch for own in batches for batch in own)) == list(range(ROWS))


def test_every_epoch_has_another_order(files: ParquetFiles) -> None:
    one = shard(files, 0, 1)
    first, second = rows(one), rows(one)
    assert one.epoch == 2
    assert first != second
    assert sorted(first) == sorted(second)


def test_text_is_kept_and_belongs_to_its_row(files: ParquetFiles) -> None:
    batch = next(iter(shard(files, 0, 1)))
    assert list(batch["text"]) == [str(int(row)) for row in batch["row"]]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("done", [0, 1, 7, 16])
def test_a_restored_shard_continues_with_the_same_batches(files: ParquetFiles, same: bool, done: int) -> None:
    first = shard(files, 1, 2, same_batches=same)
    iterator = iter(first)
    for _ in range(done):
        next(iterator)
    position = first.position()
    expected = rows(iterator)
    again = shard(files, 1, 2, same_batches=same)
    again.restore([{**position, "ranges": []}, position])
    assert rows(again) == expected
    assert again.epoch == 1


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 3), (3, 4)])
def test_another_number_of_ranks_reads_the_rows_that_are_left(
    files: ParquetFiles, before: int, after: int, same: bool
) -> None:
    first = [shard(files, rank, before, same_batches=same, batch_size=12 // before) for rank in range(before)]
    seen: list[int] = []
    for one in first:
        iterator = iter(one)
        seen += rows(next(iterator) for _ in range(5))
        iterator.close()  # type: ignore[attr-defined]
    positions = [one.position() for one in first]
    second = [shard(files, rank, after, same_batches=same, batch_size=12 // after) for rank in range(after)]
    for one in second:
        one.restore(positions)
    seen += rows(batch for one in second for batch in one)
    assert max(Counter(seen).values()) == 1
    assert ROWS - len(seen) < before + after


def test_lists_become_matrices_and_null_numbers_nan(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"tokens": [[n, n + 1, n + 2] for n in range(300)], "x": [None if n % 2 else n for n in range(300)]}
    )
    batch = next(iter(shard(dataset(tmp_path, frame), 0, 1, shuffle=False, batch_size=4)))
    assert batch["tokens"].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert np.array_equal(batch["x"].numpy(), [0, np.nan, 2, np.nan], equal_nan=True)


def test_lists_of_different_lengths_are_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"tokens": [[1] * (1 + n % 2) for n in range(300)]})
    with pytest.raises(UnusableTrainingSet, match="lists of different lengths"):
        next(iter(shard(dataset(tmp_path, frame), 0, 1)))


def test_a_data_set_with_fewer_rows_than_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataSet, match="0 rows"):
        shard(dataset(tmp_path, pl.DataFrame({"row": []}, schema={"row": pl.Int64})), 0, 1)


def test_an_absent_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableTrainingSet, match="no column 'nope'"):
        dataset(tmp_path, pl.DataFrame({"row": range(300)}), ["row", "nope"])


def test_leaving_the_loop_early_stops_the_reading_thread(files: ParquetFiles) -> None:
    import threading

    for _ in range(3):
        for _ in shard(files, 0, 1):
            break
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
