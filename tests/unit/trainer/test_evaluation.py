"""Metrics and calibration against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from flywheel_common.scoring.calibration import Isotonic, Platt, logit
from flywheel_job.evaluation.calibration import IDENTITY, fit_platt
from flywheel_job.evaluation.metrics import auc, best_threshold, brier, ece, evaluate, f1, log_loss


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both classes and scores with many ties."""
    rows = draw(st.integers(2, 60))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)))
    labels[0], labels[1] = 0, 1
    scores = np.array(draw(st.lists(st.integers(1, 19), min_size=rows, max_size=rows))) / 20
    return labels, scores


@given(labelled_scores())
@settings(max_examples=150, deadline=None)
def test_auc_log_loss_brier_and_f1_equal_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = pair
    assert auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert log_loss(labels, scores) == pytest.approx(sk.log_loss(labels, scores), abs=1e-9)
    assert brier(labels, scores) == pytest.approx(sk.brier_score_loss(labels, scores), abs=1e-12)
    assert f1(labels, scores, 0.4) == pytest.approx(
        sk.f1_score(labels, scores >= 0.4, zero_division=0), abs=1e-12
    )


@given(labelled_scores())
@settings(max_examples=150, deadline=None)
def test_no_threshold_gives_a_better_f1_than_the_chosen_one(pair: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = pair
    chosen = best_threshold(labels, scores)
    best = max(sk.f1_score(labels, scores >= t) for t in np.unique(scores))
    assert sk.f1_score(labels, scores >= chosen) == pytest.approx(best, abs=1e-12)


@st.composite
def weighted_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and scores as in `labelled_scores`, and small whole weights; both classes have a weight."""
    labels, scores = draw(labelled_scores())
    rows = len(labels)
    weights = np.array(draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)), dtype=float)
    weights[:2] += 1
    return labels, scores, weights


@given(weighted_scores(), st.sampled_from([1.0, 1e-200, 3e150]))
@settings(max_examples=150, deadline=None)
def test_weighted_metrics_equal_scikit_learn_at_any_scale(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float
) -> None:
    labels, scores, w = rows
    found = evaluate(labels, scores, w * scale)
    assert found.auc == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=w), abs=1e-12)
    assert found.log_loss == pytest.approx(sk.log_loss(labels, scores, sample_weight=w), abs=1e-9)
    assert found.brier == pytest.approx(sk.brier_score_loss(labels, scores, sample_weight=w), abs=1e-12)
    assert f1(labels, scores, 0.4, w * scale) == pytest.approx(
        sk.f1_score(labels, scores >= 0.4, sample_weight=w, zero_division=0), abs=1e-12
    )
    chosen = best_threshold(labels, scores, w * scale)
    best = max(sk.f1_score(labels, scores >= t, sample_weight=w) for t in np.unique(scores))
    assert sk.f1_score(labels, scores >= chosen, sample_weight=w) == pytest.approx(best, abs=1e-12)


@given(weighted_scores())
@settings(max_examples=150, deadline=None)
def test_a_row_of_weight_n_counts_as_n_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, scores, w = rows
    repeated_labels, repeated_scores = np.repeat(labels, w.astype(int)), np.repeat(scores, w.astype(int))
    weighted = evaluate(labels, scores, w).as_metrics()
    repeated = evaluate(repeated_labels, repeated_scores).as_metrics()
    assert (weighted.pop("rows"), repeated.pop("rows")) == (len(labels), w.sum())
    assert weighted == pytest.approx(repeated, abs=1e-12)
    fitted, expected = fit_platt(labels, scores, w), fit_platt(repeated_labels, repeated_scores)
    assert (fitted.slope, fitted.intercept) == pytest.approx((expected.slope, expected.intercept), rel=1e-4)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1]])
def test_evaluate_rejects_weights_that_are_no_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        evaluate([0, 1], [0.5, 0.6], weights)


def test_ece_equals_the_value_computed_by_hand() -> None:
    # Two of ten bins have scores: [0.0, 0.1) has 0.05 twice, labels 0 and 1; [0.9, 1.0] has 1.0, label 1.
    assert ece([0, 1, 1], [0.05, 0.05, 1.0], bins=10) == pytest.approx((abs(0.5 - 0.05) * 2 + 0.0) / 3)


def test_auc_is_nan_if_a_class_is_missing() -> None:
    assert np.isnan(auc([1, 1], [0.2, 0.3]))


def test_evaluate_rejects_infinite_scores_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="finite"):
        evaluate([0, 1], [0.5, float("nan")])
    with pytest.raises(ValueError, match="equally long"):
        evaluate([0, 1], [0.5])


def test_platt_equals_unpenalised_logistic_regression_on_logits() -> None:
    random = np.random.default_rng(3)
    truth = random.normal(size=5000)
    labels = (random.random(5000) < 1 / (1 + np.exp(-(0.6 * truth - 0.9)))).astype(int)
    scores = 1 / (1 + np.exp(-2 * truth))
    fitted = fit_platt(labels, scores)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(scores)[:, None], labels)
    assert fitted.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert fitted.intercept == pytest.approx(reference.intercept_[0], rel=1e-4)

    def loss(beta: np.ndarray) -> float:
        z = beta[0] * logit(scores) + beta[1]
        return float(np.sum(np.logaddexp(0, z) - labels * z))

    found = minimize(loss, [1.0, 0.0], method="Powell", options={"xtol": 1e-9, "ftol": 1e-13})
    assert (fitted.slope, fitted.intercept) == pytest.approx(tuple(found.x), rel=1e-3)


def test_weighted_platt_equals_weighted_logistic_regression() -> None:
    random = np.random.default_rng(4)
    truth, weights = random.normal(size=4000), random.exponential(size=4000) * 1e-3
    weights[random.random(4000) < 0.2] = 0
    labels = (random.random(4000) < 1 / (1 + np.exp(-(0.6 * truth - 0.9)))).astype(int)
    scores = 1 / (1 + np.exp(-2 * truth))
    fitted = fit_platt(labels, scores, weights)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        logit(scores)[:, None], labels, sample_weight=weights * 1000
    )
    assert fitted.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert fitted.intercept == pytest.approx(reference.intercept_[0], rel=1e-4)
    assert fitted != fit_platt(labels, scores)


def test_calibration_lowers_log_loss_and_keeps_the_order() -> None:
    random = np.random.default_rng(5)
    truth = random.normal(size=4000)
    labels = (random.random(4000) < 1 / (1 + np.exp(-truth))).astype(int)
    scores = 1 / (1 + np.exp(-4 * truth))
    calibrated = fit_platt(labels, scores).apply(scores)
    assert log_loss(labels, calibrated) < log_loss(labels, scores) - 0.1
    assert auc(labels, calibrated) == pytest.approx(auc(labels, scores), abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([1, 1, 1], [0.2, 0.5, 0.9]),
        ([0, 1, 0], [0.5, 0.5, 0.5]),
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),
        ([1, 1, 0, 1, 0, 0], [0.1, 0.2, 0.3, 0.6, 0.8, 0.9]),
    ],
)
def test_platt_is_the_identity_without_an_order_keeping_fit(labels: list[int], scores: list[float]) -> None:
    assert fit_platt(labels, scores) == IDENTITY


def test_identity_keeps_scores_and_isotonic_interpolates() -> None:
    scores = np.array([0.001, 0.25, 0.999])
    np.testing.assert_allclose(Platt().apply(scores), scores, atol=1e-12)
    np.testing.assert_allclose(Isotonic((0.2, 0.6), (0.1, 0.5)).apply([0.1, 0.4, 0.9]), [0.1, 0.3, 0.5])
