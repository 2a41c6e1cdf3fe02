"""Scores and decisions by the kind of output."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_common.signature import OutputKind
from flywheel_inference.releases.decision import decisions, scores

VALUES = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("kind", "width", "expected"),
    [
        (OutputKind.BINARY, 1, [0.2, 0.6, 0.3]),
        (OutputKind.REGRESSION, 1, [0.2, 0.6, 0.3]),
        (OutputKind.MULTICLASS, 3, [0.5, 0.6, 0.4]),
        (OutputKind.VECTOR, 3, [0.0, 0.0, 0.0]),
    ],
)
def test_the_score_follows_the_kind(kind: OutputKind, width: int, expected: list[float]) -> None:
    assert scores(kind, VALUES[:, :width]).tolist() == expected


@pytest.mark.parametrize("kind", [OutputKind.BINARY, OutputKind.MULTICLASS])
def test_a_score_decides_when_it_reaches_the_threshold_of_its_segment(kind: OutputKind) -> None:
    found = np.array([0.49, 0.5, 0.5, 0.95, np.nan])
    segments = ["o=JFK", "o=JFK", "o=LGA", "o=LGA", "o=LGA"]
    assert decisions(kind, found, segments, 0.5, {}).tolist() == [False, True, True, True, False]
    own = {"o=LGA": 0.9, "o=SFO": 0.1}
    assert decisions(kind, found, segments, 0.5, own).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("kind", [OutputKind.REGRESSION, OutputKind.VECTOR])
def test_a_number_or_a_vector_decides_nothing(kind: OutputKind) -> None:
    assert decisions(kind, np.array([9.0, -1.0]), ["a", "b"], 0.0, {"a": -5.0}).tolist() == [False, False]
