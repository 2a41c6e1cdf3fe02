"""The drift of one feature from its columns: one, or the projections of a vector.

A vector differs as far as its most different projection. Its p-value is the smallest one times the number of
projections (Bonferroni), because they depend on one another. Its data is bad if that of at least half of its
projections is, for the same cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flywheel_common.arrays import Ints
from flywheel_monitor.drift.causes import Cause, cause_of
from flywheel_monitor.drift.statistics import FeatureDrift, measure_columns
from flywheel_monitor.windows.bins import FeatureBins
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.vectors import by_feature


class Columns(NamedTuple):
    """What is known of the columns of a window, by name: the counts [size]; the counts [B, size] of its
    blocks, which the design effect is estimated from; mean shifts; moments (`WindowCounts.moments`)."""

    counts: Mapping[str, Ints]
    blocks: Mapping[str, Ints]
    mean_shifts: Mapping[str, float]
    moments: Mapping[str, tuple[float, float]]


def columns_of(window: WindowCounts) -> Columns:
    """The columns of a window."""
    features = window.layout.features
    shifts = {f.name: window.mean_shift(f.name) for f in features}
    moments = {f.name: window.moments(f.name) for f in features}
    return Columns(
        {f.name: window.feature(f) for f in features},
        {f.name: window.feature_blocks(f) for f in features},
        {name: shift for name, shift in shifts.items() if shift is not None},
        {name: found for name, found in moments.items() if found is not None},
    )


def measure_features(
    features: Sequence[FeatureBins], window: Columns, earlier: Columns | None = None
) -> dict[str, tuple[FeatureDrift, float]]:
    """Feature → its statistics and its p-value before adjustment, against the training set or an earlier
    window."""
    names = [bins.name for bins in features]
    shifts = [_shift(name, window, earlier) for name in names]
    blocks = [window.blocks[name] for name in names] if window.blocks else None
    against = None if earlier is None else [earlier.blocks[name] for name in names]
    columns = measure_columns(features, [window.counts[name] for name in names], shifts, blocks, against)
    of_column = dict(zip(names, columns, strict=True))
    found = {}
    for name, bins in by_feature(features).items():
        measured = [of_column[one.name] for one in bins]
        found[name] = _largest(bins, measured) if bins[0].reference.vector else measured[0]
    return found


def _shift(name: str, window: Columns, earlier: Columns | None) -> float | None:
    shift = window.mean_shifts.get(name)
    if shift is None or earlier is None:
        return shift
    before = earlier.mean_shifts.get(name)
    return None if before is None else shift - before


def _largest(
    columns: Sequence[FeatureBins], measured: Sequence[tuple[FeatureDrift, float]]
) -> tuple[FeatureDrift, float]:
    found = [one for one, _ in measured]
    k = len(found)
    shifts = [abs(one.mean_shift) for one in found if one.mean_shift is not None]
    return FeatureDrift(
        feature=columns[0].reference.vector,
        psi=max(one.psi for one in found),
        psi_epsilon=max(one.psi_epsilon or 0.0 for one in found),
        psi_corrected=max(one.psi_corrected for one in found),
        ks=max(one.ks or 0.0 for one in found),
        ks_p_value=min(1.0, k * min(1.0 if one.ks_p_value is None else one.ks_p_value for one in found)),
        jensen_shannon=max(one.jensen_shannon for one in found),
        wasserstein=max((one.wasserstein for one in found if one.wasserstein is not None), default=None),
        effective_rows=min(one.effective_rows for one in found),
        null_rate=max(one.null_rate for one in found),
        reference_null_rate=max(one.reference_null_rate for one in found),
        unseen_rate=max(one.unseen_rate for one in found),
        reference_unseen_rate=max(one.reference_unseen_rate for one in found),
        projection_shift=max(shifts, default=None),
    ), min(1.0, k * min(p for _, p in measured))


def cause_of_feature(
    columns: Sequence[FeatureBins], window: Columns, rate: float, earlier: Columns | None = None
) -> tuple[Cause, str] | None:
    """What is wrong with the data of a feature, or None."""
    found = []
    for bins in columns:
        against = None if earlier is None else earlier.counts[bins.name]
        found.append(cause_of(bins, window.counts[bins.name], window.moments.get(bins.name), rate, against))
    bad = Counter(one[0] for one in found if one is not None)
    for cause, times in bad.most_common(1):
        if 2 * times >= len(columns):
            return next(one for one in found if one is not None and one[0] == cause)
    return None
