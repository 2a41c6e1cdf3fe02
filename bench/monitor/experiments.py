"""How often verdicts on experiments are wrong: equal arms that are decided, and losses that are shipped.

Each run is looked at 100 times, after every 100 subjects of each arm, by the monitor's own `judge`, with the
weeks already over. A subject has one to four predictions and decides by chance; the sums are those that the
monitor keeps. A run ends with its first verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from bench import measure
from flywheel_common.arrays import Ints
from flywheel_monitor.experiments.experiment import Arm, Declaration, ExperimentVerdict
from flywheel_monitor.experiments.metric import (
    COUNT,
    FAILURES,
    LATENCY,
    SCALE,
    Metric,
    MetricKind,
    MetricRole,
    MetricSums,
)
from flywheel_monitor.experiments.report import WEEK_US, judge
from flywheel_monitor.experiments.tally import ArmTally, Tally
from flywheel_monitor.windows.histograms import LATENCY_BINS, latency_bins

RUNS, LOOKS, SUBJECTS = 2_000, 100, 100
"""Runs of a scenario, looks at a run, subjects that each arm gets between two looks."""
MODEL = "projects/bench/models/m"
ARMS = tuple(Arm(f"{MODEL}/rollouts/1", f"{MODEL}/releases/{n}") for n in (1, 2))
PRIMARY, GUARDRAIL = MetricRole.PRIMARY, MetricRole.GUARDRAIL
CONVERSION = Metric("conversion", PRIMARY, MetricKind.PROPORTION, "buy")
REVENUE = Metric("revenue", PRIMARY, MetricKind.MEAN, "revenue")
CTR = Metric("ctr", PRIMARY, MetricKind.RATIO, "click", COUNT)
ERRORS = Metric("errors", GUARDRAIL, MetricKind.RATIO, FAILURES, COUNT, lower_is_better=True, max_loss=0.01)
P99 = Metric(
    "p99", GUARDRAIL, MetricKind.QUANTILE, LATENCY, lower_is_better=True, max_loss=0.25, relative=True
)


@dataclass(frozen=True)
class Behaviour:
    """The subjects of an arm: share that buys, mean revenue of a buyer (log-normal), share of predictions
    that are clicked or fail, and scale of the log-normal latencies."""

    buys: float = 0.1
    revenue: float = 20.0
    clicks: float = 0.2
    failures: float = 0.005
    latency_ms: float = 5.0

    def sums(self, rng: np.random.Generator, metrics: tuple[Metric, ...]) -> tuple[list[Ints], Ints, Ints]:
        """Of each metric the sums [LOOKS, 5], the latencies [LOOKS, bins] and the predictions [LOOKS]."""
        n = LOOKS * SUBJECTS
        predictions = rng.integers(1, 5, n)
        buys = (rng.uniform(size=n) < self.buys).astype(np.int64)
        # Whole cents, of which squares and sums over a run fit into 64 bits.
        revenue = buys * np.rint(100 * rng.lognormal(np.log(self.revenue) - 0.5, 1.0, n)).astype(np.int64)
        amounts = {
            "buy": buys,
            "revenue": revenue,
            "click": rng.binomial(predictions, self.clicks),
            FAILURES: rng.binomial(predictions, self.failures),
            COUNT: predictions,
        }
        nothing = np.zeros(n, np.int64)
        found = []
        for metric in metrics:
            m = amounts.get(metric.numerator, nothing)
            d = amounts[metric.denominator] if metric.denominator else nothing
            terms = np.stack([m, m * m, d, d * d, m * d], axis=1)
            found.append(terms.reshape(LOOKS, SUBJECTS, 5).sum(axis=1).cumsum(axis=0))
        per_look = predictions.reshape(LOOKS, SUBJECTS).sum(axis=1)
        bins = latency_bins(rng.lognormal(np.log(self.latency_ms), 0.8, int(per_look.sum())))
        look = np.repeat(np.arange(LOOKS), per_look)
        counts = np.bincount(look * LATENCY_BINS + bins, minlength=LOOKS * LATENCY_BINS)
        return found, counts.reshape(LOOKS, LATENCY_BINS).cumsum(axis=0), per_look.cumsum()


def verdict_of(
    declaration: Declaration, control: Behaviour, treatment: Behaviour, rng: np.random.Generator
) -> ExperimentVerdict:
    """The first verdict of one run."""
    arms = [arm.sums(rng, declaration.metrics) for arm in (control, treatment)]
    unit = (SCALE, SCALE * SCALE, SCALE, SCALE * SCALE, SCALE * SCALE)
    for look in range(LOOKS):
        tallies = [
            ArmTally(
                (look + 1) * SUBJECTS,
                int(predictions[look]),
                latencies[look].tolist(),
                [
                    MetricSums(*(value * by for value, by in zip(sums[look].tolist(), unit, strict=True)))
                    for sums in found
                ],
            )
            for found, latencies, predictions in arms
        ]
        report = judge(declaration, Tally(tallies, first_us=0, reached_us=8 * WEEK_US))
        if report.verdict is not ExperimentVerdict.CONTINUE:
            return report.verdict
    return ExperimentVerdict.CONTINUE


def tested(*metrics: Metric) -> Declaration:
    return Declaration(ARMS[0], ARMS[1], metrics, weeks=1)


EQUAL = Behaviour()
WITH_LOSS = replace(CONVERSION, max_loss=0.02)
SHIP, ROLL_BACK = ExperimentVerdict.SHIP, ExperimentVerdict.ROLL_BACK
SCENARIOS: dict[str, tuple[Declaration, Behaviour, tuple[ExperimentVerdict, ...], measure.Target | None]] = {
    "equal arms that are decided, conversion": (
        tested(CONVERSION),
        EQUAL,
        (SHIP, ROLL_BACK),
        measure.at_most(5.0, of_value=True),
    ),
    "equal arms that are decided, revenue of log-normal buyers": (
        tested(REVENUE),
        EQUAL,
        (SHIP, ROLL_BACK),
        measure.at_most(5.0, of_value=True),
    ),
    "equal arms that are decided, click-through rate, errors and p99": (
        tested(CTR, ERRORS, P99),
        EQUAL,
        (SHIP, ROLL_BACK),
        measure.at_most(5.0, of_value=True),
    ),
    "conversion lower by the allowed loss that ships": (
        tested(WITH_LOSS),
        Behaviour(buys=0.08),
        (SHIP,),
        measure.at_most(5.0, of_value=True),
    ),
    "better conversion with errors at the limit that ships": (
        tested(CONVERSION, ERRORS),
        Behaviour(buys=0.15, failures=0.015),
        (SHIP,),
        measure.at_most(5.0, of_value=True),
    ),
    "better conversion with p99 latency at the limit that ships": (
        tested(CONVERSION, P99),
        Behaviour(buys=0.15, latency_ms=6.25),
        (SHIP,),
        measure.at_most(5.0, of_value=True),
    ),
    "better conversion that ships": (
        tested(replace(CONVERSION, minimum_effect=0.02), ERRORS, P99),
        Behaviour(buys=0.13),
        (SHIP,),
        None,
    ),
}
"""Name → (declaration, treatment, verdicts that count, target)."""


def run(only: str) -> Iterable[measure.Row]:
    for name, (declaration, treatment, counting, target) in SCENARIOS.items():
        if only in name:
            rng = np.random.default_rng(2028)
            found = [verdict_of(declaration, EQUAL, treatment, rng) for _ in range(RUNS)]
            share = sum(verdict in counting for verdict in found) / RUNS
            yield measure.row(f"{name}, of {RUNS} runs with {LOOKS} looks", 100 * share, "%", target)
