"""Tables whose writing fails or is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_common.errors import FlywheelError
from tests.support.builders.both_paths import LocalTables


class Interrupted(pl.DataFrame):
    """Ray ends a worker by SystemExit, at any place."""

    def to_arrow(self, *_: Any, **__: Any) -> Any:
        raise SystemExit


UNWRITABLE = pl.DataFrame({"n": [{}]}, schema={"n": pl.Struct([])})


@pytest.mark.parametrize(
    ("frame", "error"), [(UNWRITABLE, FlywheelError), (Interrupted({"n": [9]}), SystemExit)]
)
def test_a_write_that_fails_leaves_the_former_table(
    tmp_path: Path, frame: pl.DataFrame, error: type[BaseException]
) -> None:
    tables = LocalTables(tmp_path)
    uri = tables.bucket_uri("t/a.parquet")
    tables.write(uri, pl.DataFrame({"n": [1, 2]}))
    for key in ("t/a.parquet", "t/b.parquet"):
        with pytest.raises(error):
            tables.write(tables.bucket_uri(key), frame)
    assert [uri] == [file.uri for file in tables.files(tables.bucket_uri("t/"))]
    assert [1, 2] == tables.read(uri, ["n"])["n"].to_list()
