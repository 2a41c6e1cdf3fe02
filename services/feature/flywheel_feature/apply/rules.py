"""What makes a definition valid, and how it is resolved: types of features, versions of what it reads.

Every function takes values and answers values; mistakes are collected as violations with the path of the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.model import (
    KEY_TYPES,
    NUMERIC_TYPES,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Feature,
    FeatureSet,
    Field,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamView,
    TableFormat,
    ValidationRule,
    VersionRef,
    View,
    column_name,
)
from flywheel_feature.definitions.value_rules import mistakes
from flywheel_feature.expressions.sql import compile_expressions, compile_predicate
from flywheel_feature.windows.aggregations import (
    MAXIMUM_TILES,
    MAXIMUM_WINDOW,
    MINIMUM_WINDOW,
    choose_tile,
    default_name,
    feature_type,
)

MAXIMUM_DISTINCT_TILES = 256
"""APPROX_DISTINCT keeps up to 16 KiB per tile."""
IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")
RESERVED = "__"


@dataclass(frozen=True, slots=True)
class Violation:
    """One mistake in a definition. `unknown` marks a reference to nothing."""

    name: str
    field: str
    message: str
    unknown: bool = False


@dataclass
class Findings:
    """Collects the violations of one object."""

    name: str
    violations: list[Violation] = field(default_factory=list)

    def add(self, path: str, message: str, *, unknown: bool = False) -> None:
        self.violations.append(Violation(self.name, path, message, unknown))

    def identifier(self, path: str, value: str) -> None:
        if not IDENTIFIER.fullmatch(value) or RESERVED in value:
            self.add(path, f"{value[:80]!r} must match {IDENTIFIER.pattern} without {RESERVED!r}")

    def unique(self, path: str, names: list[str]) -> None:
        for i, name in enumerate(names):
            if name in names[:i]:
                self.add(f"{path}[{i}]", f"{name!r} is there twice")

    def rule(self, path: str, rule: ValidationRule, data_type: DataType) -> None:
        for mistake in mistakes(rule, data_type):
            self.add(path, mistake)


def check_fields(found: Findings, path: str, fields: tuple[Field, ...]) -> None:
    found.unique(path, [f.name for f in fields])
    for i, f in enumerate(fields):
        found.identifier(f"{path}[{i}].name", f.name)
        if f.data_type.is_vector != (f.vector_size > 0):
            found.add(f"{path}[{i}].vector_size", "a vector has a size of 1 or more, every other type 0")


def check_entity(entity: Entity) -> list[Violation]:
    found = Findings(entity.name)
    if not entity.join_keys:
        found.add("join_keys", "an entity has at least one join key")
    check_fields(found, "join_keys", entity.join_keys)
    for i, key in enumerate(entity.join_keys):
        if key.data_type not in KEY_TYPES:
            found.add(f"join_keys[{i}].data_type", "a join key is BOOL, INT64, STRING or BYTES")
    return found.violations


def check_source(source: Source) -> list[Violation]:
    found = Findings(source.name)
    if not source.schema:
        found.add("schema", "a source has at least one field")
    check_fields(found, "schema", source.schema)
    times = [("timestamp_field", source.timestamp_field), ("created_field", source.created_field)]
    for path, name in times:
        given = source.field(name)
        if name and given is None:
            found.add(path, f"the schema has no field {name!r}", unknown=True)
        elif given is not None and given.data_type != DataType.TIMESTAMP:
            found.add(path, f"{name!r} must be a TIMESTAMP")
    match source.kind:
        case RequestSource():
            if source.timestamp_field or source.created_field:
                found.add("timestamp_field", "request fields have no time of their own: leave it empty")
        case _ if not source.timestamp_field:
            found.add("timestamp_field", "name the field that holds the event time")
    if isinstance(source.kind, ParquetSource):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{2,62}/.+", source.kind.uri):
            found.add("parquet.uri", "expected s3://bucket/prefix/ or s3://bucket/key.parquet")
        if source.kind.format == TableFormat.ICEBERG:
            found.add(
                "parquet.format",
                "ICEBERG tables cannot be read: write the table as DELTA or as PARQUET files, and name that",
            )
    if source.rules and not source.is_stream:
        found.add("rules", "rules of a source are for streams: say those of a table at the view's features")
    for i, ruled in enumerate(source.rules):
        given = source.field(ruled.field)
        if given is None:
            found.add(f"rules[{i}].field", f"the schema has no field {ruled.field!r}", unknown=True)
        else:
            found.rule(f"rules[{i}].rule", ruled.rule, given.data_type)
    return found.violations


@dataclass(frozen=True)
class Scope:
    """What references may resolve to: the project as it would be after the apply."""

    entities: Mapping[str, Entity]
    sources: Mapping[str, Source]
    views: Mapping[str, View]
    """Latest versions, resolved."""


def resolve_view(view: View, scope: Scope) -> tuple[View, list[Violation]]:
    """The view with every default filled in and every feature typed. Versions are the caller's."""
    found = Findings(view.base_name)
    found.identifier("name", view.id)
    if isinstance(view.kind, OnDemandView):
        if view.entity:
            found.add(
                "entity", "an on-demand view takes its entities from the views it reads: leave it empty"
            )
        return _resolve_on_demand(view, view.kind, scope, found), found.violations
    entity = scope.entities.get(view.entity)
    if entity is None:
        found.add("entity", f"entity {view.entity!r} does not exist", unknown=True)
    kind = "batch" if isinstance(view.kind, BatchView) else "stream"
    source = scope.sources.get(view.kind.source)
    if source is None:
        found.add(f"{kind}.source", f"source {view.kind.source!r} does not exist", unknown=True)
        return view, found.violations
    for key in entity.join_keys if entity else ():
        given = source.field(key.name)
        if given is None:
            found.add(f"{kind}.source", f"source {source.id!r} has no field for the join key {key.name!r}")
        elif given.data_type != key.data_type:
            found.add(
                f"{kind}.source",
                f"join key {key.name!r} is {key.data_type.name}, in the source {given.data_type.name}",
            )
    if isinstance(view.kind, BatchView):
        return _resolve_batch(view, view.kind, source, found), found.violations
    return _resolve_stream(view, view.kind, source, found), found.violations


def _resolve_batch(view: View, batch: BatchView, source: Source, found: Findings) -> View:
    if not isinstance(source.kind, ParquetSource):
        found.add("batch.source", f"a batch view reads a Parquet source; {source.id!r} is none")
    if not batch.features:
        found.add("batch.features", "a view has at least one feature")
    found.unique("batch.features", [f.name for f in batch.features])
    features: list[Feature] = []
    for i, feature in enumerate(batch.features):
        path = f"batch.features[{i}]"
        found.identifier(f"{path}.name", feature.name)
        name = feature.field or feature.name
        given = source.field(name)
        if given is None:
            found.add(f"{path}.field", f"source {source.id!r} has no field {name!r}", unknown=True)
        elif (given.data_type, given.vector_size) != (feature.data_type, feature.vector_size):
            found.add(
                f"{path}.data_type", f"it is {feature.data_type.name}, in the source {given.data_type.name}"
            )
        for k, rule in enumerate(feature.rules):
            found.rule(f"{path}.rules[{k}]", rule, feature.data_type)
        features.append(replace(feature, field=name))
    return replace(view, kind=replace(batch, features=tuple(features)), features=tuple(features))


def _resolve_stream(view: View, stream: StreamView, source: Source, found: Findings) -> View:
    if not source.is_stream:
        found.add("stream.source", f"a stream view reads a stream source; {source.id!r} is none")
    if not stream.aggregations:
        found.add("stream.aggregations", "a view has at least one aggregation")
        return view
    named = tuple(
        replace(a, name=a.name or default_name(a.function, a.field, a.window)) for a in stream.aggregations
    )
    found.unique("stream.aggregations", [a.name for a in named])
    for i, aggregation in enumerate(named):
        _check_aggregation(found, f"stream.aggregations[{i}]", aggregation, source)
    windows = [a.window for a in named if a.window > 0]
    tile = stream.tile or (choose_tile(windows) if windows else 0)
    for i, aggregation in enumerate(named):
        if tile <= 0 or aggregation.window % tile:
            found.add(f"stream.aggregations[{i}].window", "a window is a multiple of the view's tile")
        elif aggregation.window // tile > _most_tiles(aggregation):
            found.add(
                f"stream.aggregations[{i}].window",
                f"the window has {aggregation.window // tile} tiles, more than {_most_tiles(aggregation)}: widen the tile or split "
                "the view",
            )
    if stream.filter:
        try:
            compile_predicate(stream.filter, {f.name: int(f.data_type) for f in source.schema})
        except InvalidArgument as error:
            found.add("stream.filter", error.message)
    types = {f.name: f.data_type for f in source.schema}
    features = tuple(
        Feature(
            a.name, feature_type(a.function, types.get(a.field, DataType.FLOAT64)), description=a.description
        )
        for a in named
    )
    return replace(view, kind=replace(stream, aggregations=named, tile=tile), features=features)


def _most_tiles(aggregation: Aggregation) -> int:
    distinct = aggregation.function == AggregationFunction.APPROX_DISTINCT
    return MAXIMUM_DISTINCT_TILES if distinct else MAXIMUM_TILES


def _check_aggregation(found: Findings, path: str, aggregation: Aggregation, source: Source) -> None:
    found.identifier(f"{path}.name", aggregation.name)
    function = aggregation.function
    if not MINIMUM_WINDOW <= aggregation.window <= MAXIMUM_WINDOW:
        found.add(f"{path}.window", "a window is 5 minutes to 90 days")
    if function == AggregationFunction.LAST_N and not 1 <= aggregation.limit <= 100:
        found.add(f"{path}.limit", "LAST_N keeps 1 to 100 values")
    if not aggregation.field:
        if function != AggregationFunction.COUNT:
            found.add(f"{path}.field", f"{function.name} needs a field")
        return
    given = source.field(aggregation.field)
    if given is None:
        found.add(f"{path}.field", f"source {source.id!r} has no field {aggregation.field!r}", unknown=True)
    elif given.data_type not in _AGGREGATED[function]:
        found.add(
            f"{path}.field",
            f"{function.name} takes {_listed(_AGGREGATED[function])}; {aggregation.field!r} is {given.data_type.name}",
        )


_SCALARS = frozenset(t for t in DataType if t == t.element)
_AGGREGATED: dict[AggregationFunction, frozenset[DataType]] = {
    **dict.fromkeys(AggregationFunction, NUMERIC_TYPES),
    AggregationFunction.COUNT: frozenset(DataType),
    AggregationFunction.APPROX_DISTINCT: _SCALARS,
    AggregationFunction.LAST: _SCALARS,
    # Tiles are of a fixed size, so the first value of one is a number; and there is no list of bytes.
    AggregationFunction.FIRST: NUMERIC_TYPES | {DataType.TIMESTAMP},
    AggregationFunction.LAST_N: _SCALARS - {DataType.BYTES},
}
"""Types of the fields that a function can be of."""


def _listed(types: frozenset[DataType]) -> str:
    return ", ".join(t.name for t in sorted(types))


def _resolve_on_demand(view: View, kind: OnDemandView, scope: Scope, found: Findings) -> View:
    columns: dict[str, int] = {}
    sizes: dict[str, int] = {}
    inputs: list[VersionRef] = []
    for i, view_id in enumerate(kind.views):
        read = scope.views.get(view_id)
        if read is None:
            found.add(f"on_demand.views[{i}]", f"view {view_id!r} does not exist", unknown=True)
        elif isinstance(read.kind, OnDemandView):
            found.add(f"on_demand.views[{i}]", f"{view_id!r} is an on-demand view: read its inputs instead")
        else:
            inputs.append(read.ref)
            for feature in read.features:
                columns[column_name(view_id, feature.name)] = int(feature.data_type)
                sizes[column_name(view_id, feature.name)] = feature.vector_size
    for i, source_id in enumerate(kind.request_sources):
        source = scope.sources.get(source_id)
        if source is None:
            found.add(f"on_demand.request_sources[{i}]", f"source {source_id!r} does not exist", unknown=True)
        elif not isinstance(source.kind, RequestSource):
            found.add(f"on_demand.request_sources[{i}]", f"{source_id!r} is no request source")
        else:
            for f in source.schema:
                if columns.get(f.name, int(f.data_type)) != int(f.data_type):
                    found.add(f"on_demand.request_sources[{i}]", f"field {f.name!r} has two types")
                columns[f.name], sizes[f.name] = int(f.data_type), f.vector_size
    if not kind.expressions:
        found.add("on_demand.expressions", "a view has at least one feature")
    found.unique("on_demand.expressions", [e.feature.name for e in kind.expressions])
    for i, expression in enumerate(kind.expressions):
        path = f"on_demand.expressions[{i}]"
        feature = expression.feature
        found.identifier(f"{path}.feature.name", feature.name)
        if feature.rules:
            found.add(
                f"{path}.feature.rules", "rules apply to what is written; this is computed when it is read"
            )
        try:
            compile_expressions(
                [(feature.name, int(feature.data_type), expression.sql)],
                columns,
                vector_sizes={**sizes, feature.name: feature.vector_size},
            )
        except (InvalidArgument, ValueError) as error:
            found.add(f"{path}.sql", str(error))
    return replace(view, inputs=tuple(inputs), features=tuple(e.feature for e in kind.expressions))


def resolve_feature_set(declared: FeatureSet, scope: Scope) -> tuple[FeatureSet, list[Violation]]:
    """The set bound to the latest view versions, with its schema, join keys and request fields."""
    found = Findings(declared.base_name)
    found.identifier("name", declared.id)
    names: list[str] = []
    for i, text in enumerate(declared.features):
        view_id, colon, feature = text.partition(":")
        view = scope.views.get(view_id)
        if not colon:
            found.add(f"features[{i}]", f"{text!r} is not of the form view:feature")
        elif view is None:
            found.add(f"features[{i}]", f"view {view_id!r} does not exist", unknown=True)
        elif feature == "*":
            names += [f"{view_id}:{f.name}" for f in view.features]
        elif view.feature(feature) is None:
            found.add(f"features[{i}]", f"view {view_id!r} has no feature {feature!r}", unknown=True)
        else:
            names.append(text)
    if not declared.features:
        found.add("features", "a feature set has at least one feature")
    found.unique("features", names)
    if found.violations:
        return declared, found.violations
    used = [scope.views[view_id] for view_id in dict.fromkeys(n.partition(":")[0] for n in names)]
    schema: list[Field] = []
    for name in names:
        view_id, _, feature_name = name.partition(":")
        given = scope.views[view_id].feature(feature_name)
        assert given is not None
        schema.append(
            Field(column_name(view_id, feature_name), given.data_type, given.vector_size, given.description)
        )
    keys, requests = inputs_of(used, scope, found)
    resolved = replace(
        declared,
        features=tuple(names),
        views=tuple(v.ref for v in used),
        schema=tuple(schema),
        join_keys=keys,
        request_fields=requests,
    )
    return resolved, found.violations


def inputs_of(
    views: list[View], scope: Scope, found: Findings
) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """Join keys and request fields that a caller must send to read these views."""
    keys: dict[str, Field] = {}
    requests: dict[str, Field] = {}
    stored: dict[str, View] = {}
    for view in views:
        if isinstance(view.kind, OnDemandView):
            stored.update({i: scope.views[i] for i in view.kind.views if i in scope.views})
            for source_id in view.kind.request_sources:
                requests.update({f.name: f for f in scope.sources[source_id].schema})
        else:
            stored[view.id] = view
    for view in stored.values():
        for key in scope.entities[view.entity].join_keys if view.entity in scope.entities else ():
            if keys.setdefault(key.name, key).data_type != key.data_type:
                found.add("features", f"join key {key.name!r} has two types in the views of this set")
    return tuple(keys.values()), tuple(requests.values())
