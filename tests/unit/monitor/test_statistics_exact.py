"""Every statistic against scipy, scikit-learn or numpy on the rows themselves, to 1e-9 (p-values 1e-6).

The cases are exact in bins: ties, empty bins, nulls, constants, one sample, new categories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn import metrics

from flywheel_job.evaluation import metrics as trainer
from flywheel_monitor.drift import chi_square, distances, ks, psi
from flywheel_monitor.drift.statistics import FeatureDrift, measure
from flywheel_monitor.performance.quality import Quality, quality, with_exact_auc
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import LabelledRows, Rows

EXACT = {"rel": 1e-9, "abs": 1e-9}
P_VALUE = {"rel": 1e-6, "abs": 1e-6}
RNG = np.random.default_rng(17)
EVEN = np.repeat(np.arange(10.0), 40)
"""Reference rows of which each decile is one value, so that bins and deciles are values."""


@dataclass(frozen=True)
class Case:
    """Rows of a window and of a reference; NaN is null."""

    window: np.ndarray
    reference: np.ndarray = field(default_factory=lambda: EVEN)


def nulls(rows: np.ndarray, share: float = 0.2) -> np.ndarray:
    found = rows.astype(float)
    found[: int(share * len(rows))] = np.nan
    return RNG.permutation(found)


NUMERIC = {
    "ties": Case(RNG.integers(0, 10, 700).astype(float)),
    "empty bins": Case(np.repeat([0.0, 3.0, 9.0], [50, 20, 130])),
    "a fifth null": Case(nulls(RNG.integers(0, 10, 500))),
    "a fifth null on both sides": Case(nulls(RNG.integers(0, 8, 500)), nulls(EVEN)),
    "a constant": Case(np.full(300, 4.0)),
    "one sample": Case(np.array([7.0])),
    "one other sample": Case(np.array([0.0])),
    "one value more than the reference has": Case(np.repeat([2.0, 9.0, 12.0], [30, 5, 9])),
    "below the reference": Case(np.repeat([-3.0, 1.0, 6.0], [8, 30, 31])),
    "equal": Case(EVEN),
}


def column(reference: np.ndarray) -> ColumnReference:
    known = reference[~np.isnan(reference)]
    return ColumnReference(
        "v__x",
        True,
        tuple(np.bincount(known.astype(int), minlength=10).tolist()),
        null_count=int(np.isnan(reference).sum()),
        edges=tuple((np.arange(9) + 0.5).tolist()),
        mean=float(known.mean()),
        stddev=float(known.std()),
        minimum=0.0,
        maximum=9.0,
    )


def counted(rows: np.ndarray, columns: tuple[ColumnReference, ...]) -> WindowCounts:
    """A window of predictions with these values of the only feature, through panes."""
    layout, n = Layout.of(columns), len(rows)
    ones, zeros, no = np.ones(n, np.int64), np.zeros(n), np.zeros(n, np.bool_)
    values = rows if columns[0].numeric else rows.astype(object)
    valid = ~np.isnan(rows) if columns[0].numeric else np.array([r is not None for r in rows], np.bool_)
    panes = PaneAccumulator(layout, 60_000_000)
    panes.add_rows(
        Rows(
            ones * 0, zeros, zeros[:, None], no, ones, zeros, zeros, no, ("",) * n, {"v__x": (values, valid)}
        )
    )
    return sum_panes(layout, [(key.start_us, pane) for key, pane in panes.merge({}).items()])


def measured(case: Case) -> tuple[FeatureDrift, float]:
    reference = column(case.reference)
    bins = FeatureBins(reference)
    window = counted(case.window, (reference,))
    return measure(bins, window.feature(bins), window.mean_shift("v__x"))


def shares_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Rows per decile of the reference, which are its values; what is outside counts at its ends."""
    sides = (np.clip(rows[~np.isnan(rows)], 0, 9).astype(int) for rows in (case.window, case.reference))
    window, reference = (np.bincount(side, minlength=10) for side in sides)
    # The first and the last decile are open-ended.
    first, last = np.flatnonzero(reference)[[0, -1]]
    window[first] += window[:first].sum()
    window[last] += window[last + 1 :].sum()
    return window[first : last + 1], reference[first : last + 1]


def jeffreys(window: np.ndarray, reference: np.ndarray) -> float:
    used = (window + reference) > 0
    p, q = ((side[used] + 0.5) / (side.sum() + 0.5 * used.sum()) for side in (window, reference))
    return float(sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)))


@pytest.mark.parametrize("name", NUMERIC)
def test_statistics_of_numbers_equal_those_of_the_rows(name: str) -> None:
    case = NUMERIC[name]
    found, _ = measured(case)
    window, reference = (rows[~np.isnan(rows)] for rows in (case.window, case.reference))
    # Values outside the reference's range are one bin on each side, which keeps their order.
    expected = stats.ks_2samp(np.clip(window, -1, 10), reference, method="asymp")
    assert expected.statistic == pytest.approx(found.ks, **EXACT)
    n, m = len(window), len(reference)
    asymptotic = stats.kstwobign.sf(math.sqrt(n * m / (n + m)) * expected.statistic)
    assert asymptotic == pytest.approx(found.ks_p_value, **P_VALUE)
    deciles = shares_of(case)
    assert jeffreys(*deciles) == pytest.approx(found.psi, **EXACT)
    assert jensenshannon(*deciles, base=2) == pytest.approx(found.jensen_shannon, **EXACT)
    shift = (np.clip(window, 0, 9).mean() - reference.mean()) / reference.std()
    assert shift == pytest.approx(found.mean_shift, **EXACT)
    assert shift / math.sqrt(1 / n + 1 / m) == pytest.approx(found.mean_shift_z, **EXACT)
    used = deciles[0] + deciles[1] > 0
    p, q = (np.maximum(side[used] / side.sum(), 1e-4) for side in deciles)
    assert float(np.sum((p - q) * np.log(p / q))) == pytest.approx(found.psi_epsilon, **EXACT)
    assert np.isnan(case.window).mean() == pytest.approx(found.null_rate, **EXACT)
    assert np.isnan(case.reference).mean() == pytest.approx(found.reference_null_rate, **EXACT)
    outside = ((window < 0) | (window > 9)).sum() / len(case.window)
    assert outside == pytest.approx(found.unseen_rate, **EXACT)


@pytest.mark.parametrize("name", NUMERIC)
def test_wasserstein_of_binned_values_equals_scipy(name: str) -> None:
    case = NUMERIC[name]
    window, reference = (rows[~np.isnan(rows)] for rows in (case.window, case.reference))
    positions = np.arange(-3.0, 13.0)
    counts = [np.bincount((side + 3).astype(int), minlength=16) for side in (window, reference)]
    expected = stats.wasserstein_distance(window, reference)
    assert expected == pytest.approx(distances.wasserstein(*counts, positions), **EXACT)


@pytest.mark.parametrize("name", NUMERIC)
def test_psi_with_a_smallest_share_equals_the_formula(name: str) -> None:
    window, reference = shares_of(NUMERIC[name])
    expected = 0.0
    for w, r in zip(window, reference, strict=True):
        if w + r:
            p, q = max(w / window.sum(), 1e-4), max(r / reference.sum(), 1e-4)
            expected += (p - q) * math.log(p / q)
    assert expected == pytest.approx(psi.psi(window, reference, psi.Smoothing.EPSILON), **EXACT)


CATEGORIES = {
    "many rows": (["a"] * 60 + ["b"] * 30 + ["c"] * 110),
    "an empty category": (["a"] * 60 + ["c"] * 70),
    "a fifth null": (["a"] * 40 + ["b"] * 60 + ["c"] * 60 + [None] * 40),
    "a constant": ["b"] * 200,
    "new categories": (["a"] * 40 + ["b"] * 40 + ["x"] * 20 + ["y"] * 30),
    "one sample": ["a"],
    "one new sample": ["x"],
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_statistics_of_categories_equal_those_of_the_rows(name: str) -> None:
    rows = np.array(CATEGORIES[name], object)
    reference = ColumnReference("v__x", False, (300, 200, 500), null_count=50, categories=("a", "b", "c"))
    bins = FeatureBins(reference)
    window = counted(rows, (reference,)).feature(bins)
    found, p_value = measure(bins, window, None)
    listed = np.array([(rows == c).sum() for c in "abc"])
    missing = sum(r is None for r in rows)
    new = len(rows) - listed.sum() - missing
    assert (
        jeffreys(listed, np.array([300, 200, 500])) == pytest.approx(found.psi, **EXACT) or listed.sum() == 0
    )
    if listed.sum():
        expected = jensenshannon(listed, [300, 200, 500], base=2)
        assert expected == pytest.approx(found.jensen_shannon, **EXACT)
    assert (missing / len(rows), new / len(rows)) == pytest.approx(
        (found.null_rate, found.unseen_rate), **EXACT
    )
    assert 50 / 1050 == pytest.approx(found.reference_null_rate, **EXACT)
    # Pooled by hand: bins of fewer than 5 expected rows of the smaller side become one.
    table = np.array([[*listed, missing, new], [300, 200, 500, 50, 0]])
    least = 5 * table.sum() / min(table.sum(axis=1))
    small = table.sum(axis=0) < least
    kept = np.column_stack([table[:, ~small], table[:, small].sum(axis=1)]) if small.any() else table
    if small.any() and kept[:, -1].sum() < least and kept.shape[1] > 1:
        smallest = int(kept[:, :-1].sum(axis=0).argmin())
        kept[:, smallest] += kept[:, -1]
        kept = kept[:, :-1]
    kept = kept[:, kept.sum(axis=0) > 0]
    if kept.shape[1] < 2:
        assert (0.0, 1.0) == (found.chi_square, p_value)
        return
    test = stats.chi2_contingency(kept, correction=False)
    assert test.statistic == pytest.approx(found.chi_square, **EXACT)
    assert test.pvalue == pytest.approx(p_value, **P_VALUE)
    assert test.dof == found.chi_square_degrees
    expected = stats.contingency.association(kept, method="cramer")
    assert expected == pytest.approx(found.cramers_v, **EXACT)


def test_statistics_without_rows_are_zero() -> None:
    none, some = np.zeros(4, np.int64), np.array([1, 2, 3, 4])
    assert 0.0 == psi.psi(none, some) == psi.psi(some, none) == ks.ks_statistic(none, some)
    assert 0.0 == distances.jensen_shannon(none, some) == distances.wasserstein(none, some, np.arange(4.0))
    found = chi_square.chi_square(none, some)
    assert (0, 0, 1, 0) == (found.statistic, found.degrees, found.p_value, found.cramers_v)


# ---------------------------------------------------------------------------------------------- quality

SCORED = {
    "distinct": (RNG.permutation(200) / 200 + 0.0025, RNG.integers(0, 2, 200)),
    "ties": (RNG.integers(0, 6, 300) / 5 * 0.98 + 0.01, RNG.integers(0, 2, 300)),
    "empty bins": (RNG.choice([0.02, 0.97], 120), RNG.integers(0, 2, 120)),
    "constant": (np.full(90, 0.25), RNG.integers(0, 2, 90)),
    "certain": (np.repeat([0.0, 1.0], 40), np.r_[np.zeros(38), np.ones(2), np.ones(39), [0]]),
    "one of each": (np.array([0.3, 0.6]), np.array([0, 1])),
    "one class": (np.linspace(0.1, 0.9, 30), np.ones(30)),
    "one sample": (np.array([0.8]), np.array([1])),
    "imbalanced": (np.round(RNG.beta(1, 9, 800), 3), (RNG.random(800) < 0.02)),
}


def judged(scores: np.ndarray, labels: np.ndarray) -> Quality:
    layout, n = Layout.of(Reference().columns), len(scores)
    ones, no = np.ones(n, np.int64), np.zeros(n, np.bool_)
    panes = PaneAccumulator(layout, 60_000_000)
    panes.add_rows(
        Rows(ones * 0, scores, scores[:, None], no, ones, ones * 1.0, ones * 1.0, no, ("",) * n, {})
    )
    panes.add_labels(LabelledRows(ones * 0, ("",) * n, scores, scores[:, None], labels, ones))
    window = sum_panes(layout, [(key.start_us, pane) for key, pane in panes.merge({}).items()])
    return with_exact_auc(quality(window), scores, labels)


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    bins = np.minimum((scores * 10).astype(int), 9)
    parts = [(scores[bins == b], labels[bins == b]) for b in range(10) if (bins == b).any()]
    return sum(len(s) * abs(s.mean() - y.mean()) for s, y in parts) / len(scores)


def test_the_noise_of_the_calibration_error_is_that_of_simulations() -> None:
    rng = np.random.default_rng(4)
    scores = rng.beta(2, 3, 2000)
    found = judged(scores, (rng.random(2000) < scores).astype(float))
    drawn = [expected_calibration_error(scores, rng.random(2000) < scores) for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(found.calibration_error_by_chance, rel=0.05)
    wrong = scores**2  # Far from calibrated: the signs of the differences do not change.
    found = judged(scores, (rng.random(2000) < wrong).astype(float))
    drawn = [expected_calibration_error(scores, rng.random(2000) < wrong) for _ in range(400)]
    assert np.std(drawn) == pytest.approx(found.calibration_error_error, rel=0.15)


def test_the_standard_error_of_the_average_precision_is_near_that_of_simulations() -> None:
    rng = np.random.default_rng(4)
    drawn, errors = [], []
    for _ in range(60):
        labels = (rng.random(1500) < 0.3).astype(float)
        scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.15), 0, 1)
        found = judged(scores, labels)
        drawn.append(metrics.average_precision_score(labels, scores))
        errors.append(found.average_precision_error)
    # The binomial error is the conservative one of Boyd, Eng and Page.
    assert 0.7 * np.std(drawn) <= np.mean(errors) <= 2 * np.std(drawn)


def delong(scores: np.ndarray, labels: np.ndarray) -> float:
    """The standard error of the AUC from the matrix of all pairs."""
    wins = np.sign(scores[labels == 1][:, None] - scores[labels == 0][None, :]) / 2 + 0.5
    return math.sqrt(wins.mean(axis=1).var(ddof=1) / len(wins) + wins.mean(axis=0).var(ddof=1) / len(wins.T))


@pytest.mark.parametrize("name", SCORED)
def test_quality_equals_scikit_learn(name: str) -> None:
    scores, labels = SCORED[name][0], SCORED[name][1].astype(float)
    found = judged(scores, labels)
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    losses = -np.log(np.where(labels == 1, clipped, 1 - clipped))
    assert losses.mean() == pytest.approx(found.log_loss, **EXACT)
    assert metrics.log_loss(labels, clipped, labels=[0, 1]) == pytest.approx(
        found.log_loss, rel=1e-9, abs=1e-9
    )
    assert metrics.brier_score_loss(labels, scores, pos_label=1) == pytest.approx(found.brier, **EXACT)
    assert expected_calibration_error(scores, labels) == pytest.approx(found.calibration_error, **EXACT)
    assert labels.mean() == pytest.approx(found.label_mean, **EXACT)
    # The trainer's figures are the reference: equal rows must give equal ones.
    held_out = trainer.log_loss(labels, scores), trainer.brier(labels, scores), trainer.ece(labels, scores)
    assert held_out == pytest.approx((found.log_loss, found.brier, found.calibration_error), **EXACT)
    if len(labels) > 1:
        assert stats.sem(losses) == pytest.approx(found.log_loss_error, rel=1e-9, abs=1e-8)
        # The rows of a bin of width 0.005 count in its middle.
        squares = stats.sem((scores - labels) ** 2)
        assert squares == pytest.approx(found.brier_error, abs=0.005 / math.sqrt(len(labels)))
    if len(set(labels)) < 2:
        assert (None, None, None) == (found.auc, found.average_precision, found.auc_error)
        return
    assert metrics.roc_auc_score(labels, scores) == pytest.approx(found.auc, **EXACT)
    average_precision = metrics.average_precision_score(labels, scores)
    assert average_precision == pytest.approx(found.average_precision, **EXACT)
    if min(labels.sum(), (1 - labels).sum()) >= 2:
        assert delong(scores, labels) == pytest.approx(found.auc_error, **EXACT)
    else:
        assert found.auc_error is None
