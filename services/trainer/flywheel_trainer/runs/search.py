"""Filter and order of ListRuns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from flywheel_trainer.runs.errors import InvalidOrder
from flywheel_trainer.runs.filter_terms import KEY, METRICS, Term, parse_terms, unquoted
from flywheel_trainer.runs.run import Run, RunState

_ORDER = re.compile(rf"(?P<minus>-?)metrics\.(?:{KEY}|(?P<key>[^`\s]\S*))")


@dataclass(frozen=True)
class Order:
    """Order by the last value of a metric; runs without it come last."""

    metric: str
    descending: bool


def parse_filter(text: str) -> tuple[Term, ...]:
    """Parse `experiment=a AND params.lr=0.1 AND metrics.auc>0.7`. Raises InvalidFilter."""
    fields = {"experiment": (), "state": tuple(RunState), "parent_run": ()}
    return parse_terms(text, fields, ("params", "tags", METRICS))


def parse_order(text: str) -> Order | None:
    """Parse `metrics.KEY` or `-metrics.KEY`; KEY may be in backticks. Raises InvalidOrder."""
    if not text.strip():
        return None
    found = _ORDER.fullmatch(text.strip())
    if found is None:
        raise InvalidOrder(f"order_by {text[:80]!r} is not valid: write metrics.KEY or -metrics.KEY.")
    return Order(unquoted(found), descending=bool(found["minus"]))


def rank(run: Run, order: Order) -> float:
    """Sort key of a run in this order; a run without the metric, or with NaN, comes last."""
    value = run.metrics.get(order.metric, math.nan)
    return value if not math.isnan(value) else math.inf * (-1 if order.descending else 1)
