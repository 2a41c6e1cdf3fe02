"""Reads the archive of predictions for the skew check, in frames whose rows have the same columns.

A model version logs the features of its own feature set. A feature without a column was not served, and is
not compared (as opposed to a feature that was served as null).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from flywheel_feature.definitions.frame_types import converted
from flywheel_feature.definitions.model import DataType, TableFormat
from flywheel_feature.offline.errors import WrongArchive
from flywheel_feature.tables.file_columns import read_columns
from flywheel_feature.tables.ports import Between, Piece, Tables

PREDICTION_ID, EVENT_TIME, FEATURE_SET = "prediction_id", "event_time", "feature_set"
NOT_YET_VALID = "not_yet_valid"
"""Names of the features with this status, separated by commas; files without such a feature lack it."""
_SOURCE = "source"
_FROM_MODEL = ("MODEL", "PREDICTION_SOURCE_MODEL", "1")
READERS = 8
"""Files read at the same time."""


def read_answers(
    tables: Tables, uri: str, start: int | None, end: int | None, limit: int
) -> list[pl.DataFrame]:
    """The predictions that a model made with a feature set, with start <= event time < end (microseconds).

    At most `limit` (0: all) are returned, evenly spread in time. Each frame is ordered by event time and
    prediction id. Raises FailedPrecondition WRONG_ARCHIVE for a file that is not a prediction log, and the
    errors of `Tables`.
    """
    files = tables.snapshot(uri, TableFormat.PARQUET).files
    where = Between(EVENT_TIME, start, end)
    by_schema: dict[tuple[object, ...], list[pl.DataFrame]] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for frame in readers.map(lambda file: _answers(tables, file, where), files):
            if frame.height:
                by_schema.setdefault(tuple(frame.schema.items()), []).append(frame)
    order = [EVENT_TIME, PREDICTION_ID]
    frames = [pl.concat(parts).sort(order, maintain_order=True) for parts in by_schema.values()]
    return _sample(frames, limit)


def _answers(tables: Tables, file: Piece, where: Between) -> pl.DataFrame:
    required = (PREDICTION_ID, EVENT_TIME, FEATURE_SET)
    stored = {*tables.schema(file.uri), *(name for name, _ in file.partition)}
    missing = [c for c in required if c not in stored]
    if missing:
        raise WrongArchive(f"{file.uri} is not a prediction archive: it has no column {missing[0]!r}.")
    columns = sorted(c for c in stored if c in (*required, _SOURCE, NOT_YET_VALID) or "__" in c)
    frame = read_columns(tables, file, columns, where)
    for name in (PREDICTION_ID, FEATURE_SET, _SOURCE, NOT_YET_VALID):
        if name in columns and not _is_text(frame.schema[name]):
            raise WrongArchive(
                f"{file.uri} is not a prediction archive: column {name!r} is stored as {frame.schema[name]}."
            )
    if _SOURCE in columns:
        # Default and cached answers were not computed from these features.
        frame = frame.filter(pl.col(_SOURCE).cast(pl.String).is_in(_FROM_MODEL))
    frame = frame.with_columns(pl.col(FEATURE_SET).cast(pl.String)).filter(pl.col(FEATURE_SET) != "")
    return frame.with_columns(
        converted(frame, EVENT_TIME, DataType.TIMESTAMP), pl.col(PREDICTION_ID).cast(pl.String)
    )


def _is_text(stored: pl.DataType) -> bool:
    """Text, or a number that stands for one."""
    return stored.is_integer() or isinstance(stored, pl.String | pl.Categorical | pl.Enum | pl.Null)


def _sample(frames: Sequence[pl.DataFrame], limit: int) -> list[pl.DataFrame]:
    """`limit` rows of all frames, evenly spread in time."""
    rows = sum(f.height for f in frames)
    if not limit or rows <= limit:
        return list(frames)
    places = pl.concat(
        f.select(EVENT_TIME, PREDICTION_ID, frame=pl.lit(i), row=pl.int_range(pl.len()))
        for i, f in enumerate(frames)
    ).sort(EVENT_TIME, PREDICTION_ID, maintain_order=True)
    chosen = places[[i * rows // limit for i in range(limit)]]
    parts = [f[chosen.filter(pl.col("frame") == i).get_column("row")] for i, f in enumerate(frames)]
    return [part for part in parts if part.height]
