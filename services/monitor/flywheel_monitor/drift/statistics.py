"""The statistics of one column of a window against its reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import chi_square as chi2
from flywheel_monitor.drift import design_effect, distances, ks, psi
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.windows.bins import FeatureBins, Special, null_rate, unseen_rate


@dataclass(frozen=True)
class FeatureDrift:
    """Statistics and verdict of one feature of one window; see `FeatureDrift` of the API."""

    feature: str
    psi: float = 0.0
    psi_corrected: float = 0.0
    ks: float | None = None
    ks_p_value: float | None = None
    chi_square: float | None = None
    chi_square_degrees: int = 0
    chi_square_p_value: float | None = None
    cramers_v: float | None = None
    jensen_shannon: float = 0.0
    wasserstein: float | None = None
    effective_rows: float = 0.0
    adjusted_p_value: float = 1.0
    mean_shift: float | None = None
    null_rate: float = 0.0
    reference_null_rate: float = 0.0
    unseen_rate: float = 0.0
    reference_unseen_rate: float = 0.0
    verdict: Verdict = Verdict.NO_DRIFT
    reason: str = ""
    cause: str = ""
    silenced: bool = False
    projection_shift: float | None = None
    mean_shift_z: float | None = None
    psi_epsilon: float | None = None


def measure(
    bins: FeatureBins,
    counts: Ints,
    mean_shift: float | None,
    blocks: Ints | None = None,
    reference_blocks: Ints | None = None,
) -> tuple[FeatureDrift, float]:
    """The statistics of one feature and its p-value before adjustment.

    Numeric: KS of the finite values and chi-square of present against missing and out of range, the
    smaller p doubled (Bonferroni), so that a null burst is as significant as a shift. Categorical:
    chi-square over all bins. `blocks` [B, size]: the counts of consecutive parts of the window, from which
    the design effect is estimated; None: rows are independent. `reference_blocks` are those of another
    window, which the counts are compared with in place of the training set."""
    reference = bins.reference_counts if reference_blocks is None else reference_blocks.sum(axis=0)
    against = reference_blocks
    window_coarse, reference_coarse = psi.coarse(bins, counts), psi.coarse(bins, reference)
    found = FeatureDrift(
        feature=bins.name,
        psi=psi.psi(window_coarse, reference_coarse),
        psi_epsilon=psi.psi(window_coarse, reference_coarse, psi.Smoothing.EPSILON),
        jensen_shannon=distances.jensen_shannon(window_coarse, reference_coarse),
        null_rate=null_rate(bins, counts),
        reference_null_rate=null_rate(bins, reference),
        unseen_rate=unseen_rate(bins, counts),
        reference_unseen_rate=unseen_rate(bins, reference),
    )
    if not bins.numeric:
        effect, other = (1.0 if b is None else design_effect.of_shares(b) for b in (blocks, against))
        test = chi2.chi_square(*chi2.pooled(counts, reference), effect, other)
        found = replace(
            found,
            psi_corrected=psi.corrected(window_coarse, reference_coarse, effect, other),
            chi_square=test.statistic,
            chi_square_degrees=test.degrees,
            chi_square_p_value=test.p_value,
            cramers_v=test.cramers_v,
            effective_rows=counts.sum() / effect,
        )
        return found, test.p_value
    a, b = ks.ordered(bins, counts), ks.ordered(bins, reference)
    effect, other = (
        1.0 if rows is None else design_effect.of_order(ks.ordered(bins, rows)) for rows in (blocks, against)
    )
    statistic = ks.ks_statistic(a, b)
    ks_p = ks.ks_p_value(statistic, float(a.sum()) / effect, float(b.sum()) / other)
    kind_effects = (
        1.0 if rows is None else design_effect.of_shares(_kinds(bins, rows)) for rows in (blocks, against)
    )
    kinds = chi2.chi_square(*chi2.pooled(_kinds(bins, counts), _kinds(bins, reference)), *kind_effects)
    spread = bins.reference.stddev
    found = replace(
        found,
        psi_corrected=psi.corrected(window_coarse, reference_coarse, effect, other),
        ks=statistic,
        ks_p_value=ks_p,
        wasserstein=distances.wasserstein(a, b, bins.positions) / spread if spread > 0 else None,
        mean_shift=mean_shift,
        mean_shift_z=_mean_z(mean_shift, float(a.sum()) / effect, float(b.sum()) / other),
        effective_rows=float(counts.sum()) / effect,
    )
    return found, min(1.0, 2 * min(ks_p, kinds.p_value))


def _mean_z(mean_shift: float | None, n: float, m: float) -> float | None:
    """The shift of the mean over its standard error without drift, when both sides have the standard
    deviation of the reference."""
    if mean_shift is None or not (n > 0 and m > 0):
        return None
    return mean_shift / math.sqrt(1 / n + 1 / m)


def _kinds(bins: FeatureBins, counts: Ints) -> Ints:
    """Rows that are [present, missing, far] in the last axis. The KS test covers finite values only and does
    not see these shares."""
    s = counts[..., bins.regular :]
    missing = s[..., Special.NULL] + s[..., Special.NON_FINITE] + s[..., Special.MALFORMED]
    far = s[..., Special.FAR]
    return np.stack([counts.sum(axis=-1) - missing - far, missing, far], axis=-1)
