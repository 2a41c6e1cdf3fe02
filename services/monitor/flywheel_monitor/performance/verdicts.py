"""Verdicts on labelled predictions: concept drift and label drift."""

from __future__ import annotations

import numpy as np

from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import QualityReference

SIGNIFICANT_Z = 3.0


def judge_concept(
    quality: Quality, reference: QualityReference, policy: MonitorPolicy
) -> tuple[Verdict, str]:
    """Concept drift: a lower AUC or a higher log-loss than on held-out rows."""
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
    if found:
        return Verdict.DRIFT, " and ".join(found) + f" on {quality.labelled} labels"
    if reference.auc is None and reference.log_loss is None:
        return Verdict.INSUFFICIENT, "the version has no held-out AUC or log-loss to compare with"
    return Verdict.NO_DRIFT, f"as good as on held-out rows, on {quality.labelled} labels"


def judge_labels(quality: Quality, reference: QualityReference, policy: MonitorPolicy) -> tuple[Verdict, str]:
    """Label drift: the share of positives moved by at least the policy's effect, and by more than chance
    (binomial z >= SIGNIFICANT_Z)."""
    if quality.labelled < policy.min_labels or quality.label_mean is None:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    if reference.label_mean is None:
        return Verdict.INSUFFICIENT, "no reference share of positives"
    shift = quality.label_mean - reference.label_mean
    spread = np.sqrt(max(reference.label_mean * (1 - reference.label_mean), 1e-12) / quality.labelled)
    numbers = f"share of positives {quality.label_mean:.3f} against {reference.label_mean:.3f}"
    if abs(shift) >= policy.label_shift and abs(shift) / spread >= SIGNIFICANT_Z:
        return Verdict.DRIFT, numbers
    return Verdict.NO_DRIFT, numbers
