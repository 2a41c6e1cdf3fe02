"""A tile layout with all aggregations of a field x, deltas of events, and the values of windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_feature.definitions.model import HOUR, SECOND, Aggregation, AggregationFunction
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader
from flywheel_feature.windows.tile_writing import Delta, Events, partials, state_of

F = AggregationFunction
TILE = 600 * SECOND
START = 1_357_000_000 * SECOND // TILE * TILE
AGGREGATIONS = [
    Aggregation(f.name.lower(), f, "x", 2 * HOUR, 3 if f == F.LAST_N else 0)
    for f in F
    if f != F.APPROX_DISTINCT
]
LAYOUT = TileLayout(AGGREGATIONS, TILE)


def event_time(minute: int) -> int:
    """Microseconds."""
    return START + minute * 60 * SECOND


def event_value(number: int) -> float | None:
    """Event i has the value i; each fifth event has none."""
    return None if number % 5 == 4 else float(number)


def delta(numbers: Sequence[int], minutes: Sequence[int], id_prefix: str = "") -> Delta:
    """The delta of the events with these numbers; event i happens in minutes[i] after START."""
    chosen = np.array(list(numbers), np.int64)
    time = np.array([event_time(minutes[i]) for i in chosen], np.int64)
    values = {"x": (chosen.astype(np.float64), chosen % 5 != 4)}
    ranks = event_ranks([f"{id_prefix}{i}" for i in chosen.tolist()])
    return partials(LAYOUT, Events(np.zeros(chosen.size, np.int64), time, time, ranks, values))[0]


def windows(state: bytes | None, minute: int) -> list[Any]:
    """The values of all windows of a state at a time, with lists flattened."""
    read = TileReader(LAYOUT).read([state], np.array([event_time(minute)], np.int64))
    values = [column[0] if mask[0] else None for column, mask in read.columns]
    flat: list[Any] = []
    for value in values:
        flat += value.tolist() if isinstance(value, np.ndarray) else [value]
    return flat


def windows_of_events(
    numbers: Sequence[int], minutes: Sequence[int], minute: int, prefix: str = ""
) -> list[Any]:
    """The values of all windows after exactly these events."""
    return windows(state_of(LAYOUT, delta(numbers, minutes, prefix), {}), minute)
