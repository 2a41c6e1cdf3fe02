"""Drift of vectors, judged by their random projections.

Each projection is compared with that of the first window served: KS from the bins, and the bias-corrected PSI
over the deciles of the reference. The vectors drift as far as their most drifted projection, and the smallest
p-value is multiplied by the number of projections (Bonferroni), so that more of them give no more false
alarms. A small change that is significant is no drift: the largest PSI must reach the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import design_effect, ks, psi


@dataclass(frozen=True)
class ProjectionDrift:
    """The largest statistics over the projections; the p-value is adjusted for their number."""

    psi: float = 0.0
    ks: float = 0.0
    p_value: float = 1.0

    def drifted(self, fdr: float, psi_alert: float) -> bool:
        return self.p_value <= fdr and self.psi >= psi_alert


def projection_drift(blocks: Ints, reference: Ints) -> ProjectionDrift:
    """The drift of the counts [B, K, bins] of K projections in the blocks of a window against those of
    another window [K, bins]."""
    counts = blocks.sum(axis=0)
    n, m = (int(side[:1].sum()) for side in (counts, reference))
    if n == 0 or m == 0 or counts.shape != reference.shape:
        return ProjectionDrift()
    effect = design_effect.of_order(blocks)
    pairs = [psi.in_deciles(counts[k], reference[k]) for k in range(len(counts))]
    value = max(float(psi.corrected(*pair, of)) for pair, of in zip(pairs, effect, strict=True))
    statistics = ks.ks_statistic(counts, reference)
    p_values = ks.ks_p_value(statistics, n / effect, m)
    return ProjectionDrift(value, float(statistics.max()), min(1.0, len(p_values) * float(p_values.min())))
