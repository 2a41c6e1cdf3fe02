"""Named causes of bad data in one feature.

A cause concerns one feature: it keeps that feature out of the verdict on drift, and no other one.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.bins import FeatureBins, Special, bad_shares

FROZEN_SPREAD = 1e-4
"""A feature is frozen when its standard deviation is below this share of the reference's."""
FROZEN_CHANCE = 1e-9
"""… and if that many rows of the reference all lie in the bin of its values with a probability below this: a
flag that is rarely 1 is no frozen feature while it is 0. The only rule for categories."""
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
    found = bad_shares(bins, counts)
    expected = bins.reference_shares if against is None else bad_shares(bins, against)
    if found.malformed - expected.malformed > rate:
        return Cause.SCHEMA_CHANGE, f"{found.malformed:.0%} of values have another type than in the reference"
    if found.missing - expected.missing > rate:
        usual = f"{expected.missing:.0%} in the reference"
        return Cause.NULL_BURST, f"{found.missing:.0%} of values are missing or unusable, {usual}"
    if found.broken - expected.broken > rate:
        if bins.numeric:
            return Cause.UNIT_CHANGE, f"{found.broken:.0%} of values lie far outside the reference's range"
        new = f"{found.broken:.0%} of values are categories that the reference does not have"
        return Cause.NEW_CATEGORY, new
    constant = not bins.numeric or (moments is not None and moments[1] < FROZEN_SPREAD)
    if constant and _frozen(bins, counts, bins.reference_counts if against is None else against):
        return Cause.FROZEN_FEATURE, "all values are equal"
    if moments is None:
        return None
    mean_shift, spread = moments
    factor = _unit_factor(bins, mean_shift, spread)
    if factor is not None:
        return Cause.UNIT_CHANGE, f"all values are about {factor:.3g} times those of the reference"
    return None


def _frozen(bins: FeatureBins, counts: Ints, reference: Ints) -> bool:
    """Whether all finite values lie in one bin, or all rows with a category have the same, and chance does
    not explain it."""
    found, usual = _usable(bins, counts), _usable(bins, reference)
    if np.count_nonzero(found) != 1:
        return False
    share = float(usual[found > 0].sum() / max(1, usual.sum()))
    return share ** int(found.sum()) < FROZEN_CHANCE


def _usable(bins: FeatureBins, counts: Ints) -> Ints:
    """The counts of the bins of finite values, or of categories with those that the reference does not
    list."""
    first, last = (Special.BELOW, Special.FAR) if bins.numeric else (Special.UNSEEN, Special.UNSEEN)
    return np.concatenate([counts[: bins.regular], counts[bins.regular + first : bins.regular + last + 1]])


def _unit_factor(bins: FeatureBins, mean_shift: float, spread: float) -> float | None:
    """The factor by which mean and standard deviation changed; None unless both did, alike. A mean close to 0
    says nothing about the unit."""
    mean, stddev = bins.reference.mean, bins.reference.stddev
    if abs(mean) < stddev / 2:
        return None
    of_mean = (mean + mean_shift * stddev) / mean
    changed = spread >= UNIT_FACTOR or 0 < spread <= 1 / UNIT_FACTOR
    return spread if changed and abs(of_mean - spread) <= UNIT_TOLERANCE * spread else None
