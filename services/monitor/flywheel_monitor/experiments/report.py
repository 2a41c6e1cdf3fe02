"""The verdict on an experiment, from its sums.

Levels. The intervals are valid at all looks together, so that the verdict may be read at any time. SHIP needs
every primary metric and guardrail to pass: the lower bound of its gain, of a two-sided interval at level
1 - alpha, is above -max_loss. A treatment at exactly the allowed loss passes with at most alpha / 2, whatever
the other metrics do. ROLL_BACK needs one of these k metrics to fail: the upper bound of its gain, at level
1 - alpha / k, is below -max_loss, which all together do with at most alpha / 2 when none is worse than
allowed. Equal arms with max_loss 0 so end in SHIP or ROLL_BACK with at most alpha.

SHIP waits for the declared weeks, so that every day of the week counts equally; ROLL_BACK does not. Neither
is given on a sample ratio mismatch, because then the arms are not comparable. Secondary metrics decide
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.experiments.experiment import (
    CONTROL,
    TREATMENT,
    Declaration,
    ExperimentVerdict,
)
from flywheel_monitor.experiments.latencies import Latencies
from flywheel_monitor.experiments.metric import Metric, MetricKind, MetricRole
from flywheel_monitor.experiments.tally import Tally
from flywheel_monitor.intervals.differences import (
    MIN_SUBJECTS,
    Interval,
    always_valid,
    detectable,
    difference,
    subjects_needed,
)
from flywheel_monitor.intervals.shares import sample_ratio_p_value

SAMPLE_RATIO_LEVEL = 0.001
"""A p-value of the sample ratio check below this is a mismatch."""
DAY_US = 86_400_000_000
WEEK_US = 7 * DAY_US


@dataclass(frozen=True)
class MetricReport:
    """One metric; see `MetricReport` of the API."""

    metric: Metric
    control: float
    treatment: float
    difference: float | None
    interval: Interval
    passed: bool
    failed: bool
    detectable: float | None
    days_needed: float | None

    @property
    def text(self) -> str:
        """The numbers in one sentence."""
        m = self.metric
        if self.difference is None:
            return f"{m.name}: too few subjects, or no difference between them, for an interval"
        unit = "% " if m.relative else " "
        scale = 100 if m.relative else 1
        low, high = self.interval.lower * scale, self.interval.upper * scale
        found = f"{m.name} {self.difference * scale:+.4g}{unit}[{low:+.4g}, {high:+.4g}]"
        if not m.decides:
            return found
        allowed = f"{'+' if m.lower_is_better else '-'}{m.max_loss * scale:g}{unit.rstrip()} allowed"
        state = "passed" if self.passed else "failed" if self.failed else "undecided"
        if state == "undecided" and self.days_needed is not None:
            state += f", about {self.days_needed:.1f} more days"
        return f"{found}, {allowed}: {state}"


@dataclass(frozen=True)
class Report:
    """The state of an experiment; see `ExperimentReport` of the API."""

    verdict: ExperimentVerdict
    reasons: tuple[str, ...]
    tally: Tally
    sample_ratio_p_value: float
    metrics: tuple[MetricReport, ...]


def judge(declaration: Declaration, tally: Tally) -> Report:
    """The report of an experiment."""
    subjects = [arm.subjects for arm in tally.arms]
    p_value = sample_ratio_p_value(subjects, [arm.share for arm in declaration.arms])
    covered_us = 0 if tally.first_us is None else (tally.reached_us or 0) - tally.first_us
    metrics = tuple(
        _judge_metric(metric, at, declaration, tally, covered_us)
        for at, metric in enumerate(declaration.metrics)
    )
    verdict, reasons = _decide(declaration, subjects, p_value, covered_us, metrics)
    return Report(verdict, reasons, tally, p_value, metrics)


def _decide(
    declaration: Declaration,
    subjects: list[int],
    p_value: float,
    covered_us: int,
    metrics: tuple[MetricReport, ...],
) -> tuple[ExperimentVerdict, tuple[str, ...]]:
    if min(subjects) < MIN_SUBJECTS:
        reason = f"{min(subjects)} of {MIN_SUBJECTS} subjects in the smaller arm."
        return ExperimentVerdict.CONTINUE, (reason,)
    if p_value < SAMPLE_RATIO_LEVEL:
        reason = (
            f"Sample ratio mismatch: {subjects[CONTROL]} and {subjects[TREATMENT]} subjects do not fit the "
            f"declared shares (p = {p_value:.2g}); find its cause, the arms are not comparable."
        )
        return ExperimentVerdict.CONTINUE, (reason,)
    failed = tuple(m.text for m in metrics if m.failed)
    if failed:
        return ExperimentVerdict.ROLL_BACK, failed
    open_ = tuple(m.text for m in metrics if m.metric.decides and not m.passed)
    if covered_us < declaration.weeks * WEEK_US:
        lasted = f"{covered_us / DAY_US:.1f} of {7 * declaration.weeks} days of event time."
        return ExperimentVerdict.CONTINUE, (lasted, *open_)
    if open_:
        return ExperimentVerdict.CONTINUE, open_
    return ExperimentVerdict.SHIP, tuple(m.text for m in metrics if m.metric.decides)


def _judge_metric(
    metric: Metric, at: int, declaration: Declaration, tally: Tally, covered_us: int
) -> MetricReport:
    strict = declaration.alpha / declaration.deciding
    if metric.kind is MetricKind.QUANTILE:
        found_latency = Latencies(metric, tally)
        bounds = [found_latency.interval(alpha) for alpha in (declaration.alpha, strict)]
        times = found_latency.times_needed(declaration.alpha, metric.minimum_effect + metric.max_loss)
        return _report(
            metric,
            found_latency.quantiles,
            found_latency.difference,
            bounds,
            found_latency.detectable(declaration.alpha),
            None if times is None else (times - 1) * covered_us / DAY_US,
        )
    control, treatment = (arm.sums[at].over(arm.subjects) for arm in tally.arms)
    estimates = metric.estimates(control, treatment)
    found = difference(*estimates, relative=metric.relative)
    bounds = [always_valid(found, alpha) for alpha in (declaration.alpha, strict)]
    needed = subjects_needed(found, declaration.alpha, metric.minimum_effect + metric.max_loss)
    days = None
    if needed is not None and covered_us > 0:
        days = max(0.0, needed / found.n - 1) * covered_us / DAY_US
    values = [estimate.observed for estimate in estimates]
    return _report(
        metric,
        (values[CONTROL], values[TREATMENT]),
        found.value if found.known else None,
        bounds,
        detectable(found, declaration.alpha),
        days,
    )


def _report(
    metric: Metric,
    values: tuple[float, float],
    delta: float | None,
    bounds: list[Interval],
    effect: float | None = None,
    days: float | None = None,
) -> MetricReport:
    """`bounds`: the interval at level 1 - alpha, and the one by which the metric fails."""
    gains = [b.reversed() if metric.lower_is_better else b for b in bounds]
    return MetricReport(
        metric,
        *values,
        delta,
        bounds[0],
        passed=metric.role is not MetricRole.SECONDARY and gains[0].lower > -metric.max_loss,
        failed=metric.role is not MetricRole.SECONDARY and gains[1].upper < -metric.max_loss,
        detectable=effect,
        days_needed=days,
    )
