"""The filter and order of ListRuns, parsed into values; the store turns them into SQL parameters."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from flywheel_common.errors import InvalidArgument
from flywheel_trainer.runs.run import Run

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_TERM = re.compile(
    r"(experiment|state|params\.[A-Za-z0-9_.{}=/-]+?|metrics\.[^<>!=\s]+?|tags\.[A-Za-z0-9_./-]+?)\s*(<=|>=|!=|=|<|>)\s*(.+)"
)
_ORDER = re.compile(r"(-?)metrics\.(\S+)")
STATES = ("RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST")


@dataclass(frozen=True)
class Term:
    """One condition: `field` is experiment, state, params, tags or metrics; `key` names the entry of a map."""

    field: str
    key: str
    operator: Operator
    value: str | float


@dataclass(frozen=True)
class Order:
    """By the last value of a metric; runs without it come last."""

    metric: str
    descending: bool


def parse_filter(text: str) -> tuple[Term, ...]:
    """`experiment=a AND params.lr=0.1 AND metrics.auc>0.7`. Raises InvalidArgument INVALID_FILTER."""
    return tuple(_term(part.strip()) for part in re.split(r"\s+AND\s+", text.strip())) if text.strip() else ()


def parse_order(text: str) -> Order | None:
    """`metrics.KEY` or `-metrics.KEY`. Raises InvalidArgument INVALID_ORDER."""
    if not text.strip():
        return None
    found = _ORDER.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(
            f"order_by {text[:80]!r} is not understood: write metrics.KEY or -metrics.KEY.",
            reason="INVALID_ORDER",
        )
    return Order(found.group(2), descending=bool(found.group(1)))


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
            raise _invalid(text, "a metric is compared with a number") from None
    if operator not in ("=", "!="):
        raise _invalid(text, f"{field} is text: compare it with = or !=")
    if field == "state" and value.upper().removeprefix("RUN_STATE_") not in STATES:
        raise _invalid(text, f"a state is one of {', '.join(STATES)}")
    if field == "state":
        value = value.upper().removeprefix("RUN_STATE_")
    return Term(field, key, operator, value)  # type: ignore[arg-type]


def _invalid(text: str, advice: str) -> InvalidArgument:
    return InvalidArgument(
        f"Filter {text[:120]!r} is not understood: {advice}.", reason="INVALID_FILTER", field="filter"
    )


def rank(run: Run, order: Order) -> float:
    """Where a run stands in an order by a metric; without it, and with one that is not a number, it comes last."""
    value = run.metrics.get(order.metric, math.nan)
    return value if not math.isnan(value) else math.inf * (-1 if order.descending else 1)
