"""The statistics of experiments against gbstats, scipy and simulations."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from flywheel_monitor.intervals import samples
from flywheel_monitor.intervals.differences import (
    Difference,
    always_valid,
    detectable,
    difference,
    subjects_needed,
)
from flywheel_monitor.intervals.quantiles import log_evidence, quantile_bounds
from flywheel_monitor.intervals.samples import Estimate, SubjectSums
from flywheel_monitor.intervals.shares import sample_ratio_p_value

CASES = json.loads((Path(__file__).parent / "gbstats_cases.json").read_text())
ESTIMATORS = {"mean": samples.mean, "proportion": samples.proportion, "ratio": samples.ratio}


def sums(arm: dict[str, float]) -> SubjectSums:
    n, *rest = (arm[name] for name in ("n", "m", "mm", "d", "dd", "md"))
    return SubjectSums(int(n), *map(Fraction, rest))


@pytest.mark.parametrize("case", CASES["differences"])
def test_a_difference_and_its_interval_equal_gbstats(case: dict[str, Any]) -> None:
    both = [sums(case[arm]) for arm in ("control", "treatment")]
    kind = case["kind"].removeprefix("adjusted ")
    if kind == case["kind"]:
        arms = tuple(map(ESTIMATORS[kind], both))
    else:
        arms = samples.adjusted(*both, proportions=kind == "proportion")
    found = difference(*arms, relative=case["relative"])
    interval = always_valid(found, case["alpha"])
    expected = [case[name] for name in ("difference", "standard_error", "lower", "upper")]
    numbers = [found.value, found.standard_error, interval.lower, interval.upper]
    assert expected == pytest.approx(numbers, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", CASES["sample_ratios"])
def test_the_sample_ratio_check_equals_gbstats(case: dict[str, Any]) -> None:
    found = sample_ratio_p_value(case["subjects"], case["shares"])
    assert case["p_value"] == pytest.approx(found, rel=1e-9)


def test_a_ratio_equals_the_variance_of_its_linearization() -> None:
    rng = np.random.default_rng(3)
    d = rng.poisson(4, 500) + 1.0
    m = rng.binomial(d.astype(int), 0.3).astype(float)
    found = samples.ratio(sums({"n": 500, "m": m.sum(), "mm": m @ m, "d": d.sum(), "dd": d @ d, "md": m @ d}))
    terms = (m - m.sum() / d.sum() * d) / d.mean()
    assert (m.sum() / d.sum(), terms.var(ddof=1)) == pytest.approx((found.value, found.variance), rel=1e-9)


def test_too_few_subjects_or_no_variance_say_nothing() -> None:
    few, many = Estimate(0.5, 0.25, 99), Estimate(0.7, 0.21, 5000)
    assert (-math.inf, math.inf) == (
        always_valid(difference(few, many, relative=False), 0.05).lower,
        always_valid(difference(few, many, relative=False), 0.05).upper,
    )
    none = Estimate(0.0, 0.0, 5000)
    assert not difference(none, none, relative=False).known
    assert not difference(none, many, relative=True).known, "relative to 0"
    assert detectable(difference(none, none, relative=False), 0.05) is None


def test_the_detectable_effect_is_found_with_its_power() -> None:
    """Simulated looks after n subjects with the true difference at the detectable distance from 0."""
    found = Difference(0.0, 0.01, 8_000)
    effect = detectable(found, 0.05)
    assert effect is not None
    rng = np.random.default_rng(5)
    lower = [always_valid(Difference(x, 0.01, 8_000), 0.05).lower for x in rng.normal(effect, 0.01, 20_000)]
    assert np.mean(np.array(lower) > 0) == pytest.approx(0.8, abs=0.01)


def test_the_needed_subjects_are_the_fewest_that_suffice() -> None:
    found = Difference(0.0, 0.01, 8_000)
    needed = subjects_needed(found, 0.05, 0.012)
    assert needed is not None and needed > 8_000
    assert (detectable(found, 0.05, needed) or 1.0) <= 0.012 < (detectable(found, 0.05, needed - 1) or 0.0)
    assert subjects_needed(found, 0.05, 0.0) is None


@pytest.mark.parametrize(("count", "n", "fewer"), [(95, 100, True), (100, 100, False), (1900, 2000, True)])
def test_the_evidence_on_a_quantile_is_the_mixture_of_likelihoods(count: int, n: int, fewer: bool) -> None:
    p, prior = 0.98, stats.beta(500 * 0.98, 500 * 0.02)
    side = (0.0, p) if fewer else (p, 1.0)
    null = stats.binom.logpmf(count, n, p)

    def term(rate: float) -> float:
        return float(prior.pdf(rate) * np.exp(stats.binom.logpmf(count, n, rate) - null))

    mixture = integrate.quad(term, *side, limit=500, points=[0.94, 0.96] if fewer else None)[0]
    share = integrate.quad(prior.pdf, *side, limit=500)[0]
    assert math.log(mixture / share) == pytest.approx(log_evidence(count, n, p, fewer=fewer), abs=1e-6)


def test_quantile_bounds_hold_at_all_of_100_looks() -> None:
    """400 streams of 10,000 values, each bound at 5 %: at most 7.5 % of the streams miss on a side."""
    edges = [0.5 * i for i in range(1, 41)]
    truth = -math.log(0.01)  # of the standard exponential distribution
    rng = np.random.default_rng(8)
    misses = np.zeros(2)
    for _ in range(400):
        bins = np.minimum(np.ceil(rng.exponential(size=10_000) / 0.5).astype(int) - 1, 39)
        missed = np.zeros(2, bool)
        for look in range(100, 10_001, 500):
            counts = np.bincount(bins[:look], minlength=40).tolist()
            found = quantile_bounds(edges, counts, 0.99, 0.05)
            missed |= [found.lower > truth, found.upper < truth]
        misses += missed
    assert (misses / 400 <= 0.075).all()
    wide, tight = (quantile_bounds(edges, [n * 10, *[0] * 7, n, *[0] * 31], 0.95, 0.05) for n in (2, 3000))
    assert (0.0, math.inf) == (wide.lower, wide.upper)
    assert (0.5 * 8, 0.5 * 9) == (tight.lower, tight.upper), "9 % of the values lie in the ninth bin"
