"""Filters of ListRuns: terms joined by AND, OR, NOT and parentheses.

    experiment=late AND (min.loss<0.2 OR NOT params.lr>=0.1) AND started_at>=2026-01-31T00:00:00Z

The terms are those of `runs.filter_terms`; a value with parentheses needs quotes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Union

from flywheel_trainer.runs.errors import InvalidFilter
from flywheel_trainer.runs.filter_terms import (
    KEY,
    NUMBERS,
    Term,
    invalid,
    number_of,
    term_of,
    unquoted,
    value_of,
)
from flywheel_trainer.runs.run import RunState

MAX_TERMS = 100
MAX_DEPTH = 30
TEXTS: Mapping[str, tuple[str, ...]] = {
    "experiment": (),
    "state": tuple(RunState),
    "display_name": (),
    "parent_run": (),
}
MAPS = ("params", "tags", *NUMBERS)
TIMES = ("started_at", "ended_at")
_ADVICE = (
    f"write FIELD=VALUE with {', '.join(TEXTS)}, MAP.KEY=VALUE with {', '.join(MAPS)}, or "
    f"TIME>=2026-01-31 with {', '.join(TIMES)}, joined by AND, OR, NOT and parentheses"
)
# Possessive quantifiers: the time to refuse a text grows linearly with its length. Of single characters only:
# Python 3.11.2 (Debian 12) matches those of groups wrongly.
_TERM = re.compile(
    rf"(?P<field>[a-z_]++)(?:\.(?:{KEY}|(?P<key>[^<>!=\s`]++)))?\s*+"
    r"(?P<operator><=|>=|!=|=|<|>)\s*+"
    r'(?:"(?P<quoted_value>(?:[^"]++|"")*)"|'
    r'(?P<value>[^"\s()][^\s()]*+(?:\s++(?!(?:AND|OR)(?:\s|\())[^\s()]++)*))'
    r"(?=\s|\)|\Z)"
)
_WORD = re.compile(r"(AND|OR|NOT)(?=\s|\()")
_SPACE = re.compile(r"\s*+")


@dataclass(frozen=True)
class Not:
    """The operand does not hold."""

    operand: Condition


@dataclass(frozen=True)
class AllOf:
    """All operands hold."""

    operands: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one operand holds."""

    operands: tuple[Condition, ...]


Condition = Union[Term, Not, AllOf, AnyOf]  # noqa: UP007 - a type alias with forward references


def parse_conditions(text: str) -> tuple[Condition, ...]:
    """The conditions of a filter, all of which have to hold; none for an empty one. Raises InvalidFilter."""
    if not text.strip():
        return ()
    parser = _Parser(text.strip())
    found = parser.any_of(0)
    if parser.position < len(parser.text):
        raise parser.refused()
    return found.operands if isinstance(found, AllOf) else (found,)


class _Parser:
    """Recursive descent; every method begins and ends at a position without white space."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.terms = text, 0, 0

    def any_of(self, depth: int) -> Condition:
        operands = [self.all_of(depth)]
        while self.takes("OR"):
            operands.append(self.all_of(depth))
        return operands[0] if len(operands) == 1 else AnyOf(tuple(operands))

    def all_of(self, depth: int) -> Condition:
        operands = [self.one(depth)]
        while self.takes("AND"):
            operands.append(self.one(depth))
        return operands[0] if len(operands) == 1 else AllOf(tuple(operands))

    def one(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"The filter is nested deeper than {MAX_DEPTH}.", field="filter")
        if self.takes("NOT"):
            return Not(self.one(depth + 1))
        if self.text.startswith("(", self.position):
            self.move(self.position + 1)
            inner = self.any_of(depth + 1)
            if not self.text.startswith(")", self.position):
                raise self.refused()
            self.move(self.position + 1)
            return inner
        found = _TERM.match(self.text, self.position)
        if found is None:
            raise self.refused()
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise InvalidFilter(f"The filter has more than {MAX_TERMS} conditions.", field="filter")
        self.move(found.end())
        return _run_term(found)

    def takes(self, word: str) -> bool:
        """Skip this word if it comes next."""
        found = _WORD.match(self.text, self.position)
        if found is None or found[1] != word:
            return False
        self.move(found.end())
        return True

    def move(self, position: int) -> None:
        found = _SPACE.match(self.text, position)
        self.position = position if found is None else found.end()

    def refused(self) -> InvalidFilter:
        return invalid(self.text[self.position :], _ADVICE)


def _run_term(found: re.Match[str]) -> Term:
    field, operator, value = found["field"], found["operator"], value_of(found)
    has_key = found["key"] is not None or found["quoted_key"] is not None
    if field in TIMES and not has_key:
        return Term(field, "", operator, _time(found[0], value))  # type: ignore[arg-type]
    if field == "params" and has_key and operator not in ("=", "!="):
        number = number_of(value)
        if math.isnan(number):
            raise invalid(found[0], "compare a param with a number, or with = or !=")
        return Term(field, unquoted(found), operator, number)  # type: ignore[arg-type]
    term = term_of(found, TEXTS, MAPS)
    if term.field == "parent_run":
        return replace(term, value=str(term.value).rpartition("/")[2])
    return term


def _time(term: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(term, "write a time as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
