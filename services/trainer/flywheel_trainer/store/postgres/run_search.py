"""The SQL of ListRuns: conditions, order and page of a search over runs.

Every condition and order has an index (migration 0006).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeGuard

from flywheel_common.paging import Key
from flywheel_trainer.runs.filter_expression import AllOf, AnyOf, Condition, Not
from flywheel_trainer.runs.filter_terms import NUMBERS, Term
from flywheel_trainer.runs.run import Run
from flywheel_trainer.runs.search import Order, rank

Part = Literal["with metric", "without metric", "by start"]
_OPERATORS = frozenset({"=", "!=", "<", "<=", ">", ">="})
_COLUMNS = {"metrics": "value", "min": "min_value", "max": "max_value"}
Bind = Callable[[Any], str]


@dataclass(frozen=True)
class RunSearch:
    """One search. An order by a metric reads the runs with the metric first, then those without it."""

    project: str
    conditions: tuple[Condition, ...]
    order: Order
    show_deleted: bool

    def parts(self, after: list[Key] | None) -> tuple[Part, ...]:
        """What to read, in order, until the page is full."""
        if not self.order.metric:
            return ("by start",)
        if after and after[0] is None:
            return ("without metric",)
        if any(map(self._bounds_order, self.conditions)):
            # A run without the metric does not meet the condition.
            return ("with metric",)
        return "with metric", "without metric"

    def key(self, run: Run) -> tuple[Key, ...]:
        """The position of a run in the order; the last part is its id."""
        if not self.order.metric:
            assert run.started_at is not None
            return run.started_at.isoformat(), run.name.run
        value = rank(run, self.order)
        return None if math.isnan(value) else repr(value), run.name.run

    def statement(self, part: Part, after: list[Key] | None, limit: int) -> tuple[str, list[Any]]:
        """The clauses after the columns of a run `r`, and their parameters.

        Text from the caller is only in the parameters.
        """
        parameters: list[Any] = [self.project]

        def bind(value: Any) -> str:
            parameters.append(value)
            return f"${len(parameters)}"

        # Bounds of the metric of the order limit the range of its index that is read.
        bounds = [one for one in self.conditions if part == "with metric" and self._bounds_order(one)]
        others = [one for one in self.conditions if one not in bounds]
        where = ["r.project = $1", *(_condition(one, bind) for one in others)]
        if not self.show_deleted:
            where.append("r.deleted_at IS NULL")
        beyond, direction = ("<", "DESC") if self.order.descending else (">", "ASC")
        source, columns = "run r", ["r.id"]
        position: list[Any] | None = None
        if part == "by start":
            columns = ["r.started_at", "r.id"]
            position = after and [datetime.fromisoformat(str(after[0])), after[1]]
        elif part == "with metric":
            value = f"o.{_COLUMNS[self.order.of]}"
            source = "run_metric o JOIN run r ON r.id = o.run_id"
            where.append(f"o.key = {bind(self.order.metric)} AND {value} <> 'NaN'")
            where += (f"{value} {one.operator} {bind(one.value)}" for one in bounds)
            columns = [value, "o.run_id"]
            position = after and [float(str(after[0])), after[1]]
        else:
            where.append(
                "NOT EXISTS (SELECT FROM run_metric o WHERE o.run_id = r.id "
                f"AND o.key = {bind(self.order.metric)} AND o.{_COLUMNS[self.order.of]} <> 'NaN')"
            )
            position = [after[1]] if after and after[0] is None else None
        if position:
            where.append(f"({', '.join(columns)}) {beyond} ({', '.join(map(bind, position))})")
        ordering = ", ".join(f"{column} {direction}" for column in columns)
        return (
            f"FROM {source} WHERE {' AND '.join(where)} ORDER BY {ordering} LIMIT {bind(limit)}",
            parameters,
        )

    def _bounds_order(self, condition: Condition) -> TypeGuard[Term]:
        """Whether a condition is one on the value of the order."""
        return (
            isinstance(condition, Term)
            and (condition.field, condition.key) == (self.order.of, self.order.metric)
            and condition.operator in _OPERATORS
        )


def _condition(condition: Condition, bind: Bind) -> str:
    match condition:
        case AllOf(operands):
            return "(" + " AND ".join(_condition(one, bind) for one in operands) + ")"
        case AnyOf(operands):
            return "(" + " OR ".join(_condition(one, bind) for one in operands) + ")"
        case Not(operand):
            # An unset ended_at is neither before nor after a time: NOT holds for it.
            return f"NOT coalesce({_condition(operand, bind)}, false)"
        case Term():
            return _term(condition, bind)


def _term(term: Term, bind: Bind) -> str:
    assert term.operator in _OPERATORS
    if term.field in NUMBERS:
        value = f"m.{_COLUMNS[term.field]}"
        return (
            f"r.id IN (SELECT m.run_id FROM run_metric m WHERE m.key = {bind(term.key)} "
            f"AND {value} {term.operator} {bind(term.value)} AND {value} <> 'NaN')"
        )
    if term.field == "params" and isinstance(term.value, float):
        return (
            f"r.id IN (SELECT n.run_id FROM run_param_number n WHERE n.key = {bind(term.key)} "
            f"AND n.value {term.operator} {bind(term.value)})"
        )
    if term.field in ("params", "tags"):
        negation = "NOT " if term.operator == "!=" else ""
        return f"{negation}r.{term.field} @> {bind({term.key: term.value})}::jsonb"
    return f"r.{term.field} {term.operator} {bind(term.value)}"
