"""Definitions that users apply, as immutable values; times are microseconds.

A View or FeatureSet is one resolved version: every feature has its type, every reference its version.
An id is the last part of a resource name; `name` is the full resource name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


class DataType(enum.IntEnum):
    """Type of a value; the numbers are those of flywheel.types.v1.DataType."""

    BOOL = 1
    INT64 = 2
    FLOAT32 = 3
    FLOAT64 = 4
    STRING = 5
    BYTES = 6
    TIMESTAMP = 7
    BOOL_LIST = 12
    INT64_LIST = 13
    FLOAT32_LIST = 14
    FLOAT64_LIST = 15
    STRING_LIST = 16
    TIMESTAMP_LIST = 17
    FLOAT32_VECTOR = 24
    FLOAT64_VECTOR = 25

    @property
    def is_list(self) -> bool:
        return 12 <= self <= 17

    @property
    def is_vector(self) -> bool:
        return self >= 24

    @property
    def element(self) -> DataType:
        """Type of the elements of a list or vector; a scalar type itself."""
        if self.is_list:
            return DataType.TIMESTAMP if self == DataType.TIMESTAMP_LIST else DataType(self - 11)
        if self.is_vector:
            return DataType.FLOAT32 if self == DataType.FLOAT32_VECTOR else DataType.FLOAT64
        return self


KEY_TYPES = frozenset({DataType.BOOL, DataType.INT64, DataType.STRING, DataType.BYTES})
NUMERIC_TYPES = frozenset({DataType.BOOL, DataType.INT64, DataType.FLOAT32, DataType.FLOAT64})


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    data_type: DataType
    vector_size: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Description, owner and tags of a definition; a change makes no new version."""

    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entity:
    project: str
    id: str
    join_keys: tuple[Field, ...]
    metadata: Metadata = Metadata()

    @property
    def name(self) -> str:
        return f"projects/{self.project}/entities/{self.id}"


class TableFormat(enum.IntEnum):
    PARQUET = 1
    DELTA = 2
    ICEBERG = 3


@dataclass(frozen=True, slots=True)
class ParquetSource:
    uri: str
    format: TableFormat = TableFormat.PARQUET
    columns: Mapping[str, str] = field(default_factory=dict)
    """Stored name of a column → field; other fields have the name of their column."""
    type: Literal["parquet"] = "parquet"


@dataclass(frozen=True, slots=True)
class StreamSource:
    allowed_lateness: int = 0
    """Microseconds (windows/lateness.py); 0: no limit."""
    partitions: int = 0
    """0: the platform's default."""
    type: Literal["stream"] = "stream"


@dataclass(frozen=True, slots=True)
class RequestSource:
    type: Literal["request"] = "request"


class ValidationAction(enum.IntEnum):
    REJECT = 1
    QUARANTINE = 2
    FLAG = 3


@dataclass(frozen=True, slots=True)
class ValidationRule:
    min: float | None = None
    max: float | None = None
    max_null_rate: float | None = None
    allowed: tuple[str, ...] = ()
    action: ValidationAction = ValidationAction.REJECT


@dataclass(frozen=True, slots=True)
class FieldRule:
    """A validation rule on a field of a stream source."""

    field: str
    rule: ValidationRule


@dataclass(frozen=True, slots=True)
class Source:
    project: str
    id: str
    schema: tuple[Field, ...]
    timestamp_field: str
    """Field that holds the event time; empty for request sources."""
    created_field: str
    """Field that holds the time at which a row became known; empty: the event time."""
    kind: ParquetSource | StreamSource | RequestSource
    metadata: Metadata = Metadata()
    rules: tuple[FieldRule, ...] = ()
    """Checked when rows are pushed; stream sources only."""

    @property
    def name(self) -> str:
        return f"projects/{self.project}/sources/{self.id}"

    @property
    def is_stream(self) -> bool:
        return isinstance(self.kind, StreamSource)

    @property
    def allowed_lateness(self) -> int:
        """Microseconds; 0: no limit."""
        return self.kind.allowed_lateness if isinstance(self.kind, StreamSource) else 0

    def field(self, name: str) -> Field | None:
        return next((f for f in self.schema if f.name == name), None)

    @property
    def stored_names(self) -> Mapping[str, str]:
        """Field → name of its column in the files of the table, of the fields whose names differ."""
        columns = self.kind.columns if isinstance(self.kind, ParquetSource) else {}
        return {name: stored for stored, name in columns.items() if name != stored}


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    data_type: DataType
    vector_size: int = 0
    description: str = ""
    rules: tuple[ValidationRule, ...] = ()
    field: str = ""
    """Source field that it is read from; never empty in a resolved batch view."""


@dataclass(frozen=True, slots=True)
class BatchView:
    source: str
    """Source id."""
    features: tuple[Feature, ...]
    type: Literal["batch"] = "batch"


class AggregationFunction(enum.IntEnum):
    COUNT = 1
    SUM = 2
    MEAN = 3
    MIN = 4
    MAX = 5
    STD = 6
    LAST = 7
    FIRST = 8
    LAST_N = 9
    APPROX_DISTINCT = 10


@dataclass(frozen=True, slots=True)
class Aggregation:
    name: str
    function: AggregationFunction
    field: str
    """Source field; empty only for COUNT of events."""
    window: int
    """Microseconds, a multiple of the tile."""
    limit: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class StreamView:
    source: str
    aggregations: tuple[Aggregation, ...]
    filter: str = ""
    tile: int = 0
    """Microseconds; never 0 in a resolved view."""
    type: Literal["stream"] = "stream"


@dataclass(frozen=True, slots=True)
class Expression:
    feature: Feature
    sql: str


@dataclass(frozen=True, slots=True)
class OnDemandView:
    views: tuple[str, ...]
    """Ids of the views that it reads; `View.inputs` has the versions."""
    request_sources: tuple[str, ...]
    expressions: tuple[Expression, ...]
    type: Literal["on_demand"] = "on_demand"


@dataclass(frozen=True, slots=True, order=True)
class VersionRef:
    """One version of a view or feature set of the same project."""

    id: str
    version: int


@dataclass(frozen=True, slots=True)
class View:
    project: str
    id: str
    entity: str
    """Entity id; empty for on-demand views."""
    kind: BatchView | StreamView | OnDemandView
    ttl: int = 0
    """Microseconds after which a value is stale; 0: never."""
    freshness_sla: int = 0
    metadata: Metadata = Metadata()
    version: int = 0
    created_at: datetime | None = None
    features: tuple[Feature, ...] = ()
    """Every feature with its type, including those of aggregations and expressions."""
    inputs: tuple[VersionRef, ...] = ()
    """View versions that an on-demand view reads."""

    @property
    def base_name(self) -> str:
        return f"projects/{self.project}/views/{self.id}"

    @property
    def name(self) -> str:
        return f"{self.base_name}/versions/{self.version}" if self.version else self.base_name

    @property
    def ref(self) -> VersionRef:
        return VersionRef(self.id, self.version)

    def feature(self, name: str) -> Feature | None:
        return next((f for f in self.features if f.name == name), None)


@dataclass(frozen=True, slots=True)
class FeatureSet:
    project: str
    id: str
    features: tuple[str, ...]
    """`view:feature`, in model order."""
    metadata: Metadata = Metadata()
    version: int = 0
    created_at: datetime | None = None
    views: tuple[VersionRef, ...] = ()
    """View versions that the features are bound to, one per view, in order of first use."""
    schema: tuple[Field, ...] = ()
    """One field per feature, in order, named `view__feature`."""
    join_keys: tuple[Field, ...] = ()
    request_fields: tuple[Field, ...] = ()

    @property
    def base_name(self) -> str:
        return f"projects/{self.project}/featureSets/{self.id}"

    @property
    def name(self) -> str:
        return f"{self.base_name}/versions/{self.version}" if self.version else self.base_name

    @property
    def ref(self) -> VersionRef:
        return VersionRef(self.id, self.version)


def column_name(view_id: str, feature: str) -> str:
    """`view__feature`: the name of a feature in tables, responses and expressions."""
    return f"{view_id}__{feature}"
