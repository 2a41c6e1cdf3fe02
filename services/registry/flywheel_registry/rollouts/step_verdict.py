"""What a step of a rollout asks of the monitor, and the verdicts that it answers.

The monitor alone judges the numbers: its verdicts are about the predictions of exactly one step, and hold at
all looks at it together. The rules that make decisions of them are in `decision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.state_machine import Progress, RolloutState


class StepMetric(StrEnum):
    """What has a limit."""

    LOSS_DELTA = "LOSS_DELTA"
    ERROR_RATE = "ERROR_RATE"
    P99_MS = "P99_MS"
    SCORE_SHIFT = "SCORE_SHIFT"


class LimitVerdict(StrEnum):
    """What the predictions of a step prove about a limit."""

    UNDECIDED = "UNDECIDED"
    WITHIN = "WITHIN"
    BREACHED = "BREACHED"


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """The monitor's verdict on one limit. Bounds are None where it has none, as with too few `rows`."""

    verdict: LimitVerdict
    limit: float
    value: float
    rows: int
    lower: float | None = None
    upper: float | None = None

    @property
    def breached(self) -> bool:
        """Whether the limit is proven to be exceeded."""
        return self.verdict is LimitVerdict.BREACHED


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The limits of a step, and the levels of the verdicts: `pass_level` of WITHIN, `breach_level` of
    BREACHED.

    `tightest_at` is the number of rows at which the bounds are to be tightest.
    """

    limits: Mapping[StepMetric, float]
    pass_level: float
    breach_level: float
    tightest_at: int


def step_limits(policy: RolloutPolicy, progress: Progress) -> StepLimits:
    """Return what is asked about the current step.

    At 100 % the champion has no concurrent traffic to compare with, and an A/B test is decided by its
    experiment. A guardrail of 0 is none.
    """
    step = policy.step(progress.challenger_percent)
    alone = progress.state is not RolloutState.SHADOW and step.percent >= 100
    limits = {}
    if not alone and not policy.until_verdict:
        limits[StepMetric.LOSS_DELTA] = step.max_log_loss_delta
    guardrails = {
        StepMetric.ERROR_RATE: step.max_error_rate,
        StepMetric.P99_MS: step.max_p99_ms,
        StepMetric.SCORE_SHIFT: 0.0 if alone else step.max_score_shift,
    }
    limits |= {metric: limit for metric, limit in guardrails.items() if limit}
    return StepLimits(limits, step.pass_level, step.breach_level, step.min_samples)
