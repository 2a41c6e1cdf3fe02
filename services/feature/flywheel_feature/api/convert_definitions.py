"""Conversion of definitions, plans and lineage: flywheel.feature.v1 to domain and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from google.protobuf.duration_pb2 import Duration

from flywheel_common.names import Pattern
from flywheel_feature.apply.lineage import Lineage
from flywheel_feature.apply.plan import Action, ApplyPlan, Change, Declared
from flywheel_feature.apply.violations import Violation
from flywheel_feature.definitions.model import (
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Expression,
    Feature,
    FeatureSet,
    Field,
    FieldRule,
    Metadata,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamSource,
    StreamView,
    TableFormat,
    ValidationAction,
    ValidationRule,
    View,
)
from flywheel_feature.encoding.wire_columns import to_duration
from flywheel_protos.feature.v1 import definitions_pb2 as pb
from flywheel_protos.feature.v1 import feature_pb2
from flywheel_protos.types.v1 import value_pb2

T = TypeVar("T")
ENTITY = Pattern("projects/{project}/entities/{id}")
SOURCE = Pattern("projects/{project}/sources/{id}")
VIEW = Pattern("projects/{project}/views/{id}")
FEATURE_SET = Pattern("projects/{project}/featureSets/{id}")
VIEW_VERSION = Pattern("projects/{project}/views/{id}/versions/{version:int}")
FEATURE_SET_VERSION = Pattern("projects/{project}/featureSets/{id}/versions/{version:int}")


class _Unreadable(Exception):
    """A field that cannot be converted; becomes a violation."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self.message = message


def declared(project: str, message: pb.Definitions) -> tuple[Declared, list[Violation]]:
    """The definitions that can be converted, and a violation for each of the others."""
    violations: list[Violation] = []

    def each(items: Iterable[Any], pattern: Pattern, read: Callable[[str, str, Any], T]) -> tuple[T, ...]:
        found: list[T] = []
        for item in items:
            try:
                found.append(read(project, _own_id(item.name, pattern, project, "name"), item))
            except _Unreadable as error:
                violations.append(Violation(item.name, error.path, error.message))
        return tuple(found)

    return (
        Declared(
            each(message.entities, ENTITY, _entity),
            each(message.sources, SOURCE, _source),
            each(message.views, VIEW, _view),
            each(message.feature_sets, FEATURE_SET, _feature_set),
        ),
        violations,
    )


def _own_id(name: str, pattern: Pattern, project: str, path: str) -> str:
    parts = pattern.match(name)
    if parts is None:
        raise _Unreadable(path, f"{name[:200]!r} is not of the form {pattern.form}")
    if parts["project"] != project:
        raise _Unreadable(path, f"{name!r} belongs to another project than projects/{project}")
    return str(parts["id"])


def _metadata(item: Any) -> Metadata:
    return Metadata(item.description, item.owner, dict(item.tags))


def _type(number: int, path: str) -> DataType:
    try:
        return DataType(number)
    except ValueError:
        raise _Unreadable(path, f"{number} is not a data type that can be used here") from None


def _fields(items: Iterable[value_pb2.Field], path: str) -> tuple[Field, ...]:
    return tuple(
        Field(f.name, _type(f.data_type, f"{path}[{i}].data_type"), f.vector_size, f.description)
        for i, f in enumerate(items)
    )


def _micros(duration: Duration, path: str) -> int:
    micros = duration.seconds * 1_000_000 + duration.nanos // 1000
    if micros < 0:
        raise _Unreadable(path, "a duration is not negative")
    return micros


def _entity(project: str, item_id: str, item: pb.Entity) -> Entity:
    return Entity(project, item_id, _fields(item.join_keys, "join_keys"), _metadata(item))


def _source(project: str, item_id: str, item: pb.Source) -> Source:
    kind: ParquetSource | StreamSource | RequestSource
    match item.WhichOneof("kind"):
        case "parquet":
            try:
                table = TableFormat(item.parquet.format or TableFormat.PARQUET)
            except ValueError:
                raise _Unreadable("parquet.format", f"{item.parquet.format} is not a table format") from None
            kind = ParquetSource(item.parquet.uri, table, dict(item.parquet.columns))
        case "stream":
            kind = StreamSource(
                _micros(item.stream.allowed_lateness, "stream.allowed_lateness"), item.stream.partitions
            )
        case "request":
            kind = RequestSource()
        case _:
            raise _Unreadable("kind", "set one of parquet, stream and request")
    schema = _fields(item.schema, "schema")
    times = item.timestamp_field, item.created_field
    rules = tuple(FieldRule(r.field, _rule(r.rule, f"rules[{i}].rule")) for i, r in enumerate(item.rules))
    return Source(project, item_id, schema, *times, kind, _metadata(item), rules)


def _rule(rule: pb.ValidationRule, path: str) -> ValidationRule:
    try:
        action = ValidationAction(rule.action or ValidationAction.REJECT)
    except ValueError:
        raise _Unreadable(f"{path}.action", f"{rule.action} is not an action") from None
    return ValidationRule(
        rule.min if rule.HasField("min") else None,
        rule.max if rule.HasField("max") else None,
        rule.max_null_rate if rule.HasField("max_null_rate") else None,
        tuple(rule.allowed),
        action,
    )


def _feature(item: pb.Feature, path: str) -> Feature:
    kind = _type(item.data_type, f"{path}.data_type")
    rules = tuple(_rule(r, f"{path}.rules[{i}]") for i, r in enumerate(item.rules))
    return Feature(item.name, kind, item.vector_size, item.description, rules, item.field)


def _view(project: str, item_id: str, item: pb.View) -> View:
    kind: BatchView | StreamView | OnDemandView
    match item.WhichOneof("kind"):
        case "batch":
            features = tuple(_feature(f, f"batch.features[{i}]") for i, f in enumerate(item.batch.features))
            kind = BatchView(_own_id(item.batch.source, SOURCE, project, "batch.source"), features)
        case "stream":
            kind = StreamView(
                _own_id(item.stream.source, SOURCE, project, "stream.source"),
                tuple(
                    _aggregation(a, f"stream.aggregations[{i}]")
                    for i, a in enumerate(item.stream.aggregations)
                ),
                item.stream.filter,
                _micros(item.stream.tile, "stream.tile"),
            )
        case "on_demand":
            kind = OnDemandView(
                tuple(
                    _own_id(v, VIEW, project, f"on_demand.views[{i}]")
                    for i, v in enumerate(item.on_demand.views)
                ),
                tuple(
                    _own_id(s, SOURCE, project, f"on_demand.request_sources[{i}]")
                    for i, s in enumerate(item.on_demand.request_sources)
                ),
                tuple(
                    Expression(_feature(e.feature, f"on_demand.expressions[{i}].feature"), e.sql)
                    for i, e in enumerate(item.on_demand.expressions)
                ),
            )
        case _:
            raise _Unreadable("kind", "set one of batch, stream and on_demand")
    entity = _own_id(item.entity, ENTITY, project, "entity") if item.entity else ""
    if not entity and not isinstance(kind, OnDemandView):
        raise _Unreadable("entity", "name the entity that the view describes")
    ttl, freshness_sla = _micros(item.ttl, "ttl"), _micros(item.freshness_sla, "freshness_sla")
    return View(project, item_id, entity, kind, ttl, freshness_sla, _metadata(item))


def _aggregation(item: pb.Aggregation, path: str) -> Aggregation:
    try:
        function = AggregationFunction(item.function)
    except ValueError:
        raise _Unreadable(f"{path}.function", "name an aggregation function") from None
    return Aggregation(
        item.name, function, item.field, _micros(item.window, f"{path}.window"), item.limit, item.description
    )


def _feature_set(project: str, item_id: str, item: pb.FeatureSet) -> FeatureSet:
    return FeatureSet(project, item_id, tuple(item.features), _metadata(item))


def field_to_proto(f: Field) -> value_pb2.Field:
    kind = cast("value_pb2.DataType", int(f.data_type))
    return value_pb2.Field(name=f.name, data_type=kind, vector_size=f.vector_size, description=f.description)


def _texts(metadata: Metadata) -> dict[str, Any]:
    return {"description": metadata.description, "owner": metadata.owner, "tags": dict(metadata.tags)}


def entity_to_proto(entity: Entity) -> pb.Entity:
    return pb.Entity(
        name=entity.name, join_keys=[field_to_proto(f) for f in entity.join_keys], **_texts(entity.metadata)
    )


def source_to_proto(source: Source) -> pb.Source:
    message = pb.Source(
        name=source.name,
        schema=[field_to_proto(f) for f in source.schema],
        timestamp_field=source.timestamp_field,
        created_field=source.created_field,
        rules=[pb.FieldRule(field=r.field, rule=_rule_to_proto(r.rule)) for r in source.rules],
        **_texts(source.metadata),
    )
    match source.kind:
        case ParquetSource(uri=uri, format=kind, columns=columns):
            message.parquet.uri, message.parquet.format = uri, int(kind)  # type: ignore[assignment]
            message.parquet.columns.update(columns)
        case StreamSource(allowed_lateness=lateness, partitions=partitions):
            message.stream.partitions = partitions
            message.stream.SetInParent()
            if lateness:
                message.stream.allowed_lateness.CopyFrom(to_duration(lateness))  # type: ignore[arg-type]
        case RequestSource():
            message.request.SetInParent()
    return message


def _feature_to_proto(f: Feature) -> pb.Feature:
    message = pb.Feature(
        name=f.name,
        data_type=int(f.data_type),  # type: ignore[arg-type]
        vector_size=f.vector_size,
        description=f.description,
        field=f.field,
    )
    message.rules.extend(map(_rule_to_proto, f.rules))
    return message


def _rule_to_proto(rule: ValidationRule) -> pb.ValidationRule:
    return pb.ValidationRule(
        min=rule.min,
        max=rule.max,
        max_null_rate=rule.max_null_rate,
        allowed=rule.allowed,
        action=int(rule.action),  # type: ignore[arg-type]
    )


def view_to_proto(view: View) -> pb.View:
    prefix = f"projects/{view.project}"
    message = pb.View(
        name=view.name,
        version=view.version,
        entity=f"{prefix}/entities/{view.entity}" if view.entity else "",
        ttl=to_duration(view.ttl),
        freshness_sla=to_duration(view.freshness_sla),
        features=[_feature_to_proto(f) for f in view.features],
        **_texts(view.metadata),
    )
    if view.created_at is not None:
        message.created_at.FromDatetime(view.created_at)
    match view.kind:
        case BatchView(source=source, features=features):
            message.batch.source = f"{prefix}/sources/{source}"
            message.batch.features.extend(_feature_to_proto(f) for f in features)
        case StreamView() as stream:
            message.stream.source = f"{prefix}/sources/{stream.source}"
            message.stream.filter = stream.filter
            message.stream.tile.CopyFrom(to_duration(stream.tile) or Duration())
            for a in stream.aggregations:
                message.stream.aggregations.add(
                    name=a.name,
                    function=int(a.function),
                    field=a.field,
                    window=to_duration(a.window),
                    limit=a.limit,
                    description=a.description,
                )
        case OnDemandView() as on_demand:
            message.on_demand.views.extend(f"{prefix}/views/{v}" for v in on_demand.views)
            message.on_demand.request_sources.extend(
                f"{prefix}/sources/{s}" for s in on_demand.request_sources
            )
            for e in on_demand.expressions:
                message.on_demand.expressions.add(feature=_feature_to_proto(e.feature), sql=e.sql)
    return message


def feature_set_to_proto(item: FeatureSet) -> pb.FeatureSet:
    message = pb.FeatureSet(
        name=item.name,
        version=item.version,
        features=item.features,
        view_versions=[f"projects/{item.project}/views/{r.id}/versions/{r.version}" for r in item.views],
        schema=[field_to_proto(f) for f in item.schema],
        join_keys=[field_to_proto(f) for f in item.join_keys],
        request_fields=[field_to_proto(f) for f in item.request_fields],
        **_texts(item.metadata),
    )
    if item.created_at is not None:
        message.created_at.FromDatetime(item.created_at)
    return message


_ACTIONS = {action: feature_pb2.PlannedChange.Action.Value(f"ACTION_{action}") for action in Action}


def change_to_proto(change: Change) -> feature_pb2.PlannedChange:
    return feature_pb2.PlannedChange(
        action=_ACTIONS[change.action],  # type: ignore[arg-type]
        name=change.name,
        differences=change.differences,
        readers=change.readers,
    )


def plan_to_proto(plan: ApplyPlan) -> feature_pb2.ApplyDefinitionsResponse:
    return feature_pb2.ApplyDefinitionsResponse(
        changes=[change_to_proto(c) for c in plan.changes],
        violations=[
            feature_pb2.DefinitionViolation(name=v.name, field=v.field, message=v.message)
            for v in plan.violations
        ],
        warnings=plan.warnings,
    )


def lineage_to_proto(lineage: Lineage, warnings: Iterable[str]) -> feature_pb2.GetLineageResponse:
    return feature_pb2.GetLineageResponse(
        upstream=[feature_pb2.LineageEdge(read=a, reader=b) for a, b in lineage.upstream],
        downstream=[feature_pb2.LineageEdge(read=a, reader=b) for a, b in lineage.downstream],
        warnings=warnings,
    )


def versioned_name(name: str, plain: Pattern, versioned: Pattern) -> tuple[str, str, int]:
    """(project, id, version) of a name; 0 (the latest) without `/versions/{n}`. Raises InvalidName."""
    parts = versioned.match(name)
    if parts is not None:
        return str(parts["project"]), str(parts["id"]), int(parts["version"])
    return *plain_name(name, plain), 0


def plain_name(name: str, pattern: Pattern) -> tuple[str, str]:
    """(project, id) of a name. Raises InvalidName."""
    parts = pattern.parse(name)
    return str(parts["project"]), str(parts["id"])
