"""Each statistic against an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn import metrics

from flywheel_monitor.comparison.bounds import Moments, paired, welch
from flywheel_monitor.comparison.variants import score_shift
from flywheel_monitor.drift import chi_square, design_effect, distances, fdr, ks, psi
from flywheel_monitor.performance import quality
from flywheel_monitor.performance.rates import error_rate, fallback_rate
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.blocks import block_of
from flywheel_monitor.windows.histograms import LATENCY_EDGES_MS, latency_bins, quantile


def column_of(values: np.ndarray) -> ColumnReference:
    """The profile of a numeric training column in 128 quantile bins."""
    edges = np.quantile(values, np.linspace(0, 1, 129)[1:-1])
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=128)
    return ColumnReference(
        "v__x",
        True,
        tuple(counts.tolist()),
        edges=tuple(edges.tolist()),
        mean=float(values.mean()),
        stddev=float(values.std()),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )


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
    found = chi_square.chi_square(a, b)
    if used.sum() < 2 or a.sum() == 0 or b.sum() == 0:
        assert (found.statistic, found.degrees, found.p_value, found.cramers_v) == (0, 0, 1, 0)
        return
    expected = stats.chi2_contingency(np.array([a[used], b[used]]), correction=False)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
    assert found.degrees == expected.dof
    table = np.array([a[used], b[used]])
    assert found.cramers_v == pytest.approx(
        stats.contingency.association(table, method="cramer"), rel=1e-9, abs=1e-9
    )


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 9))
def test_chi_square_of_repeated_rows_equals_that_of_the_rows(x: int, y: int, repeats: int) -> None:
    """With a large reference, rows that come `repeats` times are worth one row each."""
    reference = np.array([10**9, 2 * 10**9])
    once, repeated = np.array([x, y]), np.array([x, y]) * repeats
    assert chi_square.chi_square(repeated, reference, repeats).p_value == pytest.approx(
        chi_square.chi_square(once, reference).p_value, rel=1e-4, abs=1e-9
    )


def test_pooling_keeps_the_totals() -> None:
    a, b = np.array([100, 1, 2, 0, 300]), np.array([120, 0, 1, 3, 280])
    x, y = chi_square.pooled(a, b)
    assert (x.sum(), y.sum()) == (a.sum(), b.sum())
    assert x[x + y > 0].tolist() == [103, 300]


def test_a_few_rows_of_small_bins_do_not_decide() -> None:
    a, b = np.array([1000, 1, 2, 0, 300]), np.array([1000, 0, 0, 0, 300])
    x, y = chi_square.pooled(a, b)
    assert x[x + y > 0].tolist() == [1000, 303]
    assert y[x + y > 0].tolist() == [1000, 300]
    assert chi_square.chi_square(x, y).p_value > 0.5


def test_psi_with_a_smallest_share_equals_the_formula() -> None:
    p, q = [0.0001, 0.4, 0.6], [0.3, 0.3, 0.4]
    expected = sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True))
    window, reference = np.array([0, 40, 60]), np.array([30, 30, 40])
    assert psi.psi(window, reference, psi.Smoothing.EPSILON) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_distances_equal_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.normal(size=30))
    a, b = rng.integers(0, 30, 700) % 25, rng.integers(3, 30, 900)
    x, y = np.bincount(a, minlength=30), np.bincount(b, minlength=30)
    assert distances.wasserstein(x, y, positions) == pytest.approx(
        stats.wasserstein_distance(positions[a], positions[b]), abs=1e-9
    )
    assert distances.jensen_shannon(x, y) == pytest.approx(jensenshannon(x, y, base=2), abs=1e-9)


def test_distances_of_equal_or_missing_rows_are_zero() -> None:
    positions, rows = np.array([0.0, 1.0]), np.array([3, 4])
    assert distances.wasserstein(rows, 2 * rows, positions) == pytest.approx(0, abs=1e-12)
    assert distances.jensen_shannon(rows, 2 * rows) == pytest.approx(0, abs=1e-7)
    assert distances.wasserstein(rows, 0 * rows, positions) == 0
    assert distances.jensen_shannon(0 * rows, rows) == 0


def test_wasserstein_from_bins_is_within_its_bound() -> None:
    rng = np.random.default_rng(4)
    bins = FeatureBins(column_of(rng.normal(size=20_000)))
    window, reference = rng.normal(0.4, 1, 3000), rng.normal(size=3000)
    counts = [
        np.bincount(bins.assign(x, np.ones(3000, np.bool_), 3000), minlength=bins.size)
        for x in (window, reference)
    ]
    ordered = [ks.ordered(bins, c) for c in counts]
    widths = np.diff(np.concatenate([[bins.reference.minimum], bins.positions]))
    held = sum(np.sum(c * widths) / c.sum() for c in ordered)
    exact = stats.wasserstein_distance(window, reference)
    assert distances.wasserstein(*ordered, bins.positions) == pytest.approx(exact, abs=held)


def test_repeated_rows_have_the_design_effect_of_their_repeats() -> None:
    rng = np.random.default_rng(5)
    estimates = []
    for _ in range(200):
        rows = np.repeat(rng.integers(0, 12, 2000), 5)
        blocks = np.stack([np.bincount(part, minlength=12) for part in np.split(rows, 20)])
        estimates.append(design_effect.of_shares(blocks))
    degrees = 2 / 3 * 19
    assert np.mean(estimates) == pytest.approx(5 * degrees / stats.chi2.ppf(0.1, degrees), rel=0.05)


def test_a_time_of_day_within_the_window_is_no_dependence() -> None:
    rng = np.random.default_rng(6)
    phase = np.sin(np.linspace(0, 2 * np.pi, 20_000))
    rows = np.digitize(rng.normal(phase, 1), [-1.0, 0.0, 1.0])
    blocks = np.stack([np.bincount(part, minlength=4) for part in np.split(rows, 20)])
    between = np.var(blocks[:, 0] / 1000, ddof=1) / (blocks[:, 0].mean() / 1000 * 0.5 / 1000)
    assert between > 50
    assert design_effect.of_order(blocks) < 0.3 * between


def test_blocks_have_about_equal_rows() -> None:
    rows = np.random.default_rng(7).integers(0, 40, 1440)
    blocks = block_of(rows)
    assert blocks.tolist() == sorted(blocks.tolist())
    sizes = np.bincount(blocks, weights=rows)
    assert len(sizes) == 20
    assert sizes.min() > 0.9 * rows.sum() / 20
    assert block_of(np.array([20, 0, 90])).tolist() == [0, 0, 1]
    assert block_of(np.zeros(3, np.int64)).tolist() == [0, 0, 0]
    assert block_of(np.zeros(0, np.int64)).tolist() == []


def test_the_mean_of_repeated_values_has_the_design_effect_of_their_repeats() -> None:
    rng = np.random.default_rng(8)
    estimates = []
    for _ in range(200):
        values = np.repeat(rng.normal(3, 2, 2000), 5)
        sums = np.array([part.sum() for part in np.split(values, 20)])
        estimates.append(design_effect.of_mean(sums, np.full(20, 500), values.std()))
    degrees = 2 / 3 * 19
    assert np.mean(estimates) == pytest.approx(5 * degrees / stats.chi2.ppf(0.1, degrees), rel=0.05)


def test_few_blocks_have_no_design_effect() -> None:
    blocks = np.array([[100, 0], [0, 100]] * 3)
    assert design_effect.of_shares(blocks) == 1.0
    assert design_effect.of_shares(np.array([[100, 0]] * 20)) == 1.0


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
