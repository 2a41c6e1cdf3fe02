"""Metrics, intervals, curves and thresholds of EVALUATE against scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve as sk_curve

from flywheel_job.evaluation.bootstrap import bootstrap
from flywheel_job.evaluation.outputs import (
    BINARY_METRICS,
    MULTICLASS_METRICS,
    REGRESSION_METRICS,
    BinaryOutputs,
    MulticlassOutputs,
    RegressionOutputs,
    paired,
)
from flywheel_job.evaluation.ranking import Ranking
from flywheel_job.evaluation.reliability import calibration_curve, wilson
from flywheel_job.evaluation.thresholds import Costs, by_cost, by_f_beta

ROWS = 400


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(params=["without weights", "with weights"])
def weights(request: pytest.FixtureRequest, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(0, 5, ROWS) * 1.7
    return drawn if request.param == "with weights" else np.ones(ROWS)


def binary(rng: np.random.Generator, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores with ties."""
    labels = rng.integers(0, 2, ROWS).astype(float)
    return labels, np.clip(np.round(rng.normal(0.3 + 0.3 * labels, 0.2), decimals), 0.01, 0.99)


def test_binary_metrics_equal_scikit_learn(rng: np.random.Generator, weights: np.ndarray) -> None:
    labels, scores = binary(rng)
    decided = scores >= 0.4
    found = BinaryOutputs(labels, scores, 0.4).metrics(weights)
    mean = np.average(scores, weights=weights)
    expected = {
        "auc": sk.roc_auc_score(labels, scores, sample_weight=weights),
        "average_precision": sk.average_precision_score(labels, scores, sample_weight=weights),
        "log_loss": sk.log_loss(labels, scores, sample_weight=weights),
        "brier": sk.brier_score_loss(labels, scores, sample_weight=weights),
        "precision": sk.precision_score(labels, decided, sample_weight=weights),
        "recall": sk.recall_score(labels, decided, sample_weight=weights),
        "f1": sk.f1_score(labels, decided, sample_weight=weights),
        "accuracy": sk.accuracy_score(labels, decided, sample_weight=weights),
        "label_mean": np.average(labels, weights=weights),
        "score_mean": mean,
        "score_stddev": np.sqrt(np.cov(scores, aweights=weights, bias=True)),
        "ece": _ece(labels, scores, weights),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert tuple(found) == BINARY_METRICS


def _ece(right: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Bin by bin."""
    total = 0.0
    for number in range(10):
        inside = (scores >= number / 10) & (scores < (number + 1) / 10)
        total += abs((weights * (right - scores))[inside].sum())
    return total / float(weights.sum())


def test_multiclass_metrics_equal_scikit_learn(rng: np.random.Generator, weights: np.ndarray) -> None:
    probabilities = rng.dirichlet(np.ones(4), ROWS)
    labels = np.array([rng.choice(4, p=0.5 * p + 0.125) for p in probabilities])
    labels[labels == 2] = 1  # a class without a row
    chosen = probabilities.argmax(axis=1)
    occurring = [0, 1, 3]
    found = MulticlassOutputs.of(labels, probabilities).metrics(weights)
    one_hot = np.eye(4)[labels]
    expected = {
        "accuracy": sk.accuracy_score(labels, chosen, sample_weight=weights),
        "log_loss": sk.log_loss(labels, probabilities, sample_weight=weights, labels=range(4)),
        "brier": np.average(((probabilities - one_hot) ** 2).sum(axis=1), weights=weights),
        "macro_f1": sk.f1_score(labels, chosen, average="macro", labels=occurring, sample_weight=weights),
        "macro_recall": sk.recall_score(
            labels, chosen, average="macro", labels=occurring, sample_weight=weights
        ),
        "ece": _ece((chosen == labels).astype(float), probabilities.max(axis=1), weights),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert tuple(found) == MULTICLASS_METRICS


def test_regression_metrics_equal_scikit_learn(rng: np.random.Generator, weights: np.ndarray) -> None:
    labels = rng.normal(20, 5, ROWS)
    values = labels + rng.normal(1, 3, ROWS)
    found = RegressionOutputs(labels, values).metrics(weights)
    expected = {
        "rmse": sk.root_mean_squared_error(labels, values, sample_weight=weights),
        "mae": sk.mean_absolute_error(labels, values, sample_weight=weights),
        "r2": sk.r2_score(labels, values, sample_weight=weights),
        "bias": np.average(values - labels, weights=weights),
        "label_mean": np.average(labels, weights=weights),
        "score_mean": np.average(values, weights=weights),
    }
    assert found == pytest.approx(expected, abs=1e-9)
    assert tuple(found) == REGRESSION_METRICS


def test_intervals_equal_those_of_scipy(rng: np.random.Generator) -> None:
    labels, scores = binary(rng)
    outputs = BinaryOutputs(labels, scores, 0.5)
    found = bootstrap(outputs.metrics, ROWS, samples=50, confidence=0.9, rng=np.random.default_rng(3))
    statistics = {"auc": sk.roc_auc_score, "brier": sk.brier_score_loss, "average_precision": None}
    statistics["average_precision"] = sk.average_precision_score
    for name, statistic in statistics.items():
        expected = stats.bootstrap(
            (labels, scores),
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=50,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        estimate = found[name]
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert estimate.value == pytest.approx(statistic(labels, scores), abs=1e-12)


def test_the_interval_of_a_difference_is_that_of_paired_rows(rng: np.random.Generator) -> None:
    labels, champion = binary(rng)
    model = np.clip(champion + rng.normal(0, 0.01, ROWS), 0.0, 1.0)
    ours, theirs = BinaryOutputs(labels, model, 0.5), BinaryOutputs(labels, champion, 0.5)
    found = bootstrap(
        lambda counts: paired(ours, theirs, counts),
        ROWS,
        samples=60,
        confidence=0.95,
        rng=np.random.default_rng(4),
    )

    def difference(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
        return sk.roc_auc_score(y, a) - sk.roc_auc_score(y, b)

    expected = stats.bootstrap(
        (labels, model, champion),
        difference,
        paired=True,
        vectorized=False,
        n_resamples=60,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    one = found["difference_auc"]
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    width = found["auc"].high - found["auc"].low
    assert one.high - one.low < width / 3, "scores of the same rows are correlated"


def test_a_bootstrap_with_one_seed_is_the_same_again(rng: np.random.Generator) -> None:
    labels, scores = binary(rng)
    outputs = BinaryOutputs(labels, scores, 0.5)

    def run(seed: int) -> Any:
        generator = np.random.default_rng(seed)
        return bootstrap(outputs.metrics, ROWS, samples=20, confidence=0.95, rng=generator)

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_samples_without_a_positive_row_do_not_count() -> None:
    labels = np.zeros(20)
    labels[0] = 1
    outputs = BinaryOutputs(labels, np.linspace(0.9, 0.1, 20), 0.5)
    rng = np.random.default_rng(0)
    found = bootstrap(outputs.metrics, 20, samples=200, confidence=0.95, rng=rng)
    assert (found["auc"].low, found["auc"].high) == (1.0, 1.0)
    one_class = BinaryOutputs(np.ones(20), np.linspace(0.9, 0.1, 20), 0.5)
    nothing = bootstrap(one_class.metrics, 20, samples=10, confidence=0.95, rng=rng)["auc"]
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_the_calibration_curve_equals_scikit_learn(rng: np.random.Generator) -> None:
    labels, scores = binary(rng, decimals=6)
    curve = calibration_curve(labels, scores, np.ones(ROWS))
    shares, means = sk_curve(labels, scores, n_bins=10, strategy="quantile")
    assert [one.mean_label for one in curve] == pytest.approx(shares, abs=1e-12)
    assert [one.mean_score for one in curve] == pytest.approx(means, abs=1e-12)
    assert sum(one.rows for one in curve) == ROWS


def test_a_weighted_curve_has_the_weighted_means_of_each_bin(rng: np.random.Generator) -> None:
    labels, scores = binary(rng, decimals=1)
    weights = rng.integers(1, 4, ROWS).astype(float)
    edges = np.percentile(scores, np.arange(10, 100, 10))
    bins = [np.flatnonzero(np.searchsorted(edges, scores) == number) for number in range(10)]
    expected = [
        (np.average(scores[rows], weights=weights[rows]), np.average(labels[rows], weights=weights[rows]))
        for rows in bins
        if len(rows)
    ]
    found = [(one.mean_score, one.mean_label) for one in calibration_curve(labels, scores, weights)]
    assert found == [pytest.approx(one) for one in expected]


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (3, 10), (10, 10), (450, 1000)])
def test_the_interval_of_a_bin_equals_scipy(hits: int, rows: int) -> None:
    expected = stats.binomtest(hits, rows).proportion_ci(0.9, method="wilson")
    assert wilson(hits / rows, rows, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_no_threshold_has_a_better_f_beta(rng: np.random.Generator, weights: np.ndarray, beta: float) -> None:
    labels, scores = binary(rng)
    chosen = by_f_beta(Ranking(scores), labels, weights, beta)
    values = {
        t: sk.fbeta_score(labels, scores >= t, beta=beta, sample_weight=weights) for t in np.unique(scores)
    }
    assert chosen.value == pytest.approx(max(values.values()), abs=1e-12)
    assert values[chosen.threshold] == pytest.approx(chosen.value, abs=1e-12)


@pytest.mark.parametrize("costs", [Costs(1, 1), Costs(1, 20), Costs(20, 1), Costs(1, 0)])
def test_no_threshold_is_cheaper(rng: np.random.Generator, weights: np.ndarray, costs: Costs) -> None:
    labels, scores = binary(rng)
    chosen = by_cost(Ranking(scores), labels, weights, costs)

    def cost(threshold: float) -> float:
        (_, wrong), (missed, _) = sk.confusion_matrix(
            labels, scores >= threshold, sample_weight=weights, labels=[0, 1]
        )
        total = costs.false_positive * wrong + costs.false_negative * missed
        return float(total / weights.sum())

    assert chosen.value == pytest.approx(min(map(cost, [*np.unique(scores), 2.0])), abs=1e-12)
    assert cost(chosen.threshold) == pytest.approx(chosen.value, abs=1e-12)


def test_without_a_positive_row_the_threshold_is_a_half() -> None:
    assert by_f_beta(Ranking([0.1, 0.7]), np.zeros(2), np.ones(2)).threshold == 0.5
