"""Feature definitions: objects in a Python module, compiled to protobuf by `flywheel apply module.py`.

Definitions are data: services run only their SQL expressions. Names are ids; the project is given when the
definitions are applied.
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

from flywheel.aggregations import Aggregation, duration_message
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
    """Description, owner and tags. Changing them does not create a new version."""

    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_created_at", caller_location())

    def metadata(self) -> dict[str, Any]:
        return {
            "description": self.description,
            "owner": self.owner,
            "tags": dict(self.tags),
        }


@dataclass(frozen=True)
class Entity(Metadata):
    """What features describe. `keys` maps one or more join keys to their data types, in key order."""

    name: str
    keys: Mapping[str, int]

    def proto(self, project: str) -> pb.Entity:
        return pb.Entity(
            name=f"projects/{project}/entities/{self.name}",
            join_keys=fields(self.keys),
            **self.metadata(),
        )


@dataclass(frozen=True)
class Source(Metadata):
    """The origin of values. `timestamp` names the field of the event time, `created` the field of the time at
    which the row became known (default: the event time)."""

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
            **self.metadata(),
        )


FORMATS = {"parquet": pb.TABLE_FORMAT_PARQUET, "delta": pb.TABLE_FORMAT_DELTA}
"""The formats of a ParquetSource."""


@dataclass(frozen=True)
class ParquetSource(Source):
    """Parquet files on S3: one file, or all files below `s3://bucket/prefix/`.

    Folders like `day=2013-01-01` are columns. `columns` maps names of columns and folders to fields of the
    schema, for names that no field can have: `columns={"Order Amount": "order_amount"}`. With
    `format="delta"` the prefix is a Delta table: each job reads a single version of it, and the manifest of
    a training set names that version.
    """

    uri: str = ""
    format: Literal["parquet", "delta"] = "parquet"
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"source {self.name!r}: format must be one of {', '.join(FORMATS)}, not {self.format!r}"
            )

    def proto(self, project: str) -> pb.Source:
        result = super().proto(project)
        result.parquet.uri = self.uri
        result.parquet.format = FORMATS[self.format]
        result.parquet.columns.update(self.columns)
        return result


@dataclass(frozen=True)
class DeltaSource(ParquetSource):
    """A Delta table at `s3://bucket/prefix/`: a ParquetSource whose format is "delta"."""

    format: Literal["parquet", "delta"] = "delta"


@dataclass(frozen=True)
class StreamSource(Source):
    """Events of the topic `feature.source.<name>`. `rules` validate the fields of pushed events.

    Windows leave out an event that arrived more than `allowed_lateness` after its event time (0: none). It
    arrives at its created time, without one when it is pushed: to replay history into such a source, declare
    `created`.
    """

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
    """Fields that are part of each request."""

    def proto(self, project: str) -> pb.Source:
        result = super().proto(project)
        result.request.SetInParent()
        return result


@dataclass(frozen=True)
class View(Metadata):
    """A named group of features. Values older than `ttl` are stale; `freshness_sla` is the promised lag."""

    name: str
    ttl: str | timedelta | None = field(default=None, kw_only=True)
    freshness_sla: str | timedelta | None = field(default=None, kw_only=True)

    def proto(self, project: str) -> pb.View:
        result = pb.View(name=f"projects/{project}/views/{self.name}", **self.metadata())
        if self.ttl is not None:
            result.ttl.CopyFrom(duration_message(self.ttl))
        if self.freshness_sla is not None:
            result.freshness_sla.CopyFrom(duration_message(self.freshness_sla))
        return result


@dataclass(frozen=True)
class BatchView(View):
    """The latest row per entity of a Parquet source. `features` maps source fields to data types, `rules`
    maps features to validation rules."""

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
    """Windowed aggregations of a stream source, per entity. `where` is an SQL predicate over its fields."""

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
            result.stream.tile.CopyFrom(duration_message(self.tile))
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
    """The ordered list of `view:feature` that a model is trained and served with."""

    name: str
    features: Sequence[str]

    def proto(self, project: str) -> pb.FeatureSet:
        return pb.FeatureSet(
            name=f"projects/{project}/featureSets/{self.name}",
            features=list(self.features),
            **self.metadata(),
        )


def definitions_in(objects: Iterable[object]) -> list[Entity | Source | View | FeatureSet]:
    """The definitions among `objects` and all that they refer to, each once, referenced ones first."""
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
    """The definitions among `objects` as protobuf. Raises DefinitionError with file and line."""
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
    """`file:line` of the definition named `name`, or of its part at `path`; empty if unknown."""
    for item in definitions_in(objects):
        if item.proto(project).name == name:
            return location_of_part(item, path)
    return ""


def load_module(path: str | Path) -> ModuleType:
    """Runs a definitions file in this process. Raises FileNotFoundError, and DefinitionError with the line if
    the file raises an error."""
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the Python file with your definitions")
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
