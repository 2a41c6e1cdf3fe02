"""Aliases, searches and lineage ↔ protobuf."""

from __future__ import annotations

from collections.abc import Iterable

from flywheel_common.names import parse_project
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import search_pb2 as pb
from flywheel_registry.api.convert import to_timestamp
from flywheel_registry.api.convert_models import stage
from flywheel_registry.lineage.lineage import Edge
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.errors import InvalidSearch
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.models.search import MetricBounds, Order, VersionQuery
from flywheel_registry.stages.transitions import Stage


def alias_to_proto(value: Alias) -> pb.ModelAlias:
    return pb.ModelAlias(
        name=value.name,
        model_version=VersionName.of(value.model, value.version),
        protected=value.protected,
        set_at=to_timestamp(value.set_at),
        set_by=value.set_by,
    )


def version_query(request: pb.SearchModelVersionsRequest) -> VersionQuery:
    return VersionQuery(
        project=parse_project(request.parent),
        models=[str(ModelName.parse(name)) for name in request.models],
        metrics=[
            MetricBounds(
                bounds.metric,
                bounds.min if bounds.HasField("min") else None,
                bounds.max if bounds.HasField("max") else None,
            )
            for bounds in request.metrics
        ],
        tags=dict(request.tags),
        stages=_stages(request.stages),
        sources=list(request.sources),
        order_by=request.order_by_metric,
        order=_order(request.order),
        descending=request.descending,
    )


def _stages(numbers: Iterable[model_pb2.Stage]) -> list[Stage]:
    return [found for number in numbers if (found := stage(number)) is not None]


def _order(number: pb.SearchOrder) -> Order:
    match number:
        case pb.SEARCH_ORDER_UNSPECIFIED:
            return Order.NEWEST
        case pb.SEARCH_ORDER_OLDEST_FIRST:
            return Order.OLDEST
        case pb.SEARCH_ORDER_NAME:
            return Order.NAME
    raise InvalidSearch(f"The order {number} is not supported.")


def edge_to_proto(value: Edge) -> pb.LineageEdge:
    return pb.LineageEdge(source=value.source, target=value.target, relation=value.relation)
