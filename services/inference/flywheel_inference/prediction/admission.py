"""Admission of predictions: limits of those in flight, in all, per model and per caller, by priority."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flywheel_common.context import ANONYMOUS, Principal
from flywheel_inference.prediction.errors import TooManyPredictions

RETRY_SECONDS = 0.05
UNSPECIFIED, LOW, NORMAL, HIGH = 0, 1, 2, 3
"""Priorities: numbers of inference.v1.Priority. UNSPECIFIED counts as NORMAL."""


class Admission:
    """Counts predictions in flight. One model or one caller cannot take all places, so that the others keep
    some. Lower priorities may take only a share of all places and of a model's places, so that they are
    refused first. In open mode callers cannot be told apart: the limit per caller does not apply."""

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_per_model: int,
        max_per_caller: int,
        low_share: float = 1.0,
        normal_share: float = 1.0,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._max_per_model = max_per_model
        self._max_per_caller = max_per_caller
        self._shares = {UNSPECIFIED: normal_share, LOW: low_share, NORMAL: normal_share, HIGH: 1.0}
        self._by_caller: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()
        """Predictions in flight by model; no entry for 0."""
        self.in_flight = 0

    @contextmanager
    def admitted(self, model: str, caller: Principal, priority: int = NORMAL) -> Iterator[None]:
        """Counts a prediction while it runs. Raises ResourceExhausted OVERLOADED."""
        share = self._shares.get(priority, self._shares[NORMAL])
        subject = "" if caller.subject == ANONYMOUS.subject else caller.subject
        if self.in_flight >= math.ceil(self._max_in_flight * share):
            raise _refused(f"{self.in_flight} predictions are in flight")
        if self.by_model[model] >= math.ceil(self._max_per_model * share):
            raise _refused(f"{self.by_model[model]} predictions of {model} are in flight")
        if subject and self._by_caller[subject] >= self._max_per_caller:
            raise _refused(f"{self._max_per_caller} predictions of {subject} are in flight")
        self.in_flight += 1
        self.by_model[model] += 1
        if subject:
            self._by_caller[subject] += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            _leave(self.by_model, model)
            if subject:
                _leave(self._by_caller, subject)


def _leave(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _refused(found: str) -> TooManyPredictions:
    return TooManyPredictions(
        f"{found}: retry after the delay, with backoff.", retry_after_seconds=RETRY_SECONDS
    )
