"""Verdicts on labelled predictions: concept drift and label drift."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flywheel_monitor.drift import psi
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.performance.standard_errors import (
    auc_error_at,
    average_precision_error,
    share_error,
)
from flywheel_monitor.references.reference import QualityReference

SIGNIFICANT_Z = 3.0
"""A difference within so many of its standard errors is chance."""


class _Compared(NamedTuple):
    """A figure and the one on held-out rows. It is worse if it lies beyond the limit, by more than chance."""

    name: str
    value: float | None
    held_out: float | None
    limit: float
    error: float | None
    """Standard error of the value for independent rows; None: unknown, nothing is said about the figure."""
    higher_is_better: bool = False
    by_chance: float = 0.0
    """What chance adds to the value."""
    form: str = ".3f"

    @property
    def known(self) -> bool:
        return self.value is not None and self.held_out is not None

    def worse(self, chance: float) -> str:
        """What is worse, "" if nothing is. `chance`: standard errors that chance may explain."""
        if self.value is None or self.held_out is None or self.error is None:
            return ""
        sign = -1.0 if self.higher_is_better else 1.0
        excess = sign * (self.value - self.by_chance - self.held_out)
        if not excess > max(sign * (self.limit - self.held_out), chance * self.error):
            return ""
        return f"{self.name} {self.value:{self.form}} against {self.held_out:{self.form}}"


def judge_concept(
    quality: Quality, reference: QualityReference, policy: MonitorPolicy
) -> tuple[Verdict, str]:
    """Concept drift: a lower AUC, average precision or accuracy, or a higher log-loss, Brier score,
    calibration error or RMSE, than on held-out rows, by more than the policy allows and by more than
    SIGNIFICANT_Z standard errors of the difference.

    The standard errors are those of `effective_labels` independent rows; the held-out figure has the same
    variance per row. AUC, average precision and accuracy have at least the standard error that they would
    have if nothing had changed."""
    if quality.labelled < policy.min_labels:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    compared = _compared(quality, reference, policy)
    if not any(one.known for one in compared):
        return Verdict.INSUFFICIENT, "the version has no held-out quality to compare with"
    chance = SIGNIFICANT_Z * math.sqrt(_inflation(quality, reference))
    found = [text for one in compared if (text := one.worse(chance))]
    if found:
        return Verdict.DRIFT, " and ".join(found) + f" on {quality.labelled} labels"
    return Verdict.NO_DRIFT, f"as good as on held-out rows, on {quality.labelled} labels"


def _compared(quality: Quality, reference: QualityReference, policy: MonitorPolicy) -> list[_Compared]:
    n, drop, ratio = quality.labelled, policy.auc_drop, policy.log_loss_ratio
    positives = n * (quality.label_mean or 0.0)

    def lower(name: str, value: float | None, held_out: float | None, *errors: float | None) -> _Compared:
        error = None if None in errors else max(e for e in errors if e is not None)
        return _Compared(name, value, held_out, (held_out or 0.0) - drop, error, higher_is_better=True)

    def higher(name: str, value: float | None, held_out: float | None, error: float | None) -> _Compared:
        # A held-out loss of 0 has no ratio.
        return _Compared(name, value, held_out or None, (held_out or 0.0) * ratio, error)

    auc, precision, accuracy = reference.auc, reference.average_precision, reference.accuracy
    return [
        lower(
            "AUC",
            quality.auc,
            auc,
            quality.auc_error,
            None if auc is None else auc_error_at(auc, positives, n - positives),
        ),
        higher("log-loss", quality.log_loss, reference.log_loss, quality.log_loss_error),
        lower(
            "accuracy",
            quality.accuracy,
            accuracy,
            quality.accuracy_error,
            None if accuracy is None else share_error(accuracy, n),
        ),
        lower(
            "average precision",
            quality.average_precision,
            precision,
            quality.average_precision_error,
            None if precision is None or not positives else average_precision_error(precision, positives),
        ),
        higher("Brier score", quality.brier, reference.brier, quality.brier_error),
        _Compared(
            "calibration error",
            quality.calibration_error,
            reference.calibration_error,
            (reference.calibration_error or 0.0) + drop,
            quality.calibration_error_error,
            by_chance=quality.calibration_error_by_chance or 0.0,
        ),
        higher("RMSE", quality.rmse, reference.rmse, quality.rmse_error)._replace(form=".4g"),
    ]


def _inflation(quality: Quality, reference: QualityReference) -> float:
    """Variance of the difference over the variance of the window's figure for independent rows."""
    n = quality.labelled
    return n / (quality.effective_labels or n) + (n / reference.rows if reference.rows else 0.0)


def judge_labels(quality: Quality, reference: QualityReference, policy: MonitorPolicy) -> tuple[Verdict, str]:
    """Label drift of BINARY: the share of positives moved by at least the policy's effect, and by more than
    chance (binomial z >= SIGNIFICANT_Z, of `effective_labels` rows)."""
    if quality.labelled < policy.min_labels:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    if quality.labels:
        return _judge_histogram(quality, reference, policy)
    if quality.label_mean is None:
        return Verdict.INSUFFICIENT, "no labels"
    if reference.label_mean is None:
        return Verdict.INSUFFICIENT, "no reference share of positives"
    shift = quality.label_mean - reference.label_mean
    independent = max(share_error(reference.label_mean, quality.labelled), 1e-9)
    spread = independent * math.sqrt(_inflation(quality, reference))
    numbers = f"share of positives {quality.label_mean:.3f} against {reference.label_mean:.3f}"
    if abs(shift) >= policy.label_shift and abs(shift) / spread >= SIGNIFICANT_Z:
        return Verdict.DRIFT, numbers
    return Verdict.NO_DRIFT, numbers


def _judge_histogram(
    quality: Quality, reference: QualityReference, policy: MonitorPolicy
) -> tuple[Verdict, str]:
    """Label drift of MULTICLASS and REGRESSION: the bias-corrected PSI of the labels against those of the
    first window, at least the policy's."""
    if len(reference.labels) != len(quality.labels):
        return Verdict.INSUFFICIENT, "no reference labels yet"
    mine, first = np.asarray(quality.labels, np.int64), np.asarray(reference.labels, np.int64)
    effect = quality.labelled / (quality.effective_labels or quality.labelled)
    value = float(psi.corrected(*psi.in_deciles(mine, first), effect))
    reason = f"PSI {value:.3f} of the labels against those of the first window"
    return (Verdict.DRIFT if value >= policy.psi_alert else Verdict.NO_DRIFT), reason
