"""Training sets as values: the request, and the built set."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flywheel_feature.definitions.model import DataType, Field

EVENT_TIMESTAMP = "event_timestamp"
LABEL = "label"


class JoinMode(enum.IntEnum):
    """Which feature values a spine row gets: those known at its time, or the latest."""

    POINT_IN_TIME = 1
    NAIVE_LATEST = 2


class Compute(enum.IntEnum):
    """Where a join is computed; the result does not depend on it."""

    BY_SIZE = 0
    LOCAL = 1
    RAY = 2


@dataclass(frozen=True, slots=True)
class SourceSpine:
    """The rows of a source with start <= timestamp_field < end (microseconds)."""

    source: str
    """Source id."""
    timestamp_field: str
    label: str
    """SQL over source fields."""
    start: int
    end: int
    known_before: int = 0
    """Only rows whose event time is not later; 0: no limit."""
    extra_fields: tuple[str, ...] = ()
    """Fields that become extra columns of the training set."""


@dataclass(frozen=True, slots=True)
class FileSpine:
    """The rows of Parquet files that the caller wrote."""

    uri: str
    timestamp_field: str
    label_field: str = ""
    ignored_columns: tuple[str, ...] = ()
    """Columns that do not become extra columns of the training set."""
    as_of: int = 0
    """The time of all rows in microseconds, in place of `timestamp_field`; 0: the rows have their own."""

    @property
    def time_columns(self) -> tuple[str, ...]:
        """The column with the time of each row; none with `as_of`."""
        return () if self.as_of else (self.timestamp_field,)


Spine = SourceSpine | FileSpine


@dataclass(frozen=True, slots=True)
class TrainingSetRequest:
    """What BuildTrainingSet asks for."""

    project: str
    training_set_id: str
    feature_set: str
    """Feature set id."""
    feature_set_version: int
    """0: the latest."""
    spine: Spine
    mode: JoinMode = JoinMode.POINT_IN_TIME
    short_feature_names: bool = False
    """Columns are called `feature` instead of `view__feature`."""
    compute: Compute = Compute.BY_SIZE

    @property
    def name(self) -> str:
        return f"projects/{self.project}/trainingSets/{self.training_set_id}"


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """The distribution of one column, used as drift reference (flywheel.feature.v1.ColumnProfile)."""

    name: str
    data_type: DataType
    count: int
    null_count: int
    mean: float = 0.0
    stddev: float = 0.0
    min: float = 0.0
    max: float = 0.0
    edges: tuple[float, ...] = ()
    bin_counts: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()
    category_counts: tuple[int, ...] = ()
    other_count: int = 0
    vector_size: int = 0
    projections: tuple[ColumnProfile, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """A built training set."""

    project: str
    id: str
    feature_set: str
    """Resource name with its version."""
    view_versions: tuple[str, ...]
    spine: Spine
    mode: JoinMode
    uri: str
    content_hash: str
    row_count: int
    label_mean: float
    min_time: int
    max_time: int
    """Event times of the first and the last row, microseconds; 0 for a set without rows."""
    schema: tuple[Field, ...]
    profile: tuple[ColumnProfile, ...]
    unlabelled_count: int
    created_at: datetime
    build_seconds: float
    short_feature_names: bool = False
    source_versions: Mapping[str, int] = field(default_factory=dict)
    """Resource name of a source → the version of its Delta table that was read."""
    extra_columns: tuple[str, ...] = ()
    """Columns of the spine that are no join key, time, request field or label; they are no features."""
    late_events: Mapping[str, int] = field(default_factory=dict)
    """Resource name of a view version → the events that its windows left out (windows/lateness.py)."""

    @property
    def name(self) -> str:
        return f"projects/{self.project}/trainingSets/{self.id}"
