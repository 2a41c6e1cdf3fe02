"""Times, columns, states and read plans that unit tests of the feature service share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import DataType, Entity, Field, View
from flywheel_feature.online.read_plan import ReadPlan, plan_of_features

MINUTE = 60_000_000
EPOCH = datetime(2013, 1, 1, tzinfo=UTC)
EPOCH_MICROSECONDS = round(EPOCH.timestamp()) * 1_000_000
UTC_MICROSECONDS = pl.Datetime("us", "UTC")


def at(minute: float | None) -> datetime | None:
    """The time of a minute after EPOCH."""
    return None if minute is None else EPOCH + timedelta(minutes=minute)


def microseconds(minutes: Sequence[int]) -> Any:
    """[n] the same in microseconds."""
    return np.array([EPOCH_MICROSECONDS + minute * MINUTE for minute in minutes], np.int64)


def float_column(values: Sequence[float | None]) -> tuple[Any, Any]:
    """Values and the mask of those that are not None."""
    return np.array([v or 0.0 for v in values]), np.array([v is not None for v in values], np.bool_)


def object_array(*values: Any) -> Any:
    """An array of objects, also where the values are sequences of one length."""
    packed = np.empty(len(values), dtype=object)
    packed[:] = values
    return packed


def rows_of(columns: Sequence[tuple[Any, Any]], rows: int) -> list[list[Any]]:
    """Columns of (values, mask) as rows of Python values, None where there is no value."""

    def cell(values: Any, mask: Any, row: int) -> Any:
        value = values[row] if mask[row] else None
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    return [[cell(values, mask, row) for values, mask in columns] for row in range(rows)]


def is_close(a: Any, b: Any) -> bool:
    """Equal to a relative 1e-6; an empty list equals None."""
    if isinstance(a, list) or isinstance(b, list):
        return bool((a or None) == (b or None))
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7)


def plan_of_view(view: View, *features: str) -> ReadPlan:
    """The read plan of features of one view, whose entity has the text key `k`; all features by default."""
    entity = Entity("default", view.entity, (Field("k", DataType.STRING),))
    catalog = Catalog("default", 1, {view.entity: entity}, {}, {view.ref: view}, {}, {view.id: view})
    return plan_of_features(catalog, features or [f"{view.id}:*"])


async def run_event_loop(turns: int = 200) -> None:
    """Let the event loop run, so that everything that is ready happens."""
    for _ in range(turns):
        await asyncio.sleep(0)
