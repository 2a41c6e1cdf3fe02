"""A hash of a table's logical content: the same rows give the same hash, whatever file, compression or chunk they lie in."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import polars as pl


def content_hash(frame: pl.DataFrame) -> str:
    """SHA-256, hex, over column names and types, then column by column: validity, then values of the rows in order.

    Nulls hash as a clear validity bit and a zero; every NaN is the same NaN; text and lists hash their lengths too.
    """
    digest = hashlib.sha256()
    header = {"rows": frame.height, "columns": [[name, str(dtype)] for name, dtype in frame.schema.items()]}
    digest.update(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    for column in frame.iter_columns():
        _update(digest, column)
    return digest.hexdigest()


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
        values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)
    digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
