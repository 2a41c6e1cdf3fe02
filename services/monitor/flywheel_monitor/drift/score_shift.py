"""Prediction drift: the shift of the mean score against the reference.

The effect is (mean - reference mean) / reference stddev; z is the difference over its standard error. The
verdict depends on the effect, because z grows with the traffic; z only rules out chance. The mean of scores
in [0, 1] rarely moves by two standard deviations, so that the PSI of the scores, less its expectation,
decides too, for VECTOR outputs also their random projections (`drift.projections`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import psi
from flywheel_monitor.drift.projections import ProjectionDrift, projection_drift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.reference import ScoreReference

SIGNIFICANT_Z = 3.0


@dataclass(frozen=True)
class ScoreShift:
    """Scores of a window against their reference; see `DriftReport` of the API."""

    mean: float = 0.0
    stddev: float = 0.0
    reference_mean: float = 0.0
    reference_stddev: float = 0.0
    shift: float = 0.0
    z: float = 0.0
    psi: float = 0.0
    verdict: Verdict = Verdict.INSUFFICIENT
    reason: str = ""
    projections: ProjectionDrift | None = None


def score_shift(
    mean: float,
    stddev: float,
    count: int,
    counts: Ints,
    reference: ScoreReference | None,
    policy: MonitorPolicy,
    *,
    effect: float = 1.0,
    reference_effect: float = 1.0,
    classes: Ints | None = None,
    projections: Ints | None = None,
) -> ScoreShift:
    """The shift of `count` scores with these moments and histogram, and of the rows by predicted class and by
    the projections of a vector, in the blocks of the window. `effect` is the design effect of the scores,
    `reference_effect` that of the reference."""
    if reference is None:
        return ScoreShift(mean, stddev, verdict=Verdict.INSUFFICIENT, reason="no reference scores yet")
    found: dict[str, Any] = {
        "mean": mean,
        "stddev": stddev,
        "reference_mean": reference.mean,
        "reference_stddev": reference.stddev,
    }
    if count == 0 or not reference.stddev > 0:
        return ScoreShift(**found, verdict=Verdict.INSUFFICIENT, reason="no scores to compare")
    shift = (mean - reference.mean) / reference.stddev
    variance = stddev**2 * effect / count + (
        reference.stddev**2 * reference_effect / reference.count if reference.count else 0.0
    )
    z = (
        (mean - reference.mean) / math.sqrt(variance)
        if variance > 0
        else math.copysign(math.inf, shift)
        if shift
        else 0.0
    )
    known = len(reference.counts) == len(counts)
    grouped = psi.in_deciles(counts, np.asarray(reference.counts, np.int64)) if known else None
    value = float(psi.psi(*grouped)) if grouped is not None else 0.0
    moved = float(psi.corrected(*grouped, effect, reference_effect)) if grouped is not None else 0.0
    vectors = _of_vectors(projections, reference)
    if count < policy.min_predictions:
        verdict, reason = Verdict.INSUFFICIENT, f"{count} scores, {policy.min_predictions} needed"
    elif abs(shift) >= policy.score_shift and abs(z) >= SIGNIFICANT_Z:
        verdict = Verdict.DRIFT
        reason = f"mean score {mean:.4f} is {shift:+.2f} sigma from {reference.mean:.4f} (z {z:+.1f})"
    elif moved >= policy.psi_alert:
        verdict = Verdict.DRIFT
        reason = f"PSI of the scores {moved:.3f}: at least {policy.psi_alert:g}; mean {shift:+.2f} sigma"
    elif (changed := _class_psi(classes, reference, effect)) >= policy.psi_alert:
        verdict, reason = Verdict.DRIFT, f"PSI {changed:.3f} of the predicted classes"
    elif vectors is not None and vectors.drifted(policy.fdr, policy.psi_alert):
        verdict = Verdict.DRIFT
        numbers = f"PSI {vectors.psi:.3f}, KS {vectors.ks:.3f}, p {vectors.p_value:.3g}"
        reason = f"the vectors drifted along one of their projections: {numbers}"
    else:
        verdict = Verdict.NO_DRIFT
        reason = f"mean score {mean:.4f}, {shift:+.2f} sigma from the reference"
    return ScoreShift(
        **found, shift=shift, z=z, psi=value, projections=vectors, verdict=verdict, reason=reason
    )


def _of_vectors(blocks: Ints | None, reference: ScoreReference) -> ProjectionDrift | None:
    if blocks is None or not blocks.shape[1] or not reference.projections:
        return None
    return projection_drift(blocks, np.asarray(reference.projections, np.int64))


def _class_psi(classes: Ints | None, reference: ScoreReference, effect: float) -> float:
    if classes is None or not len(classes) or len(reference.classes) != len(classes):
        return 0.0
    return float(psi.corrected(classes, np.asarray(reference.classes, np.int64), effect))


def score_shift_from_json(stored: Mapping[str, Any]) -> ScoreShift:
    vectors = stored.get("projections")
    return ScoreShift(
        **{
            **stored,
            "projections": None if vectors is None else ProjectionDrift(**vectors),
            "verdict": Verdict(stored["verdict"]),
        }
    )
