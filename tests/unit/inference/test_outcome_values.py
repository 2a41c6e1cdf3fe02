"""RecordOutcome refuses values that the monitor could only misread; nothing of such a call is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_inference.outcomes.errors import InvalidOutcomeValue
from flywheel_inference.outcomes.recorder import OutcomeRecorder
from flywheel_inference.outcomes.row import OutcomeRow


class Sink:
    """`OutcomeSink` in a list."""

    def __init__(self) -> None:
        self.rows: list[OutcomeRow] = []

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        self.rows += rows


def recorded(name: str, *values: float) -> list[float]:
    """The stored values of a call with these outcomes."""
    sink = Sink()
    rows = [OutcomeRow(f"p{i}", name, value, 7, f"o{i}") for i, value in enumerate(values)]
    try:
        assert asyncio.run(OutcomeRecorder(sink).record("projects/p/models/m", rows)) == len(values)
    except InvalidOutcomeValue:
        assert sink.rows == []
        raise
    return [row.value for row in sink.rows]


@given(st.floats().filter(lambda value: value not in (0.0, 1.0)))
def test_a_label_is_zero_or_one(value: float) -> None:
    with pytest.raises(InvalidOutcomeValue, match=r"outcomes\[2\]"):
        recorded("label", 0.0, 1.0, value)


def test_labels_zero_and_one_are_stored() -> None:
    assert recorded("label", 0.0, 1.0, -0.0) == [0.0, 1.0, 0.0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_business_metric_is_any_finite_number(value: float) -> None:
    assert recorded("revenue", value) == [value]
