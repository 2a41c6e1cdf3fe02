"""The SQL of ListRuns: conditions, order and page of a search over runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flywheel_common.paging import Key
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.search import Order

_OPERATORS = frozenset({"=", "!=", "<", "<=", ">", ">="})


def search_clauses(
    project: str, terms: Sequence[Term], order: Order | None, after: list[Key] | None, limit: int
) -> tuple[str, list[Any]]:
    """The clauses after `FROM run r`, and their parameters.

    Text from the caller is only in the parameters.
    """
    parameters: list[Any] = [project]

    def bind(value: Any) -> str:
        parameters.append(value)
        return f"${len(parameters)}"

    where, join = ["r.project = $1"], ""
    for term in terms:
        assert term.operator in _OPERATORS
        if term.field == "metrics":
            where.append(
                f"EXISTS (SELECT 1 FROM run_metric m WHERE m.run_id = r.id AND m.key = {bind(term.key)} "
                f"AND m.value {term.operator} {bind(term.value)} AND m.value <> 'NaN')"
            )
        elif term.field in ("params", "tags"):
            negation = "NOT " if term.operator == "!=" else ""
            where.append(f"{negation}r.{term.field} @> {bind({term.key: term.value})}::jsonb")
        else:
            where.append(f"r.{term.field} {term.operator} {bind(term.value)}")
    if order is None:
        if after:
            where.append(f"r.id < {bind(after[0])}")
        ordering = "r.id DESC"
    else:
        join = f"LEFT JOIN run_metric o ON o.run_id = r.id AND o.key = {bind(order.metric)} "
        missing, direction = ("'-Infinity'", "DESC") if order.descending else ("'Infinity'", "ASC")
        value = f"coalesce(nullif(o.value, 'NaN'), {missing}::float8)"
        if after:
            beyond = "<" if order.descending else ">"
            where.append(f"({value}, r.id) {beyond} ({bind(float(str(after[0])))}, {bind(after[1])})")
        ordering = f"{value} {direction}, r.id {direction}"
    return f"{join}WHERE {' AND '.join(where)} ORDER BY {ordering} LIMIT {bind(limit)}", parameters
