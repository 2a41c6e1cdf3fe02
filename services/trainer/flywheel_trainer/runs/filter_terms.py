"""Filters of List methods, parsed into terms that a store can turn into SQL parameters.

    experiment=late AND params.lr=0.1 AND metrics.`val/loss=5`>0.5 AND tags.team!="a AND b"

Terms are joined by AND. Backticks quote the key of a map and double quotes quote a value, so that every key
and value can be written; a quotation mark inside is doubled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from flywheel_trainer.runs.errors import InvalidFilter

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
METRICS = "metrics"
NUMBERS = (METRICS, "min", "max")
"""Maps of numbers: the last, smallest and largest values of metrics."""
# Possessive quantifiers: the time to refuse a text grows linearly with its length. Of single characters only:
# Python 3.11.2 (Debian 12) matches those of groups wrongly.
KEY = r"`(?P<quoted_key>(?:[^`]++|``)*)`"
_TERM = re.compile(
    rf"(?P<field>[a-z_]++)(?:\.(?:{KEY}|(?P<key>[^<>!=\s`]++)))?\s*+"
    r"(?P<operator><=|>=|!=|=|<|>)\s*+"
    r'(?:"(?P<quoted_value>(?:[^"]++|"")*)"|(?P<value>[^"\s]\S*+(?:\s++(?!AND\s)\S++)*))'
    r"(?:\s*+\Z|\s++AND\s++)"
)


@dataclass(frozen=True)
class Term:
    """One condition: `field` is a field of the resource; `key` is the key if the field is a map."""

    field: str
    key: str
    operator: Operator
    value: str | float | datetime


def parse_terms(
    text: str, fields: Mapping[str, Collection[str]], maps: Collection[str] = ()
) -> tuple[Term, ...]:
    """The terms of a filter; an empty filter has none.

    `fields` are the supported fields with their values, none: any text. `maps` are the fields with keys;
    those of NUMBERS contain numbers. Raises InvalidFilter.
    """
    text, position, terms = text.strip(), 0, []
    while position < len(text):
        found = _TERM.match(text, position)
        if found is None:
            raise invalid(text[position:], _advice(fields, maps))
        terms.append(term_of(found, fields, maps))
        position = found.end()
    return tuple(terms)


def unquoted(found: re.Match[str]) -> str:
    """The key that KEY or an unquoted alternative of it matched."""
    if found["quoted_key"] is not None:
        return found["quoted_key"].replace("``", "`")
    return found["key"] or ""


def value_of(found: re.Match[str]) -> str:
    """The value of a term, without its quotes."""
    quoted: str | None = found["quoted_value"]
    return str(found["value"]) if quoted is None else quoted.replace('""', '"')


def term_of(found: re.Match[str], fields: Mapping[str, Collection[str]], maps: Collection[str]) -> Term:
    """The term in the groups of a match. Raises InvalidFilter."""
    text, field, operator = found[0].strip(), found["field"], found["operator"]
    has_key = found["key"] is not None or found["quoted_key"] is not None
    if field not in (maps if has_key else fields):
        raise invalid(text, _advice(fields, maps))
    value = value_of(found)
    if field in NUMBERS:
        number = number_of(value)
        if math.isnan(number):
            raise invalid(text, "compare a metric with a number, and write a key that contains <>!= in ``")
        return Term(field, unquoted(found), operator, number)  # type: ignore[arg-type]
    if operator not in ("=", "!="):
        raise invalid(text, f"{field} is text: compare it with = or !=")
    allowed = () if has_key else fields[field]
    if allowed:
        # Also the names of the enum in the API, such as RUN_STATE_FAILED.
        value = value.upper().rpartition("_STATE_")[2]
        if value not in allowed:
            raise invalid(text, f"{field} is one of {', '.join(allowed)}")
    return Term(field, unquoted(found), operator, value)  # type: ignore[arg-type]


def number_of(text: str) -> float:
    """The number, or NaN for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _advice(fields: Collection[str], maps: Collection[str]) -> str:
    forms = [f"{field}=VALUE" for field in fields]
    forms += [f"{field}.KEY>0.7" if field in NUMBERS else f"{field}.KEY=VALUE" for field in maps]
    return f"write {', '.join(forms)}, joined by AND"


def invalid(text: str, advice: str) -> InvalidFilter:
    """The error for a part of a filter."""
    return InvalidFilter(f"Filter {text[:120]!r} is not valid: {advice}.", field="filter")
