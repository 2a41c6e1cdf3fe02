"""How a release is served: where its model runs, which requests reach it, and what it costs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Placement:
    """How Triton runs a model. `instances` 0: the gateway's setting."""

    gpu: bool = False
    instances: int = 0
    max_batch_rows: int = MAX_BATCH_ROWS
    max_queue_delay_micros: int = 0

    @property
    def suffix(self) -> str:
        """Distinguishes the models of one version that run in different ways; empty for the default."""
        if self == Placement():
            return ""
        text = f"{self.gpu}/{self.instances}/{self.max_batch_rows}/{self.max_queue_delay_micros}"
        return "." + hashlib.sha256(text.encode()).hexdigest()[:8]


DEFAULT_PLACEMENT = Placement()


@dataclass(frozen=True, slots=True)
class RealTimeRule:
    """A request is worth a model call when its field has one of these values, or lies in these bounds."""

    field: str
    minimum: float | None = None
    maximum: float | None = None
    values: frozenset[str] = frozenset()

    def holds(self, value: Any) -> bool:
        """Whether a value of the field fulfils the rule; null does not."""
        if value is None:
            return False
        if self.values and _text(value) in self.values:
            return True
        if self.minimum is None and self.maximum is None:
            return False
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)


@dataclass(frozen=True, slots=True)
class CostMode:
    """Cached batch predictions answer all requests that fulfil no rule."""

    real_time: tuple[RealTimeRule, ...] = ()

    def worth_the_model(self, values: Mapping[str, Any]) -> bool:
        """Whether a request with these fields reaches the model."""
        return any(rule.holds(values.get(rule.field)) for rule in self.real_time)


@dataclass(frozen=True, slots=True)
class ServingCost:
    """Costs in a unit of the release."""

    per_answer: float = 0.0
    per_model_second: float = 0.0

    def of_answer(self, model_ms: float = 0.0, rows: int = 1) -> float:
        """The cost of one answer; `model_ms`: time of the model call of its batch, which has `rows` rows."""
        return self.per_answer + self.per_model_second * model_ms / 1e3 / rows


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """`cost_mode` None: every request reaches the model. `cost` None: costs are not logged."""

    placement: Placement = field(default_factory=Placement)
    cost_mode: CostMode | None = None
    cost: ServingCost | None = None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
