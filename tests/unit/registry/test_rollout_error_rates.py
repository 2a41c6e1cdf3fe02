"""How often rollouts of a challenger exactly at the allowed limit are promoted or refused, at any tick.

The monitor judges the rows and the registry decides by its verdicts, as in a platform.
"""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_monitor.comparison.bounds import Bounds
from flywheel_monitor.comparison.step_verdicts import StepCounts, StepLimits, step_verdicts
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts import state_machine
from flywheel_registry.rollouts.comparison import Comparison, Variant
from flywheel_registry.rollouts.decision import decide
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.step_verdict import LimitVerdict, StepMetric, StepVerdict, step_limits
from flywheel_registry.rollouts.verdict import Decision

ROLLOUTS, TICKS, ROWS_PER_TICK, ALPHA = 1000, 100, 50, 0.05
LIMIT = 0.01
POLICY = RolloutPolicy(
    shadow_min_labelled=200,
    shadow_max_log_loss_delta=LIMIT,
    canary_max_log_loss_delta=LIMIT,
    canary_min_predictions=10**9,  # evidence alone moves or ends a canary in this simulation
)
MOST = ALPHA * ROLLOUTS


def judged(counts: StepCounts, asked: StepLimits) -> Comparison:
    """Return what the registry reads of the monitor's verdicts; faster than `step_evidence`."""
    verdicts = {
        StepMetric(found.metric.name): StepVerdict(
            LimitVerdict(found.verdict.name), found.limit, found.value, found.rows, found.lower, found.upper
        )
        for found in step_verdicts(counts, asked)
    }
    return Comparison(challenger=Variant(predictions=counts.predictions), verdicts=verdicts)


def decided(differences: np.ndarray, progress: Progress) -> Decision:
    """Return the first decision of a step that sees ROWS_PER_TICK more rows at each tick."""
    wanted = step_limits(POLICY, progress)
    asked = StepLimits(
        wanted.limits.get(StepMetric.LOSS_DELTA),
        pass_alpha=wanted.pass_level,
        breach_alpha=wanted.breach_level,
        tightest_at=wanted.tightest_at,
    )
    ticks = np.arange(ROWS_PER_TICK, TICKS * ROWS_PER_TICK + 1, ROWS_PER_TICK)
    means = np.cumsum(differences)[ticks - 1] / ticks
    variances = (np.cumsum(differences**2)[ticks - 1] - ticks * means**2) / (ticks - 1)
    for n, mean, error in zip(ticks, means, np.sqrt(variances / ticks), strict=True):
        counts = StepCounts(predictions=int(n), loss=Bounds(float(mean), error=float(error)), labelled=int(n))
        decision = decide(judged(counts, asked), POLICY, progress, 1.0).decision
        if decision is not Decision.HOLD:
            return decision
    return Decision.HOLD


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_a_challenger_at_the_limit_is_promoted_or_refused_in_at_most_alpha(shape: str) -> None:
    generator = np.random.default_rng(15)
    promoted = refused = 0
    for _ in range(ROLLOUTS):
        progress = state_machine.advance(Progress(), POLICY)
        while progress.active:
            size = TICKS * ROWS_PER_TICK
            noise = generator.normal(0, 0.3, size)
            if shape == "skewed":  # log-losses have a long right tail
                noise = 0.3 * (generator.exponential(1, size) - 1)
            decision = decided(LIMIT + noise, progress)
            if decision in (Decision.REFUSE, Decision.ROLL_BACK):
                refused += 1
                break
            # A challenger that is not refuted in shadow is not promoted: it expires. One that passed shadow
            # has been let through by mistake, whatever its canary says.
            promoted += decision is Decision.ADVANCE and progress.state is RolloutState.SHADOW
            if decision is Decision.HOLD and progress.state is RolloutState.SHADOW:
                break
            progress = state_machine.advance(progress, POLICY)
            if progress.challenger_percent >= 100:
                break
    assert promoted <= MOST, "more promotions than alpha allows"
    assert refused <= MOST, "more refusals than alpha allows"


def test_one_look_bounds_would_refuse_far_more_often() -> None:
    """The simulation can tell the difference: Student's bounds, looked at at every tick, are often wrong."""
    generator, refused = np.random.default_rng(17), 0
    for _ in range(200):
        rows = LIMIT + generator.normal(0, 0.3, TICKS * ROWS_PER_TICK)
        n = np.arange(ROWS_PER_TICK, len(rows) + 1, ROWS_PER_TICK)
        means = np.cumsum(rows)[n - 1] / n
        refused += bool((means - 1.645 * 0.3 / np.sqrt(n) > LIMIT).any())
    assert refused > 2 * ALPHA * 200
