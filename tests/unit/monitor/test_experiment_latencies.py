"""What difference of the p99 latency an experiment can detect, and how much longer it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flywheel_monitor.experiments.experiment import Arm, Declaration
from flywheel_monitor.experiments.latencies import Latencies
from flywheel_monitor.experiments.metric import LATENCY, Metric, MetricKind, MetricRole
from flywheel_monitor.experiments.report import DAY_US, judge
from flywheel_monitor.experiments.tally import Tally
from flywheel_monitor.windows.histograms import LATENCY_BINS, latency_bins
from tests.support.builders.monitor import MODEL

P99 = Metric(
    "p99",
    MetricRole.GUARDRAIL,
    MetricKind.QUANTILE,
    LATENCY,
    lower_is_better=True,
    max_loss=0.5,
    relative=True,
)
CLICKS = Metric("clicks", MetricRole.PRIMARY, MetricKind.PROPORTION, "click")
ROLLOUT = f"{MODEL}/rollouts/1"
ARMS = Arm(ROLLOUT, f"{MODEL}/releases/1"), Arm(ROLLOUT, f"{MODEL}/releases/2")


def tally(rng: np.random.Generator, n: int, slower: float = 1.0) -> Tally:
    """n log-normal latencies per arm, those of the treatment `slower` times as long."""
    found = Tally.empty(1)
    for arm, factor in zip(found.arms, (1.0, slower), strict=True):
        values = factor * rng.lognormal(3.0, 0.6, n)
        arm.latencies = np.bincount(latency_bins(values), minlength=LATENCY_BINS).tolist()
        arm.subjects = arm.predictions = n
    return found


@pytest.mark.parametrize("metric", [P99, replace(P99, relative=False), replace(P99, lower_is_better=False)])
@pytest.mark.parametrize("n", [2_000, 30_000])
def test_the_detectable_difference_is_found_in_four_of_five_runs(metric: Metric, n: int) -> None:
    rng = np.random.default_rng(31)
    expected = Latencies(metric, tally(rng, 1_000_000))
    distance = expected.detectable(0.05, times=n / 1_000_000)
    assert distance is not None
    found = np.array([_reached(metric, tally(rng, n)) for _ in range(200)])
    assert np.mean(found <= distance * 1.001) >= 0.78
    # Bounds are edges of bins of 10 %: the next smaller distance is too small.
    smaller = (distance + 1) / 1.102 - 1 if metric.relative else distance / 1.102
    assert np.mean(found <= smaller) < 0.8


def _reached(metric: Metric, counted: Tally) -> float:
    """The smallest max_loss that passes a treatment that is as good as the control."""
    interval = Latencies(metric, counted).interval(0.05)
    return interval.upper if metric.lower_is_better else -interval.lower


def test_the_needed_predictions_are_the_fewest_that_suffice() -> None:
    found = Latencies(P99, tally(np.random.default_rng(32), 3_000))
    now = found.detectable(0.05)
    assert now is not None and now > 0.35
    times = found.times_needed(0.05, 0.35)
    assert times is not None and 1 < times < 1_000
    assert (found.detectable(0.05, times) or 9.0) <= 0.35 < (found.detectable(0.05, times / 1.02) or 0.0)
    assert found.times_needed(0.05, now) == 1.0
    assert found.times_needed(0.05, 0.05) is None, "less than the width of a bin"
    assert found.times_needed(0.05, 0.0) is None


def test_nothing_is_detectable_without_predictions_in_both_arms() -> None:
    rng = np.random.default_rng(33)
    counted = tally(rng, 1_000)
    counted.arms[1].latencies = [0] * LATENCY_BINS
    found = Latencies(P99, counted)
    assert (None, None, None) == (found.difference, found.detectable(0.05), found.times_needed(0.05, 0.5))
    few = Latencies(P99, tally(rng, 150))
    assert few.detectable(0.05) is None, "150 values have no upper bound of their p99"
    assert (few.times_needed(0.05, 0.5) or 0.0) > 1


def test_the_report_says_how_many_days_the_p99_still_needs() -> None:
    counted = tally(np.random.default_rng(34), 3_000)
    counted.first_us, counted.reached_us = 0, 2 * DAY_US
    for arm in counted.arms:
        arm.sums = [arm.sums[0], arm.sums[0]]
    tight = replace(P99, max_loss=0.35)
    (_, report) = judge(Declaration(*ARMS, (CLICKS, tight), weeks=1), counted).metrics
    times = Latencies(tight, counted).times_needed(0.05, 0.35)
    assert times is not None
    assert report.detectable is not None and report.detectable > 0.35
    assert report.days_needed == pytest.approx((times - 1) * 2)
    assert f"undecided, about {report.days_needed:.1f} more days" in report.text
