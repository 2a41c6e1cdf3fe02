"""Filter and order of ListRuns, parsed into values that the store can turn into SQL parameters."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from flywheel_trainer.runs.errors import InvalidFilter, InvalidOrder
from flywheel_trainer.runs.run import Run, RunState

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_TERM = re.compile(
    r"(experiment|state|params\.[A-Za-z0-9_.{}=/-]+?|metrics\.[^<>!=\s]+?|tags\.[A-Za-z0-9_./-]+?)"
    r"\s*(<=|>=|!=|=|<|>)\s*(.+)"
)
_ORDER = re.compile(r"(-?)metrics\.(\S+)")


@dataclass(frozen=True)
class Term:
    """One condition: `field` is experiment, state, params, tags or metrics; `key` is the key in a map."""

    field: str
    key: str
    operator: Operator
    value: str | float


@dataclass(frozen=True)
class Order:
    """Order by the last value of a metric; runs without it come last."""

    metric: str
    descending: bool


def parse_filter(text: str) -> tuple[Term, ...]:
    """Parse `experiment=a AND params.lr=0.1 AND metrics.auc>0.7`. Raises InvalidFilter."""
    return tuple(_term(part.strip()) for part in re.split(r"\s+AND\s+", text.strip())) if text.strip() else ()


def parse_order(text: str) -> Order | None:
    """Parse `metrics.KEY` or `-metrics.KEY`. Raises InvalidOrder."""
    if not text.strip():
        return None
    found = _ORDER.fullmatch(text.strip())
    if found is None:
        raise InvalidOrder(f"order_by {text[:80]!r} is not valid: write metrics.KEY or -metrics.KEY.")
    return Order(found.group(2), descending=bool(found.group(1)))


def rank(run: Run, order: Order) -> float:
    """Sort key of a run in this order; a run without the metric, or with NaN, comes last."""
    value = run.metrics.get(order.metric, math.nan)
    return value if not math.isnan(value) else math.inf * (-1 if order.descending else 1)


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    if found is None:
        raise _invalid(
            text, "write experiment=…, state=…, params.KEY=VALUE, tags.KEY=VALUE or metrics.KEY>0.7"
        )
    left, operator, value = found.groups()
    field, _, key = left.partition(".")
    if field == "metrics":
        try:
            return Term(field, key, operator, float(value))  # type: ignore[arg-type]
        except ValueError:
            raise _invalid(text, "compare a metric with a number") from None
    if operator not in ("=", "!="):
        raise _invalid(text, f"{field} is text: compare it with = or !=")
    if field == "state":
        value = value.upper().removeprefix("RUN_STATE_")
        if value not in tuple(RunState):
            raise _invalid(text, f"a state is one of {', '.join(RunState)}")
    return Term(field, key, operator, value)  # type: ignore[arg-type]


def _invalid(text: str, advice: str) -> InvalidFilter:
    return InvalidFilter(f"Filter {text[:120]!r} is not valid: {advice}.", field="filter")
