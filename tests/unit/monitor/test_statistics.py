"""Each statistic against an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from flywheel_monitor.comparison.bounds import Moments, paired, welch
from flywheel_monitor.comparison.variants import score_shift
from flywheel_monitor.drift import chi_square, fdr, ks, psi
from flywheel_monitor.performance import quality
from flywheel_monitor.performance.rates import error_rate, fallback_rate
from flywheel_monitor.windows.histograms import LATENCY_EDGES_MS, latency_bins, quantile

counts = st.lists(st.integers(0, 500), min_size=2, max_size=40)


def test_psi_equals_the_formula_computed_by_hand() -> None:
    window, reference = np.array([10, 40, 50]), np.array([30, 30, 40])
    expected = 0.0
    for w, r in zip([10, 40, 50], [30, 30, 40], strict=True):
        p, q = (w + 0.5) / 101.5, (r + 0.5) / 101.5
        expected += (p - q) * np.log(p / q)
    assert psi.psi(window, reference) == pytest.approx(expected, abs=1e-12)


def test_psi_of_equal_shares_is_zero_and_grows_with_thescore_shift() -> None:
    reference = np.full(10, 1000)
    assert psi.psi(np.full(10, 1000), reference) == pytest.approx(0.0, abs=1e-12)
    shifted = [psi.psi(np.array([1000 - d] + [1000] * 8 + [1000 + d]), reference) for d in (100, 300, 600)]
    assert shifted == sorted(shifted)


def test_psi_ignores_bins_that_are_empty_on_both_sides() -> None:
    a, b = np.array([5, 9, 2]), np.array([4, 7, 7])
    assert psi.psi(np.append(a, [0, 0]), np.append(b, [0, 0])) == psi.psi(a, b)


def test_corrected_psi_is_about_zero_on_average_without_drift() -> None:
    rng = np.random.default_rng(3)
    shares = np.full(10, 0.1)
    reference = rng.multinomial(20_000, shares)
    raw = []
    for _ in range(300):
        window = rng.multinomial(500, shares)
        raw.append(psi.psi(window, reference) - 9 * (1 / 500 + 1 / 20_000))
    assert abs(np.mean(raw)) < 0.002


def test_decile_groups_have_about_a_tenth_each() -> None:
    reference = np.full(128, 77)
    groups = psi.decile_groups(reference)
    shares = np.bincount(groups, weights=reference) / reference.sum()
    assert len(shares) == 10
    assert np.all(np.abs(shares - 0.1) < 0.01)


def test_a_constant_feature_has_one_decile_group() -> None:
    assert psi.decile_groups(np.array([500])).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
def test_ks_from_unit_bins_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 30, 700), rng.integers(0, 33, 900)
    ours = ks.ks_statistic(np.bincount(a, minlength=33), np.bincount(b, minlength=33))
    assert ours == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-12)
    assert ks.ks_p_value(ours, 700, 900) == pytest.approx(
        stats.kstwobign.sf(ours * np.sqrt(700 * 900 / 1600)), abs=1e-9
    )


def test_ks_from_quantile_bins_is_a_close_lower_bound() -> None:
    rng = np.random.default_rng(1)
    reference, window = rng.normal(size=20_000), rng.normal(0.3, 1, size=2000)
    edges = np.quantile(reference, np.linspace(0, 1, 129)[1:-1])
    binned = [np.bincount(np.searchsorted(edges, x, side="left"), minlength=128) for x in (window, reference)]
    exact = stats.ks_2samp(window, reference).statistic
    ours = ks.ks_statistic(*binned)
    assert exact - 1.5 / 128 <= ours <= exact


def test_ks_p_value_without_rows_is_one() -> None:
    assert ks.ks_statistic(np.zeros(3, int), np.array([1, 2, 3])) == 0.0
    assert ks.ks_p_value(0.0, 0, 10) == 1.0


@given(
    counts.flatmap(
        lambda a: st.tuples(st.just(a), st.lists(st.integers(0, 500), min_size=len(a), max_size=len(a)))
    )
)
@settings(max_examples=200, deadline=None)
def test_chi_square_equals_scipy(pair: tuple[list[int], list[int]]) -> None:
    a, b = (np.array(x, np.int64) for x in pair)
    used = (a + b) > 0
    statistic, p = chi_square.chi_square(a, b)
    if used.sum() < 2 or a.sum() == 0 or b.sum() == 0:
        assert (statistic, p) == (0.0, 1.0)
        return
    expected = stats.chi2_contingency(np.array([a[used], b[used]]), correction=False)
    assert statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)


def test_pooling_keeps_the_totals() -> None:
    a, b = np.array([100, 1, 2, 0, 300]), np.array([120, 0, 1, 3, 280])
    x, y = chi_square.pooled(a, b)
    assert (x.sum(), y.sum()) == (a.sum(), b.sum())
    assert len(x) == 3


@given(st.lists(st.floats(0, 1), max_size=60))
@settings(max_examples=200, deadline=None)
def test_adjusted_p_values_equal_scipy_benjamini_hochberg(p: list[float]) -> None:
    if not p:
        assert len(fdr.adjust(p)) == 0
        return
    assert fdr.adjust(p) == pytest.approx(stats.false_discovery_control(p, method="bh"), abs=1e-12)


labelled = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=80)


@given(labelled)
@settings(max_examples=200, deadline=None)
def test_auc_equals_scikit_learn_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([s / 20 for s, _ in rows])
    labels = np.array([float(y) for _, y in rows])
    if labels.min() == labels.max():
        assert quality.auc(scores, labels) is None
        return
    assert quality.auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_binned_auc_is_within_its_bound() -> None:
    rng = np.random.default_rng(2)
    scores = rng.beta(2, 5, 5000)
    labels = (rng.uniform(size=5000) < scores).astype(float)
    bins = np.minimum((scores * 200).astype(int), 199)
    positives = np.bincount(bins, weights=labels, minlength=200).astype(np.int64)
    negatives = np.bincount(bins, weights=1 - labels, minlength=200).astype(np.int64)
    exact = metrics.roc_auc_score(labels, scores)
    bound = quality.auc_error_bound(positives, negatives)
    assert 0 < bound < 0.01
    assert abs(quality.auc_from_counts(positives, negatives) - exact) <= bound


def moments(values: np.ndarray) -> Moments:
    return Moments(len(values), math.fsum(values), math.fsum(values**2))


def test_paired_bounds_equal_scipy() -> None:
    difference = np.random.default_rng(6).normal(0.01, 0.2, 400)
    found = paired(moments(difference), 0.05)
    test = stats.ttest_1samp(difference, 0.0)
    low, high = test.confidence_interval(0.90)
    assert (found.delta, found.lower, found.upper) == pytest.approx((difference.mean(), low, high), abs=1e-9)


def test_welch_bounds_equal_scipy() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(0.5, 0.3, 80), rng.normal(0.45, 0.6, 900)
    found = welch(moments(a), moments(b), 0.05)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    assert (found.lower, found.upper) == pytest.approx((low, high), abs=1e-9)


def test_bounds_of_too_few_rows_are_infinite() -> None:
    one = paired(moments(np.array([0.3])), 0.05)
    assert (one.lower, one.upper) == (-np.inf, np.inf)
    assert welch(moments(np.array([0.3])), moments(np.ones(50)), 0.05).upper == np.inf


def test_score_shift_of_few_or_constant_scores_is_finite() -> None:
    champion = moments(np.array([0.2, 0.4, 0.6]))
    assert score_shift(champion, 0.5, 1) == pytest.approx(0.1 / np.std([0.2, 0.4, 0.6]))
    assert score_shift(champion, 0.0, 0) == 0.0, "the challenger has no scores"
    assert score_shift(moments(np.array([0.2])), 0.5, 1) == 0.0, "one score has no deviation"
    assert score_shift(moments(np.full(4, 0.25)), 0.5, 1) == 1e6
    assert score_shift(moments(np.full(5, 0.5)), 0.5, 1) == 0.0


@given(st.lists(st.floats(0.2, 5000), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=100, deadline=None)
def test_latency_quantiles_of_rows_and_of_bins_agree(latencies: list[float], q: float) -> None:
    rows = np.array(latencies)
    exact = quantile(np.sort(rows), np.ones(len(rows), np.int64), q)
    assert exact == np.percentile(rows, 100 * q, method="inverted_cdf")
    binned = np.bincount(latency_bins(rows), minlength=len(LATENCY_EDGES_MS))
    assert exact * 0.999 <= quantile(LATENCY_EDGES_MS, binned, q) <= exact * 1.1 * 1.001


def test_a_quantile_without_rows_is_zero() -> None:
    assert quantile(np.zeros(0), np.zeros(0, np.int64), 0.99) == 0.0
    assert quantile(LATENCY_EDGES_MS, np.zeros(len(LATENCY_EDGES_MS), np.int64), 0.5) == 0.0


def test_error_and_fallback_rates() -> None:
    sources = np.array([0, 5, 2, 1, 2])  # unspecified, model, cached, default, error
    assert (error_rate(3, 10), fallback_rate(sources, 10)) == (0.3, 0.3)
    assert (error_rate(0, 0), fallback_rate(np.zeros(5, np.int64), 0)) == (0.0, 0.0)
