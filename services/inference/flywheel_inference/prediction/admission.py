"""Admission of predictions: limits of those in flight, in all, per model and per caller, by priority."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flywheel_common.context import Principal
from flywheel_inference.prediction.errors import TooManyPredictions
from flywheel_inference.requests.caller_limit import CallerLimit

RETRY_SECONDS = 0.05
UNSPECIFIED, LOW, NORMAL, HIGH = 0, 1, 2, 3
"""Priorities: numbers of inference.v1.Priority. UNSPECIFIED counts as NORMAL."""


class Admission:
    """Counts predictions in flight. One model or one caller cannot take all places, so that the others keep
    some. Lower priorities may take only a share of all places and of a model's places, so that they are
    refused first."""

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
        self._shares = {UNSPECIFIED: normal_share, LOW: low_share, NORMAL: normal_share, HIGH: 1.0}
        self._callers = CallerLimit(max_per_caller)
        self.by_model: Counter[str] = Counter()
        """Predictions in flight by model; no entry for 0."""
        self.in_flight = 0

    @contextmanager
    def admitted(self, model: str, caller: Principal, priority: int = NORMAL) -> Iterator[None]:
        """Counts a prediction while it runs. Raises ResourceExhausted OVERLOADED."""
        share = self._shares.get(priority, self._shares[NORMAL])
        if self.in_flight >= math.ceil(self._max_in_flight * share):
            raise _refused(f"{self.in_flight} predictions are in flight")
        if self.by_model[model] >= math.ceil(self._max_per_model * share):
            raise _refused(f"{self.by_model[model]} predictions of {model} are in flight")
        if not self._callers.allows(caller):
            raise _refused(f"{self._callers.held(caller)} predictions of {caller.subject} are in flight")
        self.in_flight += 1
        self.by_model[model] += 1
        self._callers.add(caller, 1)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.by_model[model] -= 1
            if not self.by_model[model]:
                del self.by_model[model]
            self._callers.add(caller, -1)


def _refused(found: str) -> TooManyPredictions:
    return TooManyPredictions(
        f"{found}: retry after the delay, with backoff.", retry_after_seconds=RETRY_SECONDS
    )
