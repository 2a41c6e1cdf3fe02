"""Late events: windows leave out events that arrived more than `allowed_lateness` after their event time.

An event arrived at its created time if its source declares one and the event has it, else when Kafka stored
its record. The archive keeps the latter (`tables.sources.ARRIVED`), so that online and offline decide by the
same two numbers. History can be replayed into a source that declares a created time.
"""

from __future__ import annotations

import polars as pl
from prometheus_client import Counter

from flywheel_common.arrays import Ints, Mask
from flywheel_feature.definitions.model import Source

LATE_EVENTS = Counter(
    "flywheel_feature_late_events",
    "Events that the windows of a view left out, as they were applied (online) or joined (offline)",
    ["source", "view", "store"],
)


def late_events(event: Ints, arrived: Ints, allowed: int) -> Mask:
    """[n] which events are late; `arrived` 0: unknown, never late. Times are microseconds."""
    late: Mask = (arrived - event > allowed) & (arrived != 0)
    return late


def late_rows(source: Source, arrived: str) -> pl.Expr:
    """`late_events` for a frame with the source's times; `arrived` names the column of arrival times."""
    event = pl.col(source.timestamp_field).dt.epoch("us")
    times = [pl.col(arrived)]
    if source.created_field:
        times.insert(0, pl.col(source.created_field).dt.epoch("us"))
    late = (pl.coalesce(times) - event > source.allowed_lateness) & (pl.coalesce(times) != 0)
    return late.fill_null(False)
