"""One model or one caller cannot take the places of the others."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from flywheel_common.context import ANONYMOUS, Principal
from flywheel_inference.prediction.admission import HIGH, LOW, NORMAL, UNSPECIFIED, Admission
from flywheel_inference.prediction.errors import TooManyPredictions

A, B = Principal("a"), Principal("b")


def refused(admission: Admission, model: str, caller: Principal, priority: int = NORMAL) -> bool:
    try:
        with admission.admitted(model, caller, priority):
            return False
    except TooManyPredictions as error:
        return bool(error.retry_after_seconds)


def test_a_caller_or_a_model_at_its_limit_leaves_places_to_others() -> None:
    admission = Admission(max_in_flight=6, max_per_model=4, max_per_caller=3)
    with ExitStack() as running:
        for _ in range(3):
            running.enter_context(admission.admitted("m", A))
        assert refused(admission, "other", A)
        running.enter_context(admission.admitted("m", B))
        assert refused(admission, "m", B)
        assert not refused(admission, "other", B)
        for _ in range(2):
            running.enter_context(admission.admitted("other", B))
        assert refused(admission, "third", Principal("c")), "all places are taken"
        assert (admission.in_flight, admission.by_model) == (6, {"m": 4, "other": 2})
    assert (admission.in_flight, admission.by_model) == (0, {})
    assert not refused(admission, "m", A)


def test_a_prediction_that_fails_gives_its_place_back() -> None:
    admission = Admission(max_in_flight=1, max_per_model=1, max_per_caller=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.admitted("m", A):
            raise ZeroDivisionError
    assert admission.in_flight == 0


def test_in_open_mode_callers_share_the_limit_of_the_gateway() -> None:
    admission = Admission(max_in_flight=3, max_per_model=3, max_per_caller=1)
    with admission.admitted("m", ANONYMOUS), admission.admitted("m", ANONYMOUS):
        assert not refused(admission, "m", ANONYMOUS)


def test_lower_priorities_are_refused_first() -> None:
    admission = Admission(
        max_in_flight=10, max_per_model=10, max_per_caller=10, low_share=0.5, normal_share=0.9
    )
    accepted: dict[int, list[int]] = {LOW: [], NORMAL: [], UNSPECIFIED: [], HIGH: []}
    with ExitStack() as running:
        for taken in range(10):
            for priority, places in accepted.items():
                try:
                    with admission.admitted("m", A, priority):
                        places.append(taken)
                except TooManyPredictions:
                    pass
            running.enter_context(admission.admitted("m", A, HIGH))
        assert refused(admission, "m", B)
    assert accepted[LOW] == [0, 1, 2, 3, 4]
    assert accepted[NORMAL] == accepted[UNSPECIFIED] == list(range(9))
    assert accepted[HIGH] == list(range(10))


def test_a_priority_of_a_newer_client_counts_as_normal() -> None:
    admission = Admission(max_in_flight=2, max_per_model=2, max_per_caller=2, normal_share=0.5)
    with admission.admitted("m", A, HIGH):
        assert refused(admission, "m", A, 17)
