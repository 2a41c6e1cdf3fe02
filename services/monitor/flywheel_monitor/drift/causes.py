"""Named causes of bad data in one feature.

A cause concerns one feature: it keeps that feature out of the verdict on drift, and no other one.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.bins import FeatureBins, Special, broken_rate, null_rate

FROZEN_SPREAD = 1e-4
"""A feature is frozen when its standard deviation is below this share of the reference's."""
UNIT_FACTOR = 3.0
"""A unit changed when mean and standard deviation both grew or shrank by this factor at least …"""
UNIT_TOLERANCE = 0.2
"""… and by the same factor, to this relative difference."""


class Cause(StrEnum):
    """What is wrong with a feature or, CLOCK_JUMP, with the times of a window."""

    NULL_BURST = "NULL_BURST"
    SCHEMA_CHANGE = "SCHEMA_CHANGE"
    NEW_CATEGORY = "NEW_CATEGORY"
    UNIT_CHANGE = "UNIT_CHANGE"
    FROZEN_FEATURE = "FROZEN_FEATURE"
    CLOCK_JUMP = "CLOCK_JUMP"


def cause_of(
    bins: FeatureBins,
    counts: Ints,
    moments: tuple[float, float] | None,
    rate: float,
    against: Ints | None = None,
) -> tuple[Cause, str] | None:
    """The cause and why, or None for good data. `moments`: the mean's shift and the standard deviation, both
    in reference standard deviations (`WindowCounts.moments`). `rate` is the share of rows that is bad
    data. `against`: the counts [size] whose shares are the reference's, None: those of the training set."""
    reference = bins.reference_counts if against is None else against
    malformed = _malformed_rate(bins, counts)
    if malformed - _malformed_rate(bins, reference) > rate:
        return Cause.SCHEMA_CHANGE, f"{malformed:.0%} of values have another type than in the reference"
    missing = null_rate(bins, counts)
    if missing - null_rate(bins, reference) > rate:
        expected = f"{null_rate(bins, reference):.0%} in the reference"
        return Cause.NULL_BURST, f"{missing:.0%} of values are missing or unusable, {expected}"
    broken = broken_rate(bins, counts)
    if broken - broken_rate(bins, reference) > rate:
        if bins.numeric:
            return Cause.UNIT_CHANGE, f"{broken:.0%} of values lie far outside the reference's range"
        return Cause.NEW_CATEGORY, f"{broken:.0%} of values are categories that the reference does not have"
    if moments is None:
        return None
    mean_shift, spread = moments
    finite = np.concatenate([counts[: bins.regular], counts[bins.regular + Special.BELOW :][:3]])
    if spread < FROZEN_SPREAD and np.count_nonzero(finite) == 1:
        return Cause.FROZEN_FEATURE, "all values are equal"
    factor = _unit_factor(bins, mean_shift, spread)
    if factor is not None:
        return Cause.UNIT_CHANGE, f"all values are about {factor:.3g} times those of the reference"
    return None


def _malformed_rate(bins: FeatureBins, counts: Ints) -> float:
    return int(counts[bins.regular + Special.MALFORMED]) / max(1, int(counts.sum()))


def _unit_factor(bins: FeatureBins, mean_shift: float, spread: float) -> float | None:
    """The factor by which mean and standard deviation changed; None unless both did, alike. A mean close to 0
    says nothing about the unit."""
    mean, stddev = bins.reference.mean, bins.reference.stddev
    if abs(mean) < stddev / 2:
        return None
    of_mean = (mean + mean_shift * stddev) / mean
    changed = spread >= UNIT_FACTOR or spread <= 1 / UNIT_FACTOR
    return spread if changed and abs(of_mean / spread - 1) <= UNIT_TOLERANCE else None
