"""Verdicts on labelled predictions: a figure that is worse by chance alone is no concept drift."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter
from scipy.special import expit
from sklearn import metrics

from flywheel_common.signature import OutputKind
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality, quality
from flywheel_monitor.performance.standard_errors import auc_error_at
from flywheel_monitor.performance.verdicts import judge_concept, judge_labels
from flywheel_monitor.references.reference import QualityReference, Reference
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import LabelledRows, Rows

POLICY = MonitorPolicy()
PANES = 60


def judged(scores: np.ndarray, labels: np.ndarray, output: Output | None = None) -> Quality:
    """The quality of rows that follow one another over PANES panes."""
    layout, n = Layout.of(Reference().columns, output), len(scores)
    ones, no = np.ones(n, np.int64), np.zeros(n, np.bool_)
    times = np.arange(n) * PANES // n * 60_000_000
    outputs, labels = scores[:, None], labels.astype(float)
    panes = PaneAccumulator(layout, 60_000_000)
    panes.add_rows(Rows(times, scores, outputs, no, ones, ones * 1.0, ones * 1.0, no, ("",) * n, {}))
    panes.add_labels(LabelledRows(times, ("",) * n, scores, outputs, labels, ones))
    return quality(sum_panes(layout, [(key.start_us, pane) for key, pane in panes.merge({}).items()]))


def drawn(
    rng: np.random.Generator, n: int, rho: float = 0.0, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, labels) of a calibrated model whose rows are an AR(1) process; the labels follow scores that
    are `strength` times as strong."""
    noise = rng.standard_normal(n + 100)
    hidden = lfilter([math.sqrt(1 - rho * rho)], [1, -rho], noise)[100:]
    # Dependent labels too: the same uniform variable moves slowly.
    noise = rng.standard_normal(n + 100)
    uniform = stats.norm.cdf(lfilter([math.sqrt(1 - rho * rho)], [1, -rho], noise)[100:])
    return expit(1.2 * hidden - 1), (uniform < expit(1.2 * strength * hidden - 1)).astype(float)


def held_out(rows: int = 0) -> QualityReference:
    scores, labels = drawn(np.random.default_rng(1), 200_000)
    found = judged(scores, labels)
    return QualityReference(
        found.auc,
        found.log_loss,
        found.label_mean,
        average_precision=found.average_precision,
        brier=found.brier,
        calibration_error=found.calibration_error,
        rows=rows,
    )


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_chance_alone_is_no_concept_drift(rho: float) -> None:
    """With limits so small that they alone would alarm in many windows."""
    strict = MonitorPolicy(auc_drop=0.02, log_loss_ratio=1.05, label_shift=0.02)
    rng, reference = np.random.default_rng(2), held_out()
    alarms = shifts = below = 0
    for _ in range(300):
        found = judged(*drawn(rng, 600, rho))
        alarms += judge_concept(found, reference, strict)[0] is Verdict.DRIFT
        shifts += judge_labels(found, reference, strict)[0] is Verdict.DRIFT
        below += found.auc < reference.auc - strict.auc_drop
    assert below > 30
    assert alarms <= 3
    assert shifts <= 3


def test_a_model_that_has_become_worse_is_found() -> None:
    rng, reference = np.random.default_rng(3), held_out()
    verdicts = [
        judge_concept(judged(*drawn(rng, 1_000, strength=0.2)), reference, POLICY)[0] for _ in range(100)
    ]
    assert 95 <= verdicts.count(Verdict.DRIFT)


def test_few_held_out_rows_are_uncertain_too() -> None:
    found = Quality(2_000, auc=0.70, auc_error=0.012, label_mean=0.3, effective_labels=2_000.0)
    reference = QualityReference(auc=0.78)
    assert judge_concept(found, reference, POLICY)[0] is Verdict.DRIFT
    assert judge_concept(found, replace(reference, rows=100), POLICY)[0] is Verdict.NO_DRIFT
    assert judge_concept(replace(found, effective_labels=150.0), reference, POLICY)[0] is Verdict.NO_DRIFT


def test_two_positives_say_nothing_about_the_auc() -> None:
    """They lie together by chance, so that their AUC has a small standard error of its own."""
    rng = np.random.default_rng(4)
    scores, labels = rng.uniform(0.2, 1, 600), np.zeros(600)
    scores[:2], labels[:2] = (0.11, 0.12), 1
    found = judged(scores, labels)
    assert found.auc is not None and found.auc < 0.01 and found.auc_error is not None
    assert found.auc_error < 0.01
    of_auc = QualityReference(auc=0.75)
    assert judge_concept(found, of_auc, POLICY)[0] is Verdict.NO_DRIFT
    assert (
        judge_concept(Quality(600, auc=0.5, auc_error=None, label_mean=0.0), of_auc, POLICY)[0]
        is Verdict.NO_DRIFT
    )


def test_the_standard_error_at_an_auc_is_that_of_exponential_scores() -> None:
    # The example of Hanley and McNeil 1982: 51 abnormal and 58 normal images, 0.893 with 0.032.
    assert auc_error_at(0.893, 51, 58) == pytest.approx(0.032, abs=1e-3)
    # P(positive > negative) of exponential variables with means 3 and 1 is 3 / 4. The AUC is that share.
    rng = np.random.default_rng(5)
    positives, negatives = rng.exponential(3, (3_000, 30, 1)), rng.exponential(1, (3_000, 1, 50))
    found = (positives > negatives).mean(axis=(1, 2))
    assert found[0] == pytest.approx(
        metrics.roc_auc_score([1] * 30 + [0] * 50, np.concatenate([positives[0, :, 0], negatives[0, 0]]))
    )
    assert np.std(found) == pytest.approx(auc_error_at(0.75, 30, 50), rel=0.05)
    assert auc_error_at(0.8, 0, 50) is None


def test_dependent_labels_count_as_fewer() -> None:
    rng = np.random.default_rng(6)
    independent = [judged(*drawn(rng, 3_000)).effective_labels for _ in range(50)]
    assert 1_000 < np.median(independent) <= 3_000
    scores, labels = drawn(rng, 300)
    repeated = judged(np.repeat(scores, 10), np.repeat(labels, 10)).effective_labels
    assert 100 < repeated < 350


def test_standard_errors_of_accuracy_and_rmse() -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(5, 2, 500)
    labels = values + rng.standard_t(5, 500)
    found = judged(values, labels, Output(OutputKind.REGRESSION, center=5.0, scale=2.0))
    squares = (values - labels) ** 2
    # d sqrt(x) = dx / (2 sqrt(x))
    assert found.rmse_error == pytest.approx(stats.sem(squares) / 2 / math.sqrt(squares.mean()), rel=1e-7)
    by_chance = Quality(500, rmse=1.3, rmse_error=0.11)
    assert judge_concept(by_chance, QualityReference(rmse=1.0), POLICY)[0] is Verdict.NO_DRIFT
    assert (
        judge_concept(replace(by_chance, rmse_error=0.09), QualityReference(rmse=1.0), POLICY)[0]
        is Verdict.DRIFT
    )
    known = QualityReference(accuracy=0.9)
    binomial = stats.binom(500, 0.84).std() / 500
    assert 0.06 / binomial == pytest.approx(3.66, abs=0.01)
    assert (
        judge_concept(Quality(500, accuracy=0.84, accuracy_error=binomial), known, POLICY)[0] is Verdict.DRIFT
    )
    wider = Quality(500, accuracy=0.84, accuracy_error=binomial, effective_labels=300.0)
    assert judge_concept(wider, known, POLICY)[0] is Verdict.NO_DRIFT
