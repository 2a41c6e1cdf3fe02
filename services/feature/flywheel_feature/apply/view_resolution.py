"""Resolution of views: fills in defaults, types every feature and collects violations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flywheel_common.errors import InvalidArgument
from flywheel_feature.apply.violations import Findings, Violation
from flywheel_feature.definitions.model import (
    NUMERIC_TYPES,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Feature,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamView,
    VersionRef,
    View,
    column_name,
)
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
_SCALARS = frozenset(t for t in DataType if t == t.element)
_AGGREGATED: dict[AggregationFunction, frozenset[DataType]] = {
    **dict.fromkeys(AggregationFunction, NUMERIC_TYPES),
    AggregationFunction.COUNT: frozenset(DataType),
    AggregationFunction.APPROX_DISTINCT: _SCALARS,
    AggregationFunction.LAST: _SCALARS,
    # Tiles have a fixed size, so a first value is a number or a time. DataType has no list of BYTES.
    AggregationFunction.FIRST: NUMERIC_TYPES | {DataType.TIMESTAMP},
    AggregationFunction.LAST_N: _SCALARS - {DataType.BYTES},
}
"""Types of the fields that each function accepts."""


@dataclass(frozen=True)
class Scope:
    """The definitions that references may resolve to: the project as it would be after the apply."""

    entities: Mapping[str, Entity]
    sources: Mapping[str, Source]
    views: Mapping[str, View]
    """Latest versions, resolved."""


def resolve_view(view: View, scope: Scope) -> tuple[View, list[Violation]]:
    """The view with every default filled in and every feature typed. The caller sets the version."""
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
        found.add("batch.source", f"a batch view reads a Parquet source; {source.id!r} is not one")
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
                f"{path}.data_type",
                f"the view declares {feature.data_type.name}, the source {given.data_type.name}",
            )
        for k, rule in enumerate(feature.rules):
            found.rule(f"{path}.rules[{k}]", rule, feature.data_type)
        features.append(replace(feature, field=name))
    return replace(view, kind=replace(batch, features=tuple(features)), features=tuple(features))


def _resolve_stream(view: View, stream: StreamView, source: Source, found: Findings) -> View:
    if not source.is_stream:
        found.add("stream.source", f"a stream view reads a stream source; {source.id!r} is not one")
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
                f"the window has {aggregation.window // tile} tiles, more than {_most_tiles(aggregation)}: "
                "use a wider tile or split the view",
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
            f"{function.name} takes {_listed(_AGGREGATED[function])}; "
            f"{aggregation.field!r} is {given.data_type.name}",
        )


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
            found.add(f"on_demand.request_sources[{i}]", f"{source_id!r} is not a request source")
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
                f"{path}.feature.rules",
                "rules are checked when values are written; an on-demand feature is computed when it is read",
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
