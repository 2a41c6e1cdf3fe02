"""Columns of files without a declared schema: spines and prediction logs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

from flywheel_feature.definitions.errors import WrongSpine
from flywheel_feature.tables.ports import Between, Piece, Tables


def read_columns(
    tables: Tables,
    piece: Piece,
    columns: Sequence[str],
    where: Between | None = None,
    *,
    required: Collection[str] = (),
) -> pl.DataFrame:
    """The columns of a piece as stored; one that its file lacks is the text of its folder, else null.

    Raises InvalidArgument WRONG_SPINE for a file without a required column, and what `Tables.read_piece`
    raises.
    """
    frame = tables.read_piece(piece, columns, where)
    folders = dict(piece.partition)
    wanted: list[pl.Series] = []
    for name in dict.fromkeys(columns):
        if name in frame.columns:
            wanted.append(frame.get_column(name))
        elif name in required and name not in folders:
            raise WrongSpine(f"{piece.uri} has no column {name!r}, which the spine needs.", field=name)
        else:
            kind = pl.String() if name in folders else pl.Null()
            one = pl.Series(name, [folders.get(name)], dtype=kind)
            wanted.append(one.new_from_index(0, frame.height))
    return pl.DataFrame(wanted)
