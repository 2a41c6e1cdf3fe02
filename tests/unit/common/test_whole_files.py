"""Streams whose file appears when their block ends."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from flywheel_common.storage.whole_files import whole_file

TABLE = pa.table({"n": [1, 2, 3]})


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_a_block_that_raises_leaves_the_former_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"former")

    def write(rows: int) -> None:
        with (
            whole_file(fs.LocalFileSystem(), str(path)) as stream,
            pq.ParquetWriter(stream, TABLE.schema) as writer,
        ):
            writer.write_table(TABLE)
            if not rows:
                raise error
            writer.write_table(TABLE.slice(0, rows))

    with pytest.raises(error):
        write(0)
    assert {path: b"former"} == {one: one.read_bytes() for one in tmp_path.iterdir()}
    write(2)
    assert [1, 2, 3, 1, 2] == pq.read_table(path)["n"].to_pylist()
    assert [path] == list(tmp_path.iterdir())
