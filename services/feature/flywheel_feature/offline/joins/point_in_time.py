"""The point-in-time join: for every spine row, the values that were known at its time.

For a spine row with keys k and time t:
- candidates are the rows with keys k, event time <= t and created time <= t; a null created time means that
  the row was known at its event time;
- the row with the latest event time is taken; of several, the one with the latest created time; of several,
  the one read last (files in path order, rows in file order);
- a stale row (definitions/ttl.py) counts as no row, and null keys match nothing.
The result has one row per spine row, in the order of the spine.

One as-of join is enough, also with created times. A row becomes known at max(event time, created time).
Number the rows by (event time, created time, read order): the row for t has the highest number of all rows
known by t, which is a running maximum over the rows in the order in which they became known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_feature.definitions.frame_types import TIMESTAMP
from flywheel_feature.definitions.ttl import is_stale

MATCHED_TIME = "__event_time"
"""Column of the result: event time of the row taken; null if no row matched."""

_NEVER = np.iinfo(np.int64).min
_I, _T, _R, _K = "__row", "__time", "__rank", "__key"


def microseconds(column: pl.Expr) -> pl.Expr:
    """Timestamps of any unit and zone as Int64 microseconds since 1970 UTC; naive times are UTC."""
    return column.dt.epoch("us")


def known_microseconds(event_time: str, created_time: str | None) -> pl.Expr:
    """When rows became known: the later of event time and, where not null, created time; microseconds."""
    event = microseconds(pl.col(event_time))
    return event if created_time is None else pl.max_horizontal(event, microseconds(pl.col(created_time)))


def as_of_join(
    spine: pl.DataFrame,
    rows: pl.DataFrame,
    *,
    keys: Sequence[str],
    spine_time: str,
    event_time: str,
    created_time: str | None = None,
    ttl: int = 0,
    columns: Mapping[str, str],
) -> pl.DataFrame:
    """The values for every row of `spine`, in its order (see the docstring of this module).

    `ttl` is in microseconds, 0: none. `keys` are columns of both sides; `columns` maps columns of `rows` to
    their names in the result. Returns these columns and `MATCHED_TIME`, `spine.height` rows; time and memory
    O((n + m) log m).
    """
    if spine.height == 0 or rows.height == 0:
        return _nothing(spine.height, rows, columns)
    left = _spine_side(spine, keys, spine_time)
    known = rows.filter(pl.col(event_time).is_not_null(), *(pl.col(k).is_not_null() for k in keys))
    if known.height == 0:
        return _nothing(spine.height, rows, columns)
    taken = (
        _take_latest(left, known, keys, event_time, columns)
        if created_time is None
        else _take_known(left, known, keys, event_time, created_time, columns)
    )
    return _in_spine_order(spine.height, left, taken, columns, ttl)


def latest_join(
    spine: pl.DataFrame,
    rows: pl.DataFrame,
    *,
    keys: Sequence[str],
    event_time: str,
    created_time: str | None = None,
    columns: Mapping[str, str],
) -> pl.DataFrame:
    """The newest values at any time: the leaky join that a point-in-time join is compared with."""
    if spine.height == 0 or rows.height == 0:
        return _nothing(spine.height, rows, columns)
    latest = latest_rows(rows, keys=keys, event_time=event_time, created_time=created_time)
    picked = latest.select(
        *keys, microseconds(pl.col(event_time)).alias(_T), *(pl.col(a).alias(b) for a, b in columns.items())
    )
    joined = spine.select(keys).join(picked, on=list(keys), how="left", maintain_order="left")
    return joined.select(
        *columns.values(), pl.from_epoch(_T, "us").dt.replace_time_zone("UTC").alias(MATCHED_TIME)
    )


def latest_rows(
    rows: pl.DataFrame, *, keys: Sequence[str], event_time: str, created_time: str | None = None
) -> pl.DataFrame:
    """The latest row per key, without null keys and null event times; the order is not defined."""
    known = rows.filter(pl.col(event_time).is_not_null(), *(pl.col(k).is_not_null() for k in keys))
    order = [pl.col(event_time)]
    if created_time is not None:
        order.append(pl.coalesce(created_time, event_time))
    return known.sort(order, maintain_order=True).unique(subset=list(keys), keep="last", maintain_order=False)


def _spine_side(spine: pl.DataFrame, keys: Sequence[str], spine_time: str) -> pl.DataFrame:
    """Keys, integer time and place, sorted by time; rows with a null time come first and match nothing."""
    return (
        spine.select(*keys, microseconds(pl.col(spine_time)).fill_null(_NEVER).alias(_T))
        .with_row_index(_I)
        .sort(_T)
    )


def _asof(left: pl.DataFrame, right: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """An as-of join on `_T` within equal keys; both sides are sorted by `_T`.

    Text keys and keys of several columns are joined by their hash, which is twice as fast. If a row found has
    another key with the same hash, the join is repeated with the keys themselves.
    """
    if not _hashable(left, right, keys):
        return _exact_asof(left, right, keys)
    key = _hash(keys)
    found = {k: f"__found_{k}" for k in keys}
    joined = _exact_asof(
        left.with_columns(key.alias(_K)), right.with_columns(key.alias(_K)).rename(found), [_K]
    )
    other = [pl.col(f).is_not_null() & pl.col(k).ne_missing(pl.col(f)) for k, f in found.items()]
    if joined.select(pl.any_horizontal(other).any()).item():
        return _exact_asof(left, right, keys)
    return joined.drop(_K, *found.values())


def _hash(keys: Sequence[str]) -> pl.Expr:
    return pl.col(keys[0]).hash() if len(keys) == 1 else pl.struct(keys).hash()


def _exact_asof(left: pl.DataFrame, right: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    # Polars cannot check sortedness within groups.
    return left.join_asof(right, on=_T, by=list(by), strategy="backward", check_sortedness=False)


def _hashable(left: pl.DataFrame, right: pl.DataFrame, keys: Sequence[str]) -> bool:
    types = [left.schema[k] for k in keys]
    return (
        types == [right.schema[k] for k in keys]
        and all(t in (pl.String, pl.Binary) or t.is_integer() for t in types)
        and (len(keys) > 1 or not types[0].is_integer())
    )


def _take_latest(
    left: pl.DataFrame, rows: pl.DataFrame, keys: Sequence[str], event_time: str, columns: Mapping[str, str]
) -> pl.DataFrame:
    right = rows.select(
        *keys,
        microseconds(pl.col(event_time)).alias(_T),
        *(pl.col(a).alias(b) for a, b in columns.items()),
    ).sort(_T, maintain_order=True)
    joined = _asof(left, right.with_columns(pl.col(_T).alias(_R)), keys)
    return joined.select(*columns.values(), pl.col(_R).alias(MATCHED_TIME))


def _take_known(
    left: pl.DataFrame,
    rows: pl.DataFrame,
    keys: Sequence[str],
    event_time: str,
    created_time: str,
    columns: Mapping[str, str],
) -> pl.DataFrame:
    event = microseconds(pl.col(event_time))
    ordered = (
        rows.select(
            *keys,
            event.alias(MATCHED_TIME),
            pl.coalesce(microseconds(pl.col(created_time)), event).alias("__created"),
            *(pl.col(a).alias(b) for a, b in columns.items()),
        )
        .sort(MATCHED_TIME, "__created", maintain_order=True)
        .with_row_index(_R)
    )
    right = (
        ordered.select(*keys, _R, pl.max_horizontal(MATCHED_TIME, "__created").alias(_T))
        .sort(_T, maintain_order=True)
        .with_columns(pl.col(_R).cum_max().over(list(keys)))
    )
    place = _asof(left, right, keys).get_column(_R)
    return ordered.select(pl.col(*columns.values(), MATCHED_TIME).gather(place))


def _in_spine_order(
    height: int, left: pl.DataFrame, taken: pl.DataFrame, columns: Mapping[str, str], ttl: int
) -> pl.DataFrame:
    found = pl.col(MATCHED_TIME)
    valid = found.is_not_null()
    if ttl:
        valid = valid & ~is_stale(left.get_column(_T), found, ttl)
    places: npt.NDArray[np.uint32] = np.empty(height, dtype=np.uint32)
    places[left.get_column(_I).to_numpy()] = np.arange(height, dtype=np.uint32)
    if ttl:
        taken = taken.with_columns(pl.when(valid).then(pl.all()).otherwise(None))
    place = pl.Series(places)
    return taken.select(
        *(pl.col(name).gather(place) for name in columns.values()),
        pl.from_epoch(found.gather(place), "us").dt.replace_time_zone("UTC").alias(MATCHED_TIME),
    )


def _nothing(height: int, rows: pl.DataFrame, columns: Mapping[str, str]) -> pl.DataFrame:
    empty = {new: pl.Series([None] * height, dtype=rows.schema[old]) for old, new in columns.items()}
    return pl.DataFrame({**empty, MATCHED_TIME: pl.Series([None] * height, dtype=TIMESTAMP)})
