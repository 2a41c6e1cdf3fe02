"""Exact sums of fixed-point numbers, wider than 64 bits.

A sum is LIMBS integers of 40 bits, the last one signed with 64: value = Σ limb_k 2^(40 k) / SCALE. The
largest term, 2^164 (`output.LARGEST_SCORE`), fits 2^26 times; one more is an OverflowError, no wrong number.
One transaction adds at most 2^23 terms. Integers add exactly, so that any order gives the same bits.
"""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Floats, Ints

LIMBS = 5
LIMB_BITS = 40
SCALE = 2.0**32


def limbs_of(values: Floats) -> list[Ints]:
    """Numbers as signed limbs, the lowest first, without the highest ones that are all zero."""
    magnitude = np.abs(np.rint(values * SCALE))
    sign = np.where(values < 0, -1, 1)
    found = []
    while (largest := magnitude.max(initial=0.0)) > 0:
        high = np.floor(magnitude / 2.0**LIMB_BITS) if largest >= 2.0**LIMB_BITS else np.zeros_like(magnitude)
        found.append((magnitude - high * 2.0**LIMB_BITS).astype(np.int64) * sign)
        magnitude = high
    if len(found) > LIMBS:
        raise OverflowError("a term of a sum has more than 200 bits")
    return found


EXACT_ROWS = 4096
"""Rows over which a float64 adds limbs of 40 bits exactly: 2^12 · 2^40 < 2^53."""


def exact_terms(values: Floats) -> Floats | None:
    """Numbers as their lowest signed limbs, in floats of which at most EXACT_ROWS add up exactly; None if a
    number has a higher limb."""
    terms: Floats = np.multiply(values, SCALE)
    np.rint(terms, out=terms)
    largest = max(terms.max(initial=0.0), -terms.min(initial=0.0))
    return terms if largest < 2.0**LIMB_BITS else None


def carried(sums: Ints) -> Ints:
    """[..., LIMBS] in canonical form: all limbs but the last in [0, 2^40). Raises OverflowError before a sum
    loses bits."""
    found = sums.copy()
    for k in range(LIMBS - 1):
        found[..., k + 1] += found[..., k] >> LIMB_BITS
        found[..., k] &= (1 << LIMB_BITS) - 1
    if (np.abs(found[..., -1]) >> 62).any():
        raise OverflowError("a sum of the window has more than 222 bits")
    return found


def values(sums: Ints) -> list[float]:
    """The numbers that sums [n, LIMBS] stand for, correctly rounded."""
    scale = int(SCALE)
    return [sum(limb << LIMB_BITS * k for k, limb in enumerate(limbs)) / scale for limbs in sums.tolist()]
