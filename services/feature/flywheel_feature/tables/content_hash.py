"""A hash of the logical content of a table, independent of files, compression and chunks.

Rows are hashed in blocks of BLOCK_ROWS, and the table's hash is the hash of the block digests. Parts of a
table that does not fit into memory can therefore be hashed separately, in different processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import polars as pl

BLOCK_ROWS: Final = 50_000


def content_hash(frame: pl.DataFrame) -> str:
    """SHA-256 (hex) of the number of rows, the column names and types, and the digest of each block."""
    return combined_hash(frame.height, named_types(frame), block_digests(frame))


def named_types(frame: pl.DataFrame) -> list[tuple[str, str]]:
    """(name, type) of each column."""
    return [(name, str(dtype)) for name, dtype in frame.schema.items()]


def combined_hash(rows: int, columns: Iterable[Sequence[str]], blocks: Iterable[str]) -> str:
    """The hash of a table with these (name, type) columns and these block digests, in order."""
    digest = hashlib.sha256()
    header = {"rows": rows, "columns": [list(column) for column in columns]}
    digest.update(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    for block in blocks:
        digest.update(bytes.fromhex(block))
    return digest.hexdigest()


def block_digests(frame: pl.DataFrame) -> list[str]:
    """SHA-256 (hex) of each block: per column the validity bits, then the values in row order.

    A null is a clear validity bit and the value zero. All NaNs are equal, and so are both zeros. Texts and
    lists are preceded by their lengths.
    """
    digests = []
    for start in range(0, frame.height, BLOCK_ROWS):
        digest = hashlib.sha256()
        for column in frame.slice(start, BLOCK_ROWS).iter_columns():
            _update(digest, column)
        digests.append(digest.hexdigest())
    return digests


def _update(digest: hashlib._Hash, column: pl.Series) -> None:
    digest.update(np.packbits(column.is_not_null().to_numpy().astype(np.bool_), bitorder="little").tobytes())
    dtype = column.dtype
    if isinstance(dtype, (pl.List, pl.Array)):
        lists = column.cast(pl.List(dtype.inner))
        digest.update(lists.list.len().fill_null(0).to_numpy().astype("<u4").tobytes())
        _update(
            digest,
            lists.drop_nulls().list.explode(empty_as_null=False, keep_nulls=False)
            if len(lists)
            else lists.list.explode(),
        )
        return
    if dtype == pl.String or dtype == pl.Binary:
        blobs = column.cast(pl.Binary).fill_null(b"")
        digest.update(blobs.bin.size().to_numpy().astype("<u4").tobytes())
        digest.update(b"".join(blobs.to_list()))
        return
    if isinstance(dtype, pl.Datetime):
        column = column.dt.epoch("us")
    if dtype == pl.Boolean:
        column = column.cast(pl.UInt8)
    values = column.fill_null(0).to_numpy()
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values) + values.dtype.type(0)
    digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
