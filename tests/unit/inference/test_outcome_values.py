"""RecordOutcome refuses values that the monitor could only misread; nothing of such a call is stored."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_inference.outcomes.errors import InvalidOutcomeValue
from flywheel_inference.outcomes.recorder import OutcomeRecorder
from flywheel_inference.outcomes.row import OutcomeRow


class Sink:
    """`OutcomeSink` in a list."""

    def __init__(self) -> None:
        self.rows: list[OutcomeRow] = []

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        self.rows += rows


class Models:
    """`ModelOutputs` with one model."""

    def __init__(self, outputs: Sequence[OutputSpec]) -> None:
        self._outputs = outputs

    def outputs(self, model: str) -> Sequence[OutputSpec]:
        return self._outputs


BINARY = OutputSpec()
MULTICLASS = OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b"))
REGRESSION = OutputSpec(OutputKind.REGRESSION)
VECTOR = OutputSpec(OutputKind.VECTOR, size=2)


def recorded(name: str, *values: float | str, outputs: Sequence[OutputSpec] = (BINARY,)) -> list[float | str]:
    """The stored values and class names (str) of a call with these outcomes."""
    sink = Sink()
    rows = []
    for i, value in enumerate(values):
        number, class_name = (math.nan, value) if isinstance(value, str) else (value, "")
        rows.append(OutcomeRow(f"p{i}", name, number, 7, f"o{i}", class_name))
    try:
        recorder = OutcomeRecorder(sink, Models(outputs))
        assert asyncio.run(recorder.record("projects/p/models/m", rows)) == len(values)
    except InvalidOutcomeValue:
        assert sink.rows == []
        raise
    return [row.class_name or row.value for row in sink.rows]


@given(st.floats().filter(lambda value: value not in (0.0, 1.0)))
def test_a_label_is_zero_or_one(value: float) -> None:
    with pytest.raises(InvalidOutcomeValue, match=r"outcomes\[2\]"):
        recorded("label", 0.0, 1.0, value)


def test_labels_zero_and_one_are_stored() -> None:
    assert recorded("label", 0.0, 1.0, -0.0) == [0.0, 1.0, 0.0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_business_metric_is_any_finite_number(value: float) -> None:
    assert recorded("revenue", value) == [value]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_label_of_a_regression_is_any_finite_number(value: float) -> None:
    assert recorded("label", value, outputs=[REGRESSION]) == [value]


def test_a_label_of_a_multiclass_model_is_one_of_its_classes() -> None:
    assert recorded("label", "a", "b", "a", outputs=[MULTICLASS]) == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (MULTICLASS, "c"),
        (MULTICLASS, 1.0),
        (BINARY, "a"),
        (REGRESSION, "a"),
        (REGRESSION, math.inf),
        (VECTOR, 1.0),
        (VECTOR, "a"),
    ],
)
def test_a_label_that_the_model_cannot_have_is_refused(output: OutputSpec, value: float | str) -> None:
    with pytest.raises(InvalidOutcomeValue, match=r"outcomes\[0\]"):
        recorded("label", value, outputs=[output])


def test_one_of_several_releases_must_have_the_label() -> None:
    wider = OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b", "c"))
    assert recorded("label", "c", outputs=[MULTICLASS, wider]) == ["c"]
    with pytest.raises(InvalidOutcomeValue, match="a, b"):
        recorded("label", "d", outputs=[MULTICLASS, wider])


def test_without_a_readable_release_every_label_is_stored() -> None:
    assert recorded("label", "c", -3.5, outputs=[]) == ["c", -3.5]


def test_a_business_metric_has_no_class() -> None:
    with pytest.raises(InvalidOutcomeValue, match="class_name"):
        recorded("revenue", "a", outputs=[MULTICLASS])


def test_an_outcome_with_a_value_and_a_class_is_refused() -> None:
    row = OutcomeRow("p", "label", 1.0, 7, "o", "a")
    with pytest.raises(InvalidOutcomeValue, match="one of them"):
        asyncio.run(OutcomeRecorder(Sink(), Models([MULTICLASS])).record("projects/p/models/m", [row]))
