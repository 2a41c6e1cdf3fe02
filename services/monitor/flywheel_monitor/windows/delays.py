"""Histogram of the delays of labels: the time from a prediction to its outcome, in event time."""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Floats, Ints

DELAY_BINS = 192
DELAY_EDGES_SECONDS = 1.1 ** np.arange(DELAY_BINS, dtype=np.float64)
"""Upper edge of each bin, in steps of 10 % from 1 s to 2.5 years. Shorter delays, and outcomes that are older
than their prediction, count in the first bin, longer ones in the last."""


def delay_bins(seconds: Floats) -> Ints:
    """[n] bin of each finite delay."""
    found = np.searchsorted(DELAY_EDGES_SECONDS, seconds, side="left")
    return np.minimum(found, DELAY_BINS - 1).astype(np.int64)
