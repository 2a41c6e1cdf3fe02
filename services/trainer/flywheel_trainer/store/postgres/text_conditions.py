"""SQL conditions of filters on text columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_trainer.runs.filter_terms import Term


def text_conditions(
    terms: Sequence[Term], columns: Mapping[str, str], parameters: list[Any]
) -> tuple[str, list[Any]]:
    """` AND …` for each term, and the parameters followed by the values of the terms.

    `columns` are the columns of the fields. Text from the caller is only in the parameters.
    """
    values = [*parameters, *(term.value for term in terms)]
    conditions = [
        f" AND {columns[term.field]} {'<>' if term.operator == '!=' else '='} ${number}"
        for number, term in enumerate(terms, len(parameters) + 1)
    ]
    return "".join(conditions), values
