"""Asks at each value of a metric whether the trial of a TUNE job goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel_job.errors import TrialStopped
from flywheel_job.launch import TrialGate
from flywheel_job.reporting import MetricReporter


class GatedReporter(MetricReporter):
    """A `MetricReporter` whose `log` raises TrialStopped after the driver of the TUNE job stopped the trial.

    It waits for the answer, so that a trial that is stopped takes no further step.
    """

    def __init__(self, address: str, run: str, gate: TrialGate) -> None:
        super().__init__(address, run)
        self._gate = gate
        self._actor: Any = None
        self._stopped = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        if self._gate.metric in values:
            self._stopped = self._stopped or self._asks(step, values[self._gate.metric])
        if self._stopped:
            raise TrialStopped(f"Early stopping has ended the trial at step {step}.")

    def _asks(self, step: int, value: float) -> bool:
        import ray

        if self._actor is None:
            self._actor = ray.get_actor(self._gate.actor)
        return bool(ray.get(self._actor.report.remote(self._gate.trial, step, value)))
