"""Validation rules: which rows break them, and which action applies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_feature.definitions.model import DataType, ValidationAction, ValidationRule
from flywheel_feature.definitions.value_rules import Report, mistakes, validate

REJECT, QUARANTINE, FLAG = ValidationAction.REJECT, ValidationAction.QUARANTINE, ValidationAction.FLAG


def rejected(rule: ValidationRule, series: pl.Series) -> list[bool]:
    verdict = validate([("x", rule)], pl.DataFrame({"x": series}))
    return [bool(v) for v in verdict.rejected]


@pytest.mark.parametrize(
    ("rule", "series", "broken"),
    [
        (ValidationRule(min=0, max=10), pl.Series([0.0, 10.0, -0.1, 10.1, None]), [0, 0, 1, 1, 0]),
        (ValidationRule(max=5), pl.Series([5, 6, None]), [0, 1, 0]),
        (ValidationRule(max=0.1), pl.Series([0.1, 0.2], dtype=pl.Float32), [0, 1]),
        (ValidationRule(max=5), pl.Series([[1, 9], [], None, [5]], dtype=pl.List(pl.Int64)), [1, 0, 0, 0]),
        (ValidationRule(min=0), pl.Series([[1.0, -1.0], [0.0, 0.0]], dtype=pl.Array(pl.Float32, 2)), [1, 0]),
        (ValidationRule(allowed=("a", "b")), pl.Series(["a", "c", "", None]), [0, 1, 1, 0]),
        (
            ValidationRule(allowed=("a",)),
            pl.Series([["a", "c"], ["a"], [], None], dtype=pl.List(pl.String)),
            [1, 0, 0, 0],
        ),
        (ValidationRule(max_null_rate=0.5), pl.Series([1.0, None, None, 2.0]), [0, 0, 0, 0]),
        (ValidationRule(max_null_rate=0.5), pl.Series([1.0, None, None]), [0, 1, 1]),
        (ValidationRule(max_null_rate=0.0), pl.Series([None, "x"]), [1, 0]),
        (ValidationRule(max_null_rate=0.0), pl.Series([], dtype=pl.Float64), []),
    ],
)
def test_rows_that_break_a_rule(rule: ValidationRule, series: pl.Series, broken: list[int]) -> None:
    assert rejected(rule, series) == [bool(b) for b in broken]


def test_the_most_severe_action_wins_and_all_breaches_are_listed() -> None:
    rules = [
        ("x", ValidationRule(max=1, action=FLAG)),
        ("x", ValidationRule(max=2, action=QUARANTINE)),
        ("x", ValidationRule(max=3, action=REJECT)),
        ("y", ValidationRule(allowed=("a",), action=QUARANTINE)),
    ]
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": ["a", "a", "b", "b"]})
    verdict = validate(rules, frame)
    assert verdict.flagged.tolist() == [False, True, False, False]
    assert verdict.quarantined.tolist() == [False, False, True, False]
    assert verdict.rejected.tolist() == [False, False, False, True]
    assert verdict.kept.tolist() == [True, True, False, False]
    assert verdict.reasons == (("x: max 1", "x: max 2", "y: allowed a"),)
    assert [(b.feature, b.rule, b.rows, b.first) for b in verdict.breaches] == [
        ("x", "max 1", 3, 1),
        ("x", "max 2", 2, 2),
        ("x", "max 3", 1, 3),
        ("y", "allowed a", 2, 2),
    ]
    twice = Report().plus(verdict).plus(verdict)
    assert (twice.rejected, twice.quarantined, twice.flagged) == (2, 2, 2)
    assert [b.rows for b in twice.breaches] == [6, 4, 2, 4]


@given(
    st.lists(st.one_of(st.none(), st.integers(-20, 20)), max_size=20),
    st.integers(-10, 10),
    st.sampled_from(ValidationAction),
)
def test_every_row_has_one_action_and_only_breaches_are_dropped(
    values: list[int | None], bound: int, action: ValidationAction
) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=pl.Int64)})
    verdict = validate([("x", ValidationRule(max=bound, action=action))], frame)
    want = np.array([v is not None and v > bound for v in values], bool)
    by_action = {REJECT: verdict.rejected, QUARANTINE: verdict.quarantined, FLAG: verdict.flagged}
    assert by_action.pop(action).tolist() == want.tolist()
    assert not any(mask.any() for mask in by_action.values())
    assert verdict.kept.tolist() == (np.ones(len(values), bool) if action is FLAG else ~want).tolist()


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        (ValidationRule(), DataType.FLOAT64, "set min, max"),
        (ValidationRule(min=2, max=1), DataType.FLOAT64, "min must not be greater than max"),
        (ValidationRule(min=float("nan")), DataType.FLOAT64, "finite"),
        (ValidationRule(min=1), DataType.STRING, "min and max need a number type, not STRING"),
        (ValidationRule(allowed=("a",)), DataType.INT64, "allowed needs a text type, not INT64"),
        (ValidationRule(max_null_rate=1.0), DataType.BYTES, "at least 0 and below 1"),
    ],
)
def test_invalid_rules_are_rejected_when_applied(rule: ValidationRule, kind: DataType, expected: str) -> None:
    assert any(expected in m for m in mistakes(rule, kind))
    assert mistakes(replace(rule, min=0, max=None, max_null_rate=None, allowed=()), DataType.FLOAT32) == []
