"""Verdicts on labelled predictions: concept drift and label drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel_monitor.drift import psi
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import QualityReference

SIGNIFICANT_Z = 3.0


def judge_concept(
    quality: Quality, reference: QualityReference, policy: MonitorPolicy
) -> tuple[Verdict, str]:
    """Concept drift: a lower AUC, average precision or accuracy, or a higher log-loss, Brier score,
    calibration error or RMSE, than on held-out rows."""
    if quality.labelled < policy.min_labels:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    found = []
    if (
        quality.auc is not None
        and reference.auc is not None
        and quality.auc < reference.auc - policy.auc_drop
    ):
        found.append(f"AUC {quality.auc:.3f} against {reference.auc:.3f}")
    if (
        quality.log_loss is not None
        and reference.log_loss
        and quality.log_loss > reference.log_loss * policy.log_loss_ratio
    ):
        found.append(f"log-loss {quality.log_loss:.3f} against {reference.log_loss:.3f}")
    if (
        quality.accuracy is not None
        and reference.accuracy is not None
        and quality.accuracy < reference.accuracy - policy.auc_drop
    ):
        found.append(f"accuracy {quality.accuracy:.3f} against {reference.accuracy:.3f}")
    if (
        quality.average_precision is not None
        and reference.average_precision is not None
        and quality.average_precision < reference.average_precision - policy.auc_drop
    ):
        found.append(
            f"average precision {quality.average_precision:.3f} against {reference.average_precision:.3f}"
        )
    # Chance alone moves the Brier score by its standard error, and raises the calibration error of few
    # labels.
    chance = SIGNIFICANT_Z * (quality.brier_error or 0.0)
    if (
        quality.brier is not None
        and reference.brier
        and quality.brier > max(reference.brier * policy.log_loss_ratio, reference.brier + chance)
    ):
        found.append(f"Brier score {quality.brier:.3f} against {reference.brier:.3f}")
    if (
        quality.calibration_error is not None
        and reference.calibration_error is not None
        and quality.calibration_error - (quality.calibration_error_by_chance or 0.0)
        > reference.calibration_error + policy.auc_drop
    ):
        numbers = f"{quality.calibration_error:.3f} against {reference.calibration_error:.3f}"
        found.append(f"calibration error {numbers}")
    if quality.rmse is not None and reference.rmse and quality.rmse > reference.rmse * policy.log_loss_ratio:
        found.append(f"RMSE {quality.rmse:.4g} against {reference.rmse:.4g}")
    if found:
        return Verdict.DRIFT, " and ".join(found) + f" on {quality.labelled} labels"
    compared = (
        (quality.auc, reference.auc),
        (quality.log_loss, reference.log_loss),
        (quality.accuracy, reference.accuracy),
        (quality.rmse, reference.rmse),
        (quality.average_precision, reference.average_precision),
        (quality.brier, reference.brier),
        (quality.calibration_error, reference.calibration_error),
    )
    if all(mine is None or held_out is None for mine, held_out in compared):
        return Verdict.INSUFFICIENT, "the version has no held-out quality to compare with"
    return Verdict.NO_DRIFT, f"as good as on held-out rows, on {quality.labelled} labels"


def judge_labels(quality: Quality, reference: QualityReference, policy: MonitorPolicy) -> tuple[Verdict, str]:
    """Label drift of BINARY: the share of positives moved by at least the policy's effect, and by more than
    chance (binomial z >= SIGNIFICANT_Z)."""
    if quality.labelled < policy.min_labels:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    if quality.labels:
        return _judge_histogram(quality.labels, reference.labels, policy)
    if quality.label_mean is None:
        return Verdict.INSUFFICIENT, "no labels"
    if reference.label_mean is None:
        return Verdict.INSUFFICIENT, "no reference share of positives"
    shift = quality.label_mean - reference.label_mean
    spread = np.sqrt(max(reference.label_mean * (1 - reference.label_mean), 1e-12) / quality.labelled)
    numbers = f"share of positives {quality.label_mean:.3f} against {reference.label_mean:.3f}"
    if abs(shift) >= policy.label_shift and abs(shift) / spread >= SIGNIFICANT_Z:
        return Verdict.DRIFT, numbers
    return Verdict.NO_DRIFT, numbers


def _judge_histogram(
    labels: Sequence[int], reference: Sequence[int], policy: MonitorPolicy
) -> tuple[Verdict, str]:
    """Label drift of MULTICLASS and REGRESSION: the bias-corrected PSI of the labels against those of the
    first window, at least the policy's."""
    if len(reference) != len(labels):
        return Verdict.INSUFFICIENT, "no reference labels yet"
    value = float(
        psi.corrected(*psi.in_deciles(np.asarray(labels, np.int64), np.asarray(reference, np.int64)))
    )
    reason = f"PSI {value:.3f} of the labels against those of the first window"
    return (Verdict.DRIFT if value >= policy.psi_alert else Verdict.NO_DRIFT), reason
