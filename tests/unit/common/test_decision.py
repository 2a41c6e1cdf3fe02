"""Scores and decisions by the kind of output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flywheel_common.scoring.decision import decisions, scores
from flywheel_common.signature import OutputKind
from flywheel_inference.releases.release import FieldSpec
from flywheel_inference.requests.request import thresholds_of
from tests.support.builders.inference import LOG_CONTRACT, LOG_SPEC, log_request

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
def test_a_score_decides_when_it_reaches_its_threshold(kind: OutputKind) -> None:
    found = np.array([0.49, 0.5, 0.5, 0.95, np.nan])
    assert decisions(kind, found, 0.5).tolist() == [False, True, True, True, False]
    own = [0.5, 0.5, 0.9, 0.9, 0.9]
    assert decisions(kind, found, own).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("kind", [OutputKind.REGRESSION, OutputKind.VECTOR])
def test_a_number_or_a_vector_decides_nothing(kind: OutputKind) -> None:
    assert decisions(kind, np.array([9.0, -1.0]), [-5.0, -5.0]).tolist() == [False, False]


def test_the_whole_segment_comes_before_its_keys_in_their_order() -> None:
    own = {"o=JFK,c=UA": 0.1, "c=UA": 0.2, "o=JFK": 0.3, "o=a,c=UA": 0.4}
    release = replace(LOG_SPEC, threshold=0.5, segment_keys=("o", "c"), segment_thresholds=own)

    contract = replace(LOG_CONTRACT, join_keys=tuple(FieldSpec(name, 5) for name in ("o", "c")))

    def threshold(o: str | None = None, c: str | None = None) -> float:
        request = log_request(1)
        request.contract, request.keys = contract, (o, c)
        (found,) = thresholds_of(release, [request])
        return found

    assert threshold(o="JFK", c="UA") == 0.1
    assert threshold(o="JFK", c="DL") == 0.3
    assert threshold(o="LGA", c="UA") == 0.2
    assert threshold(o="LGA", c="DL") == threshold() == 0.5
    assert threshold(o="LGA", c="x,o=JFK") == 0.5, "a value with a comma is no other segment"
    assert thresholds_of(replace(release, segment_thresholds={}), [log_request(1)]) == []
