"""Why a window drifted: features by importance × drift, bins that moved, segments that contribute.

The drift of a feature is its bias-corrected PSI (`drift.psi`), its importance the share that the version's
metrics give it. Bins and segments divide the PSI without the correction and without pooled bins, exactly:

    psi = Σ_b (p_b - q_b) ln(p_b / q_b)                            over the bins b,
        = Σ_s w_s Σ_b (p_sb - q_b) ln(p_b / q_b)                   over the segments s,

because p_b - q_b = Σ_s w_s (p_sb - q_b): q is the reference's share, which has no segments, p the window's,
p_sb that of segment s, and w_s its share of the rows. The prior of the window's shares, 0.5 rows per
bin, is divided among the segments by w_s, so that the identity holds for the smoothed shares too. The part of
a segment is below 0 if it moves the shares back to the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.drift import psi
from flywheel_monitor.drift.distribution import coarse_edges
from flywheel_monitor.drift.statistics import measure
from flywheel_monitor.windows.bins import FeatureBins

SHOWN = 5
"""Bins and segments of a feature that are listed."""
IMPORTANCE = "importance{{feature={}}}"
"""Metric of a version with the importance of a feature: how much the loss on held-out rows increases when the
values of the feature are permuted."""


@dataclass(frozen=True)
class MovedBin:
    """A bin of the PSI with its term. A category, or the values in (above, up_to]; None is unbounded."""

    category: str
    above: float | None
    up_to: float | None
    reference_share: float
    observed_share: float
    psi_term: float


@dataclass(frozen=True)
class SegmentPart:
    """A segment's share of the rows and its part of the PSI; "" is the rest of the rows."""

    segment: str
    row_share: float
    psi_part: float


@dataclass(frozen=True)
class FeatureExplanation:
    """See `FeatureExplanation` of the API."""

    feature: str
    importance: float
    drift: float
    psi: float
    bins: tuple[MovedBin, ...]
    segments: tuple[SegmentPart, ...]
    null_rate: float
    reference_null_rate: float
    unseen_rate: float
    reference_unseen_rate: float

    @property
    def impact(self) -> float:
        return self.importance * self.drift


def importances(metrics: Mapping[str, float], features: Sequence[str]) -> tuple[dict[str, float], bool]:
    """The importance of each feature, and whether the metrics have any above 0. An importance is the
    feature's share of the sum over all inputs of the model; what is below 0 counts as 0. Without any, all
    features have an equal one."""
    prefix = IMPORTANCE.format("").removesuffix("}")
    total = sum(max(0.0, value) for name, value in metrics.items() if name.startswith(prefix))
    if not total > 0:
        return dict.fromkeys(features, 1 / max(1, len(features))), False
    return {name: max(0.0, metrics.get(IMPORTANCE.format(name), 0.0)) / total for name in features}, True


def explain_feature(
    bins: FeatureBins,
    counts: Ints,
    blocks: Ints,
    segments: Mapping[str, Ints],
    importance: float,
) -> FeatureExplanation:
    """`counts` [size] of the window, `blocks` [B, size] of its parts (`features.measure`), and the counts
    [size] of its segments; what they leave of the window is the segment ""."""
    measured, _ = measure(bins, counts, None, blocks)
    window, reference = psi.coarse(bins, counts), psi.coarse(bins, bins.reference_counts)
    logs, terms = _terms(window, reference)
    return FeatureExplanation(
        feature=bins.name,
        importance=importance,
        drift=measured.psi_corrected,
        psi=float(terms.sum()),
        bins=_moved(bins, window, reference, terms),
        segments=_parts(window, reference, logs, {s: psi.coarse(bins, c) for s, c in segments.items()}),
        null_rate=measured.null_rate,
        reference_null_rate=measured.reference_null_rate,
        unseen_rate=measured.unseen_rate,
        reference_unseen_rate=measured.reference_unseen_rate,
    )


def by_impact(found: Sequence[FeatureExplanation]) -> list[FeatureExplanation]:
    """The largest impact first, then the largest drift."""
    return sorted(found, key=lambda one: (-one.impact, -one.drift, one.feature))


def _terms(window: Ints, reference: Ints) -> tuple[Floats, Floats]:
    """[B] ln(p / q) and (p - q) ln(p / q); 0 where both sides are empty, and if either side has no rows."""
    logs, terms = np.zeros(len(window)), np.zeros(len(window))
    if window.any() and reference.any():
        _, p, q = psi.shares(window, reference)
        logs = np.log(p / q)
        terms = (p - q) * logs
    return logs, terms


def _moved(bins: FeatureBins, window: Ints, reference: Ints, terms: Floats) -> tuple[MovedBin, ...]:
    order = [i for i in np.argsort(-terms, kind="stable")[:SHOWN].tolist() if terms[i] > 0]
    before, after = reference / max(1, int(reference.sum())), window / max(1, int(window.sum()))
    ends = (None, *coarse_edges(bins), None) if bins.numeric else ()
    return tuple(
        MovedBin(
            category="" if bins.numeric else bins.reference.categories[i],
            above=ends[i] if ends else None,
            up_to=ends[i + 1] if ends else None,
            reference_share=float(before[i]),
            observed_share=float(after[i]),
            psi_term=float(terms[i]),
        )
        for i in order
    )


def _parts(
    window: Ints, reference: Ints, logs: Floats, segments: Mapping[str, Ints]
) -> tuple[SegmentPart, ...]:
    """The parts of the segments with rows, the largest absolute part first."""
    rows = int(window.sum())
    if not segments or not rows or not reference.any():
        return ()
    rest = window - sum(segments.values())
    used, _, q = psi.shares(window, reference)
    prior, whole = psi.PRIOR, rows + psi.PRIOR * int(used.sum())
    found = []
    for name, counts in {**segments, "": rest}.items():
        weight = int(counts.sum()) / rows
        if weight > 0:
            # weight × share of the segment in each bin
            shares = (counts[used] + prior * weight) / whole
            found.append(SegmentPart(name, weight, float(np.sum((shares - weight * q[used]) * logs[used]))))
    return tuple(sorted(found, key=lambda part: (-abs(part.psi_part), part.segment))[:SHOWN])
