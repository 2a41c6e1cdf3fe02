"""A search over the versions of all models of a project."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flywheel_registry.models.errors import InvalidSearch
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.stages.transitions import Stage

MAX_METRICS = 20
MAX_SOURCES = 6


@dataclass(frozen=True, slots=True)
class MetricBounds:
    """Inclusive bounds of one metric. A version without the metric does not match."""

    metric: str
    low: float | None = None
    high: float | None = None

    def hold(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these metrics are within the bounds."""
        value = metrics.get(self.metric)
        return (
            value is not None
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )


class Order(StrEnum):
    """An order that needs no metric: by time of registration, or by model and number."""

    NEWEST = "NEWEST"
    OLDEST = "OLDEST"
    NAME = "NAME"


@dataclass(frozen=True, slots=True)
class Position:
    """The last version of a page: a search continues after it. `value` is its metric or time; 0 by name."""

    value: float | datetime
    model: str
    number: int


@dataclass(frozen=True, slots=True)
class VersionQuery:
    """Conditions that a version must all meet, and the order of the answer.

    `sources` are full names of things that a version was made from. `order_by` is a metric; without one
    `order` counts. Equal values are ordered by model and number, in the same direction.
    """

    project: str
    models: Sequence[str] = ()
    metrics: Sequence[MetricBounds] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    sources: Sequence[str] = ()
    order_by: str = ""
    order: Order = Order.NEWEST
    descending: bool = False
    after: Position | None = None

    def check(self) -> None:
        """Raise InvalidSearch for the first condition that cannot be met or is not supported."""
        if len(self.metrics) > MAX_METRICS or len(self.sources) > MAX_SOURCES:
            raise InvalidSearch(
                f"A search has at most {MAX_METRICS} metrics and {MAX_SOURCES} sources, "
                f"not {len(self.metrics)} and {len(self.sources)}."
            )
        for bounds in self.metrics:
            limits = [limit for limit in (bounds.low, bounds.high) if limit is not None]
            if not bounds.metric or any(math.isnan(limit) for limit in limits):
                raise InvalidSearch("Bounds need the name of a metric, and limits that are numbers.")
            if len(limits) == 2 and limits[0] > limits[1]:
                raise InvalidSearch(f"{bounds.metric}: min {limits[0]} is above max {limits[1]}.")
        if "" in self.sources:
            raise InvalidSearch("A source is the full name of a resource, it cannot be empty.")
        if self.order_by and self.order is not Order.NEWEST:
            raise InvalidSearch("A search has `order_by_metric` or `order`, not both.")
        if self.descending and not (self.order_by or self.order is Order.NAME):
            raise InvalidSearch("`descending` needs `order_by_metric`, or the order by name.")

    @property
    def backwards(self) -> bool:
        """Whether the largest value comes first."""
        return self.descending or (self.order is Order.NEWEST and not self.order_by)

    def matches(self, version: ModelVersion) -> bool:
        """Return whether a version meets all conditions, `after` left aside."""
        return (
            version.model.split("/")[1] == self.project
            and (not self.models or version.model in self.models)
            and (not self.stages or version.stage in self.stages)
            and self.tags.items() <= version.tags.items()
            and set(self.sources) <= set(sources_of(version).values())
            and all(bounds.hold(version.metrics) for bounds in self.metrics)
            and (not self.order_by or self.order_by in version.metrics)
        )

    def position(self, version: ModelVersion) -> Position:
        """Return where a version stands in the order."""
        if self.order_by:
            return Position(version.metrics[self.order_by], version.model, version.number)
        if self.order is Order.NAME:
            return Position(0.0, version.model, version.number)
        assert version.registered_at is not None, "registered versions have a time"
        return Position(version.registered_at, version.model, version.number)


def sources_of(version: ModelVersion) -> dict[str, str]:
    """Return relation → full name of each thing that a version names as its origin."""
    named = {
        "TRAINING_RUN": version.training_run,
        "TRAINING_DATASET": version.training_dataset,
        "FEATURE_SET": version.feature_set,
        "PARENT_VERSION": version.parent_version,
        "CAUSE_ALERT": version.cause_alert,
        "PIPELINE_RUN": version.pipeline_run,
    }
    return {relation: name for relation, name in named.items() if name}
