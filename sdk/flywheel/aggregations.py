"""Windowed features of a stream view."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from flywheel.source_location import caller_location
from flywheel.types import duration
from flywheel_protos.feature.v1 import definitions_pb2 as pb


@dataclass(frozen=True)
class Aggregation:
    """One windowed feature, made by the functions below."""

    function: int
    field: str
    window: str | timedelta
    name: str = ""
    limit: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_created_at", caller_location())

    def proto(self) -> pb.Aggregation:
        return pb.Aggregation(
            name=self.name,
            function=self.function,  # type: ignore[arg-type]
            field=self.field,
            window=duration_message(self.window),
            limit=self.limit,
        )


def count(window: str, field: str = "", name: str = "") -> Aggregation:
    """Number of events in the window, or of non-null values of a field; 0 without any."""
    return Aggregation(pb.AGGREGATION_FUNCTION_COUNT, field, window, name)


def total(field: str, window: str, name: str = "") -> Aggregation:
    """Sum of a field. This and the functions below give null when the window has no value."""
    return Aggregation(pb.AGGREGATION_FUNCTION_SUM, field, window, name)


def mean(field: str, window: str, name: str = "") -> Aggregation:
    """Arithmetic mean of a field."""
    return Aggregation(pb.AGGREGATION_FUNCTION_MEAN, field, window, name)


def minimum(field: str, window: str, name: str = "") -> Aggregation:
    """Smallest value of a field."""
    return Aggregation(pb.AGGREGATION_FUNCTION_MIN, field, window, name)


def maximum(field: str, window: str, name: str = "") -> Aggregation:
    """Largest value of a field."""
    return Aggregation(pb.AGGREGATION_FUNCTION_MAX, field, window, name)


def std(field: str, window: str, name: str = "") -> Aggregation:
    """Population standard deviation of a field."""
    return Aggregation(pb.AGGREGATION_FUNCTION_STD, field, window, name)


def last(field: str, window: str, name: str = "") -> Aggregation:
    """Latest value of a field by event time."""
    return Aggregation(pb.AGGREGATION_FUNCTION_LAST, field, window, name)


def first(field: str, window: str, name: str = "") -> Aggregation:
    """Earliest value of a field by event time."""
    return Aggregation(pb.AGGREGATION_FUNCTION_FIRST, field, window, name)


def approx_distinct(field: str, window: str, name: str = "") -> Aggregation:
    """Estimated number of distinct values (HyperLogLog: standard error 2.3 %, nearly exact if few)."""
    return Aggregation(pb.AGGREGATION_FUNCTION_APPROX_DISTINCT, field, window, name)


def last_n(field: str, n: int, window: str, name: str = "") -> Aggregation:
    """The latest `n` values of a field, latest first."""
    return Aggregation(pb.AGGREGATION_FUNCTION_LAST_N, field, window, name, limit=n)


def duration_message(value: str | timedelta) -> Duration:
    """A duration like "7d" as protobuf."""
    result = Duration()
    result.FromTimedelta(duration(value))
    return result
