"""Performance estimated from scores alone (CBPE), and the warning when labels are worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from flywheel_common.signature import OutputKind
from flywheel_monitor.api.convert_performance import performance_to_proto
from flywheel_monitor.performance.estimate import Estimate, estimate_of, expected
from flywheel_monitor.performance.quality import quality
from flywheel_monitor.performance.served import ServedPerformance
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import LabelledRows, Rows
from flywheel_protos.monitor.v1 import monitor_pb2


def histogram(scores: np.ndarray) -> np.ndarray:
    return np.bincount(np.minimum((scores * 200).astype(int), 199), minlength=200)


def brute_force(scores: np.ndarray) -> tuple[float, float, float]:
    """(AUC, accuracy, log-loss) from every pair of rows, one of which is positive and the other negative."""
    auc_sum = pairs = 0.0
    for p in scores:
        for q in scores:
            weight = p * (1 - q)
            auc_sum += weight * (1.0 if p > q else 0.5 if p == q else 0.0)
            pairs += weight
    accuracy = sum(p if p >= 0.5 else 1 - p for p in scores) / len(scores)
    loss = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in scores) / len(scores)
    return auc_sum / pairs, accuracy, loss


@pytest.mark.parametrize(
    "bins", [[0, 3, 3, 3, 90, 99, 100, 101, 150, 199, 199], [40], [100, 100], list(range(200)), [0, 199]]
)
def test_the_estimate_equals_a_brute_force_over_pairs(bins: list[int]) -> None:
    scores = (np.array(bins) + 0.5) / 200
    found = expected(histogram(scores))
    assert found is not None
    assert (found.auc, found.accuracy, found.log_loss) == pytest.approx(brute_force(scores), abs=1e-12)


def test_the_estimate_equals_scikit_learn_with_expected_labels() -> None:
    scores = np.random.default_rng(4).beta(0.5, 2.0, 3000)
    middles = (np.minimum((scores * 200).astype(int), 199) + 0.5) / 200
    labels = np.repeat([1, 0], len(scores))
    twice, weights = np.tile(middles, 2), np.concatenate([middles, 1 - middles])
    found = expected(histogram(scores))
    assert found is not None
    assert found.auc == pytest.approx(roc_auc_score(labels, twice, sample_weight=weights), abs=1e-9)
    assert found.log_loss == pytest.approx(log_loss(labels, twice, sample_weight=weights), abs=1e-9)


def test_no_scores_give_no_estimate() -> None:
    assert expected(np.zeros(200, np.int64)) is None
    assert estimated(np.array([])) is None


def test_other_outputs_have_no_estimate() -> None:
    assert estimated(np.array([0.2, 0.7]), output=Output(OutputKind.REGRESSION)) is None


def window(scores: np.ndarray, labels: np.ndarray, output: Output) -> WindowCounts:
    """Rows with these scores, of which the first have these labels."""
    layout = Layout.of((), output)
    panes = PaneAccumulator(layout, 60_000_000)
    n, ones = len(scores), np.ones(len(scores), np.int64)
    no, zeros = np.zeros(n, np.bool_), np.zeros(n)
    if n:
        panes.add_rows(Rows(0 * ones, scores, scores[:, None], no, ones, zeros, zeros, no, ("",) * n, {}))
    k = len(labels)
    if k:
        row = (ones[:k] * 0, ("",) * k, scores[:k], scores[:k, None], labels, ones[:k])
        panes.add_labels(LabelledRows(*row))
    return sum_panes(layout, [(key.start_us, p) for key, p in panes.merge({}).items()] if n else [])


BINARY = Output()


def estimated(
    scores: np.ndarray, labels: np.ndarray | None = None, output: Output = BINARY
) -> Estimate | None:
    counted = window(scores, np.zeros(0) if labels is None else labels, output)
    return estimate_of(counted, quality(counted))


def drawn(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores and their labels."""
    scores = rng.beta(0.6, 1.5, n)
    return scores, (rng.random(n) < scores).astype(float)


def test_the_estimate_predicts_the_realised_performance_of_calibrated_scores() -> None:
    scores, labels = drawn(np.random.default_rng(1), 100_000)
    found = estimated(scores, labels)
    assert found is not None and found.labelled is not None
    assert found.expected == found.labelled
    assert found.expected.auc == pytest.approx(roc_auc_score(labels, scores), abs=0.005)
    assert found.expected.log_loss == pytest.approx(log_loss(labels, scores), abs=0.01)
    assert found.realised_accuracy == pytest.approx(float(np.mean((scores >= 0.5) == labels)), abs=1e-12)
    assert found.expected.accuracy == pytest.approx(found.realised_accuracy, abs=0.005)
    assert "" == found.warning


def test_only_the_labelled_predictions_are_compared_with_their_labels() -> None:
    """Labels exist for the uncertain predictions only, which are worse than the average one."""
    rng = np.random.default_rng(2)
    uncertain = rng.uniform(0.4, 0.6, 2000)
    labels = (rng.random(2000) < uncertain).astype(float)
    found = estimated(np.concatenate([uncertain, np.full(8000, 0.01)]), labels)
    assert found is not None and found.labelled is not None
    assert found.expected.accuracy > 0.85
    assert found.labelled.accuracy == pytest.approx(0.55, abs=0.01)
    assert "" == found.warning


def test_calibrated_scores_are_rarely_warned_about() -> None:
    rng = np.random.default_rng(3)
    found = [estimated(*drawn(rng, 1000)) for _ in range(300)]
    assert sum(bool(one and one.warning) for one in found) <= 2


@pytest.mark.parametrize("score", [0.0, 0.0049, 0.9951, 1.0, 0.5, 0.4999])
def test_the_width_of_a_bin_is_no_warning(score: float) -> None:
    n = 100_000
    labels = (np.arange(n) < round(score * n)).astype(float)
    found = estimated(np.full(n, score), labels)
    assert found is not None and found.labelled is not None
    realised = log_loss(labels, np.full(n, score), labels=[0, 1])
    assert abs(found.labelled.log_loss - realised) <= -math.log(1 / 400) / 400 - 399 / 400 * math.log(
        399 / 400
    )
    assert "" == found.warning


def test_labels_that_are_worse_than_promised_are_a_warning() -> None:
    rng = np.random.default_rng(5)
    scores, labels = drawn(rng, 2000)
    random = (rng.random(2000) < labels.mean()).astype(float)
    found = estimated(scores, random)
    assert found is not None and found.labelled is not None
    assert f"accuracy {found.realised_accuracy:.4f}, {found.labelled.accuracy:.4f} estimated" in found.warning
    assert f"{found.labelled.auc:.4f} estimated" in found.warning
    assert "2000 predictions" in found.warning


def test_labels_that_are_better_than_promised_are_no_warning() -> None:
    scores = np.random.default_rng(6).uniform(0.3, 0.7, 2000)
    found = estimated(scores, (scores >= 0.5).astype(float))
    assert found is not None and found.labelled is not None
    assert (1.0, "") == (found.realised_accuracy, found.warning)


CLASSES = Output(OutputKind.MULTICLASS, 3, ("a", "b", "c"))


def of_classes(probabilities: np.ndarray, classes: np.ndarray) -> WindowCounts:
    """Rows with these probabilities [n, 3], of which the first have these true classes."""
    layout, n, k = Layout.of((), CLASSES), len(probabilities), len(classes)
    panes, scores = PaneAccumulator(layout, 60_000_000), CLASSES.scores(probabilities)
    ones, no, zeros = np.ones(n, np.int64), np.zeros(n, np.bool_), np.zeros(n)
    panes.add_rows(Rows(0 * ones, scores, probabilities, no, ones, zeros, zeros, no, ("",) * n, {}))
    if k:
        labels = classes.astype(float)
        panes.add_labels(
            LabelledRows(0 * ones[:k], ("",) * k, scores[:k], probabilities[:k], labels, ones[:k])
        )
    return sum_panes(layout, [(key.start_us, p) for key, p in panes.merge({}).items()])


def drawn_classes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and true classes."""
    probabilities = rng.dirichlet([0.7, 0.5, 0.3], n)
    return probabilities, (rng.random((n, 1)) > probabilities.cumsum(axis=1)[:, :2]).sum(axis=1)


def test_the_accuracy_of_classes_is_estimated_without_labels() -> None:
    probabilities, classes = drawn_classes(np.random.default_rng(8), 20_000)
    counted = of_classes(probabilities, classes[:0])
    found = estimate_of(counted, quality(counted))
    assert found is not None and found.labelled is None
    assert found.expected.accuracy == pytest.approx(probabilities.max(axis=1).mean(), abs=1e-8)
    realised = float(np.mean(probabilities.argmax(axis=1) == classes))
    assert found.expected.accuracy == pytest.approx(realised, abs=3 * math.sqrt(0.25 / 20_000))
    assert (None, None) == (found.expected.auc, found.expected.log_loss)


def test_classes_that_are_worse_than_promised_are_a_warning() -> None:
    rng = np.random.default_rng(9)
    warned = 0
    for _ in range(200):
        counted = of_classes(*drawn_classes(rng, 1000))
        found = estimate_of(counted, quality(counted))
        assert found is not None
        warned += bool(found.warning)
    assert warned <= 2
    probabilities, classes = drawn_classes(rng, 3000)
    wrong = np.where(rng.random(2000) < 0.1, (classes[:2000] + 1) % 3, classes[:2000])
    counted = of_classes(probabilities, wrong)
    found = estimate_of(counted, quality(counted))
    assert found is not None and found.labelled is not None
    assert found.labelled.accuracy == pytest.approx(probabilities[:2000].max(axis=1).mean(), abs=1e-8)
    assert found.realised_accuracy == pytest.approx(
        float(np.mean(probabilities[:2000].argmax(axis=1) == wrong))
    )
    assert found.warning == (
        "the labels of 2000 predictions are worse than their scores promise: "
        f"accuracy {found.realised_accuracy:.4f}, {found.labelled.accuracy:.4f} estimated"
    )


def test_an_estimate_is_sent_beside_the_realised_performance() -> None:
    scores, labels = drawn(np.random.default_rng(7), 500)

    def sent(estimate: Estimate | None) -> monitor_pb2.Performance:
        found = ServedPerformance("v", 1, quality(window(scores, labels, BINARY)), 0, 0, 0, 0, 0, None, 1, 2)
        return performance_to_proto(replace(found, estimate=estimate))

    none, unlabelled, labelled = sent(None), sent(estimated(scores)), sent(estimated(scores, labels))
    assert not none.HasField("estimate")
    assert unlabelled.estimate.auc == labelled.estimate.auc > 0.5
    assert not unlabelled.estimate.HasField("labelled_auc")
    assert not unlabelled.estimate.HasField("realised_accuracy")
    assert labelled.estimate.labelled_log_loss == labelled.estimate.log_loss > 0
    assert labelled.estimate.realised_accuracy > 0.5
