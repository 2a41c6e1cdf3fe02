"""What the monitor counts of a rollout's step, and its answer with its own verdicts, as over the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from flywheel_monitor.api.convert_comparison import limits_from_proto, verdict_to_proto
from flywheel_monitor.comparison.bounds import Bounds
from flywheel_monitor.comparison.step_verdicts import StepCounts, step_verdicts
from flywheel_monitor.windows.histograms import LATENCY_BINS, LATENCY_EDGES_MS, latency_bins, quantile
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.state_machine import Progress
from flywheel_registry.store.grpc.monitor import compare_request, parse_comparison

FIRST_EVENT = datetime(2013, 4, 1, tzinfo=UTC)
STDDEV = 0.1
"""Standard deviation of the scores of both sides."""


@dataclass(frozen=True)
class Counted:
    """The predictions of a step over `days` of event time, for the monitor to judge.

    `error` is the standard error of `delta`. `slow` is the share of the challenger's answers that take
    `latency_ms`; the others take 1 ms.
    """

    delta: float = -0.01
    error: float = 0.001
    labelled: int = 500
    days: float = 2.0
    predictions: int = 1000
    champion_predictions: int = 10_000
    error_rate: float = 0.0
    latency_ms: float = 1.0
    slow: float = 1.0
    score_shift: float = 0.0
    first_event: datetime = FIRST_EVENT
    experiment: ExperimentVerdict | None = None

    def answer(self, request: monitor_pb2.CompareVariantsRequest) -> monitor_pb2.CompareVariantsResponse:
        """Return the monitor's answer to a request about this step."""
        slow = round(self.slow * self.predictions)
        latencies = np.zeros(LATENCY_BINS, np.int64)
        for milliseconds, rows in ((self.latency_ms, slow), (1.0, self.predictions - slow)):
            latencies[latency_bins(np.array([milliseconds]))] += rows
        seen = StepCounts(
            predictions=self.predictions,
            failures=round(self.error_rate * self.predictions),
            latencies=latencies,
            loss=Bounds(self.delta, error=self.error) if self.labelled > 1 else Bounds(),
            labelled=self.labelled,
            score_shift=self.score_shift,
            champion_scored=self.champion_predictions,
            challenger_scored=self.predictions,
            stddev_ratio=1.0,
        )
        margin = (
            NormalDist().inv_cdf(1 - (request.alpha or 0.05)) * self.error if self.labelled > 1 else math.inf
        )
        side = {"labelled": self.labelled, "score_stddev": STDDEV}
        answer = monitor_pb2.CompareVariantsResponse(
            champion=monitor_pb2.VariantStatistics(predictions=self.champion_predictions, **side),
            challenger=monitor_pb2.VariantStatistics(
                predictions=self.predictions,
                error_rate=self.error_rate,
                latency_p99_ms=quantile(LATENCY_EDGES_MS, latencies, 0.99),
                **side,
            ),
            labelled=self.labelled,
            log_loss_delta=self.delta,
            log_loss_delta_upper=self.delta + margin,
            log_loss_delta_lower=self.delta - margin,
            score_shift=self.score_shift,
            verdicts=map(verdict_to_proto, step_verdicts(seen, limits_from_proto(request.limits).check())),
            generation=request.generation,
        )
        if self.days > 0:
            answer.covered_from.FromDatetime(self.first_event)
            answer.covered_until.FromDatetime(self.first_event + timedelta(days=self.days))
        if self.experiment is not None:
            answer.experiment, answer.experiment_reason = self.experiment.experiment, self.experiment.reason
            answer.experiment_verdict = f"EXPERIMENT_VERDICT_{self.experiment.verdict}"
        return answer

    def comparison(self, policy: RolloutPolicy, progress: Progress) -> Comparison:
        """Return what the registry reads of the answer about a step."""
        return _compared(self, policy, progress)


NOTHING = Counted(delta=0.0, error=math.inf, labelled=0, days=0.0, predictions=0, champion_predictions=0)
"""A step without predictions."""


def compared(counted: Counted, rollout: Rollout) -> Comparison:
    """Return what the registry reads of the monitor's answer about the current step of a rollout."""
    return _compared(counted, rollout.policy, rollout.progress)


@lru_cache(maxsize=10_000)
def _compared(counted: Counted, policy: RolloutPolicy, progress: Progress) -> Comparison:
    rollout = Rollout("projects/p/models/late", 2, 2, 1, 1, progress, policy, generation=1)
    return parse_comparison(counted.answer(compare_request(rollout)))
