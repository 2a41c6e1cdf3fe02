"""Validation rules, checked when rows are written: which rows break which rule, and the action taken.

A null breaks neither bounds nor `allowed`. `max_null_rate` is checked per write (one push, or one batch of a
job): when a larger share of the rows is null, every null row breaks the rule. A list or vector breaks a rule
when one element does. A row that breaks several rules gets the most severe action: REJECT, then QUARANTINE,
then FLAG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flywheel_common.arrays import Mask
from flywheel_feature.definitions.model import DataType, ValidationAction, ValidationRule

_NUMBERS = frozenset({DataType.INT64, DataType.FLOAT32, DataType.FLOAT64})
Ruled = Sequence[tuple[str, ValidationRule]]
"""(column, rule) pairs."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A broken rule of one feature; `rows` counts the rows that broke it, `first` is the first of them."""

    feature: str
    rule: str
    action: ValidationAction
    rows: int
    first: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Masks over n rows. Every row is in at most one of `rejected`, `quarantined` and `flagged`."""

    rejected: Mask
    quarantined: Mask
    flagged: Mask
    breaches: tuple[Breach, ...] = ()
    reasons: tuple[tuple[str, ...], ...] = ()
    """The broken rules of every quarantined row."""

    @property
    def kept(self) -> Mask:
        return ~(self.rejected | self.quarantined)


@dataclass(frozen=True, slots=True)
class Report:
    """Sums over the writes of one request or job."""

    rejected: int = 0
    quarantined: int = 0
    flagged: int = 0
    breaches: tuple[Breach, ...] = ()

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Report:
        """A report from the JSON form of dataclasses.asdict(report)."""
        breaches = (Breach(**{**b, "action": ValidationAction(b["action"])}) for b in values["breaches"])
        return cls(**{**values, "breaches": tuple(breaches)})

    def plus(self, verdict: Verdict) -> Report:
        merged = {(b.feature, b.rule, b.action): b for b in self.breaches}
        for b in verdict.breaches:
            old = merged.get((b.feature, b.rule, b.action))
            rows, first = (old.rows + b.rows, old.first) if old else (b.rows, b.first)
            merged[b.feature, b.rule, b.action] = Breach(b.feature, b.rule, b.action, rows, first)
        return Report(
            self.rejected + int(verdict.rejected.sum()),
            self.quarantined + int(verdict.quarantined.sum()),
            self.flagged + int(verdict.flagged.sum()),
            tuple(merged.values()),
        )


def mistakes(rule: ValidationRule, data_type: DataType) -> list[str]:
    """Messages about what is wrong with a rule for values of a type; empty for a valid rule."""
    found: list[str] = []
    bounds = [b for b in (rule.min, rule.max) if b is not None]
    if not bounds and rule.max_null_rate is None and not rule.allowed:
        found.append("set min, max, max_null_rate or allowed")
    if bounds and data_type.element not in _NUMBERS:
        found.append(f"min and max need a number type, not {data_type.name}")
    if not all(map(math.isfinite, bounds)) or (len(bounds) == 2 and bounds[0] > bounds[1]):
        found.append("min and max must be finite, and min must not be greater than max")
    if rule.max_null_rate is not None and not 0 <= rule.max_null_rate < 1:
        found.append("max_null_rate must be at least 0 and below 1")
    if rule.allowed and data_type.element != DataType.STRING:
        found.append(f"allowed needs a text type, not {data_type.name}")
    return found


def validate(ruled: Ruled, frame: pl.DataFrame) -> Verdict:
    """Check every row of `frame`, whose columns have the declared types."""
    broken = [
        (name, text, rule.action, mask)
        for name, rule in ruled
        for text, mask in _broken(rule, frame.get_column(name))
    ]
    by_action = {action: np.zeros(frame.height, np.bool_) for action in ValidationAction}
    for _, _, action, mask in broken:
        by_action[action] |= mask
    rejected = by_action[ValidationAction.REJECT]
    quarantined = by_action[ValidationAction.QUARANTINE] & ~rejected
    flagged = by_action[ValidationAction.FLAG] & ~rejected & ~quarantined
    breaches = tuple(
        Breach(name, text, action, int(mask.sum()), int(mask.argmax()))
        for name, text, action, mask in broken
        if mask.any()
    )
    reasons = tuple(
        tuple(f"{name}: {text}" for name, text, _, mask in broken if mask[row])
        for row in np.flatnonzero(quarantined)
    )
    return Verdict(rejected, quarantined, flagged, breaches, reasons)


def _broken(rule: ValidationRule, values: pl.Series) -> list[tuple[str, Mask]]:
    found: list[tuple[str, Mask]] = []
    low, high = _extremes(values) if rule.min is not None or rule.max is not None else (values, values)
    if rule.min is not None:
        found.append((f"min {rule.min:g}", _mask(low < rule.min)))
    if rule.max is not None:
        found.append((f"max {rule.max:g}", _mask(high > rule.max)))
    if rule.allowed:
        found.append((f"allowed {', '.join(rule.allowed)}"[:200], _others(rule, values)))
    if rule.max_null_rate is not None:
        nulls = values.is_null().to_numpy().astype(np.bool_)
        over = nulls.size > 0 and nulls.mean() > rule.max_null_rate
        found.append((f"max_null_rate {rule.max_null_rate:g}", nulls if over else np.zeros_like(nulls)))
    return found


def _extremes(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    if isinstance(values.dtype, pl.Array):
        return values.arr.min(), values.arr.max()
    if isinstance(values.dtype, pl.List):
        low, high = values.list.min(), values.list.max()
        assert isinstance(low, pl.Series)
        assert isinstance(high, pl.Series)
        return low, high
    return values, values


def _others(rule: ValidationRule, values: pl.Series) -> Mask:
    if isinstance(values.dtype, pl.List):
        return _mask(values.list.eval(~pl.element().is_in(list(rule.allowed))).list.any())
    return _mask(~values.is_in(list(rule.allowed)))


def _mask(series: pl.Series) -> Mask:
    mask: Mask = series.fill_null(False).to_numpy().astype(np.bool_)
    return mask
