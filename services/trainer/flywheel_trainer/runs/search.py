"""Filter and order of ListRuns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

from flywheel_trainer.runs.errors import InvalidOrder
from flywheel_trainer.runs.filter_expression import Condition, parse_conditions
from flywheel_trainer.runs.filter_terms import KEY, unquoted
from flywheel_trainer.runs.run import Run

Statistic = Literal["metrics", "min", "max"]
_ORDER = re.compile(
    rf"(?P<minus>-?)(?:(?P<of>metrics|min|max)\.(?:{KEY}|(?P<key>[^`\s]\S*))|(?P<time>started_at))"
)


@dataclass(frozen=True)
class Order:
    """Order by the last, smallest or largest value of a metric; runs without it come last.

    Without a metric: the order by start.
    """

    metric: str
    descending: bool
    of: Statistic = "metrics"


NEWEST_FIRST = Order("", descending=True)


def parse_filter(text: str) -> tuple[Condition, ...]:
    """Parse `experiment=a AND (params.lr=0.1 OR max.auc>0.7)`. Raises InvalidFilter."""
    return parse_conditions(text)


def parse_order(text: str) -> Order | None:
    """Parse `metrics.KEY`, `min.KEY`, `max.KEY` or `started_at`, or one of them after `-`; KEY may be in
    backticks.

    None: newest first. Raises InvalidOrder.
    """
    if not text.strip():
        return None
    found = _ORDER.fullmatch(text.strip())
    if found is None:
        raise InvalidOrder(
            f"order_by {text[:80]!r} is not valid: write metrics.KEY, min.KEY, max.KEY or started_at, "
            "with - before it for descending order."
        )
    if found["time"]:
        return Order("", descending=bool(found["minus"]))
    return Order(unquoted(found), bool(found["minus"]), cast("Statistic", found["of"]))


def rank(run: Run, order: Order) -> float:
    """The value of a run in an order by a metric; NaN: the run has none and comes last."""
    if order.of == "metrics":
        return run.metrics.get(order.metric, math.nan)
    found = run.summaries.get(order.metric)
    if found is None:
        return math.nan
    return found.min if order.of == "min" else found.max
