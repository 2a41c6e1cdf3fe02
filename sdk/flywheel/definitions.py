"""Feature definitions: plain objects in a module of yours, compiled to protobuf by `flywheel apply module.py`.

Definitions are data: nothing of them runs inside a service but the SQL texts. Names are ids; the project is given
when they are applied.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration

from flywheel.errors import DefinitionError
from flywheel.source_location import (
    caller_location,
    location_of,
    location_of_error,
    location_of_part,
)
from flywheel.types import FLOAT64, duration, fields, vector_size
from flywheel.validation import Rules, check_rule_names, rules_for
from flywheel_protos.feature.v1 import definitions_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What people read; a change of it makes no new version."""

    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_created_at", caller_location())

    def texts(self) -> dict[str, Any]:
        return {
            "description": self.description,
            "owner": self.owner,
            "tags": dict(self.tags),
        }


@dataclass(frozen=True)
class Entity(Metadata):
    """What features describe; `keys` maps one or more join keys to their data types, in key order."""

    name: str
    keys: Mapping[str, int]

    def proto(self, project: str) -> pb.Entity:
        return pb.Entity(
            name=f"projects/{project}/entities/{self.name}",
            join_keys=fields(self.keys),
            **self.texts(),
        )


@dataclass(frozen=True)
class Source(Metadata):
    """Where values come from. `timestamp` names the field with the event time, `created` the one with the time at which
    the row became known (default: at its event time)."""

    name: str
    schema: Mapping[str, int]
    timestamp: str = ""
    created: str = ""

    def proto(self, project: str) -> pb.Source:
        return pb.Source(
            name=f"projects/{project}/sources/{self.name}",
            schema=fields(self.schema),
            timestamp_field=self.timestamp,
            created_field=self.created,
            **self.texts(),
        )


FORMATS = {"parquet": pb.TABLE_FORMAT_PARQUET, "delta": pb.TABLE_FORMAT_DELTA}
"""How the files of a ParquetSource are read."""


@dataclass(frozen=True)
class ParquetSource(Source):
    """Parquet on S3: every file below an `s3://bucket/prefix/` (folders like `day=2013-01-01` are columns), or one file.

    `format="delta"`: the folder of a Delta table. Each job reads one version of it, whatever is written meanwhile; the
    manifest of a training set names that version.
    """

    uri: str = ""
    format: Literal["parquet", "delta"] = "parquet"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"source {self.name!r}: format is one of {', '.join(FORMATS)}, not {self.format!r}"
            )

    def proto(self, project: str) -> pb.Source:
        result = super().proto(project)
        result.parquet.uri = self.uri
        result.parquet.format = FORMATS[self.format]
        return result


@dataclass(frozen=True)
class DeltaSource(ParquetSource):
    """A Delta table at `s3://bucket/prefix/`: a ParquetSource whose format is "delta"."""

    format: Literal["parquet", "delta"] = "delta"


@dataclass(frozen=True)
class StreamSource(Source):
    """Events pushed to the topic `feature.source.<name>`. `rules`: what their fields must be when they are pushed."""

    allowed_lateness: str | timedelta = timedelta(0)
    rules: Rules = field(default_factory=dict, kw_only=True)

    def proto(self, project: str) -> pb.Source:
        result = super().proto(project)
        result.stream.SetInParent()
        lateness = duration(self.allowed_lateness)
        if lateness:
            result.stream.allowed_lateness.FromTimedelta(lateness)
        check_rule_names(self.rules, self.schema, f"source {self.name!r}")
        for name in self.rules:
            for rule in rules_for(self.rules, name):
                result.rules.add(field=name, rule=rule)
        return result


@dataclass(frozen=True)
class RequestSource(Source):
    """Fields that come with each request."""

    def proto(self, project: str) -> pb.Source:
        result = super().proto(project)
        result.request.SetInParent()
        return result


@dataclass(frozen=True)
class Aggregation:
    """One windowed feature; see the functions below."""

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
            window=_duration(self.window),
            limit=self.limit,
        )


def count(window: str, field: str = "", name: str = "") -> Aggregation:
    """Events in the window, or non-null values of a field; 0 when there is none."""
    return Aggregation(pb.AGGREGATION_FUNCTION_COUNT, field, window, name)


def total(field: str, window: str, name: str = "") -> Aggregation:
    """Sum of a field; null when the window has no value, as for every function below."""
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
    """Newest value of a field by event time."""
    return Aggregation(pb.AGGREGATION_FUNCTION_LAST, field, window, name)


def first(field: str, window: str, name: str = "") -> Aggregation:
    """Oldest value of a field by event time."""
    return Aggregation(pb.AGGREGATION_FUNCTION_FIRST, field, window, name)


def approx_distinct(field: str, window: str, name: str = "") -> Aggregation:
    """How many different values a field had, estimated (HyperLogLog, standard error 2.3 %, nearly exact for small counts)."""
    return Aggregation(pb.AGGREGATION_FUNCTION_APPROX_DISTINCT, field, window, name)


def last_n(field: str, n: int, window: str, name: str = "") -> Aggregation:
    """The newest `n` values of a field, newest first."""
    return Aggregation(pb.AGGREGATION_FUNCTION_LAST_N, field, window, name, limit=n)


@dataclass(frozen=True)
class View(Metadata):
    """A named group of features. `ttl`: age beyond which a value is stale; `freshness_sla`: promised lag."""

    name: str
    ttl: str | timedelta | None = field(default=None, kw_only=True)
    freshness_sla: str | timedelta | None = field(default=None, kw_only=True)

    def proto(self, project: str) -> pb.View:
        result = pb.View(name=f"projects/{project}/views/{self.name}", **self.texts())
        if self.ttl is not None:
            result.ttl.CopyFrom(_duration(self.ttl))
        if self.freshness_sla is not None:
            result.freshness_sla.CopyFrom(_duration(self.freshness_sla))
        return result


@dataclass(frozen=True)
class BatchView(View):
    """The latest row per entity of a Parquet source; `features` maps names (= source fields) to data types, `rules` names to what
    their values must be."""

    entity: Entity
    source: ParquetSource
    features: Mapping[str, int]
    rules: Rules = field(default_factory=dict, kw_only=True)

    def proto(self, project: str) -> pb.View:
        result = super().proto(project)
        result.entity = self.entity.proto(project).name
        result.batch.source = self.source.proto(project).name
        check_rule_names(self.rules, self.features, f"view {self.name!r}")
        for name, kind in self.features.items():
            result.batch.features.add(
                name=name,
                data_type=int(kind),
                vector_size=vector_size(kind),
                rules=rules_for(self.rules, name),
            )
        return result


@dataclass(frozen=True)
class StreamView(View):
    """Windowed aggregations of a stream source, per entity. `where`: SQL predicate over source fields."""

    entity: Entity
    source: StreamSource
    aggregations: Sequence[Aggregation]
    where: str = ""
    tile: str | timedelta | None = None

    def proto(self, project: str) -> pb.View:
        result = super().proto(project)
        result.entity = self.entity.proto(project).name
        result.stream.source = self.source.proto(project).name
        result.stream.aggregations.extend(a.proto() for a in self.aggregations)
        result.stream.filter = self.where
        if self.tile is not None:
            result.stream.tile.CopyFrom(_duration(self.tile))
        return result


@dataclass(frozen=True)
class OnDemandView(View):
    """Features computed at read time: name → Polars SQL over `view__feature` and request fields."""

    expressions: Mapping[str, str]
    views: Sequence[View] = ()
    requests: Sequence[RequestSource] = ()
    types: Mapping[str, int] = field(default_factory=dict)

    def proto(self, project: str) -> pb.View:
        result = super().proto(project)
        result.on_demand.views.extend(v.proto(project).name for v in self.views)
        result.on_demand.request_sources.extend(r.proto(project).name for r in self.requests)
        for name, sql in self.expressions.items():
            expression = result.on_demand.expressions.add(sql=sql)
            expression.feature.name = name
            kind = self.types.get(name, FLOAT64)
            expression.feature.data_type = int(kind)  # type: ignore[assignment]
            expression.feature.vector_size = vector_size(kind)
        return result


@dataclass(frozen=True)
class FeatureSet(Metadata):
    """The list of `view:feature` that a model trains on and is served with, in order."""

    name: str
    features: Sequence[str]

    def proto(self, project: str) -> pb.FeatureSet:
        return pb.FeatureSet(
            name=f"projects/{project}/featureSets/{self.name}",
            features=list(self.features),
            **self.texts(),
        )


def definitions_in(objects: Iterable[object]) -> list[Entity | Source | View | FeatureSet]:
    """The definitions among `objects` and what they refer to, each once; what is referred to comes first."""
    found: list[Entity | Source | View | FeatureSet] = []
    seen: set[int] = set()

    def add(item: object) -> None:
        if not isinstance(item, Entity | Source | View | FeatureSet) or id(item) in seen:
            return
        seen.add(id(item))
        for name in ("entity", "source"):
            add(getattr(item, name, None))
        for name in ("views", "requests"):
            for other in getattr(item, name, ()):
                add(other)
        found.append(item)

    for item in objects:
        add(item)
    return found


def compile_definitions(objects: Iterable[object], project: str) -> pb.Definitions:
    """`definitions_in(objects)` as protobuf. Raises DefinitionError that names file and line."""
    result = pb.Definitions()
    for item in definitions_in(objects):
        try:
            match item:
                case Entity():
                    result.entities.append(item.proto(project))
                case Source():
                    result.sources.append(item.proto(project))
                case View():
                    result.views.append(item.proto(project))
                case FeatureSet():
                    result.feature_sets.append(item.proto(project))
        except (ValueError, TypeError) as error:
            raise DefinitionError(
                f"{location_of(item)}: {type(item).__name__} {item.name!r}: {error}"
            ) from error
    return result


def location_of_violation(objects: Iterable[object], project: str, name: str, path: str) -> str:
    """`file:line` of the definition with the resource name `name`, or of the part of it that `path` names; empty: not known."""
    for item in definitions_in(objects):
        if item.proto(project).name == name:
            return location_of_part(item, path)
    return ""


def load_module(path: str | Path) -> ModuleType:
    """Runs a definitions file of the user's, in the user's own process. Raises FileNotFoundError, and DefinitionError that names
    the line for whatever the file raises."""
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no file; name the Python file that holds your definitions")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DefinitionError(
            f"{location_of_error(str(file), error)}: {type(error).__name__}: {error}"
        ) from error
    return module


def _duration(value: str | timedelta) -> Duration:
    result = Duration()
    result.FromTimedelta(duration(value))
    return result
