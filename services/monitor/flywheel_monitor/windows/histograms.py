"""Histograms of scores and latencies: bins, calibration bins and quantiles."""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_common.probability import CALIBRATION_BINS

SCORE_BINS = 200
"""Equal-width bins of [0, 1], right-open but for the last; a multiple of CALIBRATION_BINS."""
LATENCY_BINS = 128
LATENCY_LOWEST_MS = 0.1
LATENCY_GROWTH = 1.1
LATENCY_EDGES_MS = LATENCY_LOWEST_MS * LATENCY_GROWTH ** np.arange(LATENCY_BINS, dtype=np.float64)
"""Upper edge of each latency bin, in steps of 10 % up to 16 s."""


def score_bins(scores: Floats) -> Ints:
    """[n] bin of each finite score; scores outside [0, 1] count in the outermost bins."""
    return np.clip(np.floor(scores * SCORE_BINS), 0, SCORE_BINS - 1).astype(np.int64)


def calibration_bins(score_bins: Ints) -> Ints:
    """[n] calibration bin of each score bin."""
    return score_bins // (SCORE_BINS // CALIBRATION_BINS)


def latency_bins(milliseconds: Floats) -> Ints:
    """[n] bin of each latency."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.ceil(np.log(np.maximum(milliseconds, 1e-9) / LATENCY_LOWEST_MS) / np.log(LATENCY_GROWTH))
    return np.clip(np.nan_to_num(exact, nan=0.0), 0, LATENCY_BINS - 1).astype(np.int64)


def quantile(values: Floats, counts: Ints, q: float) -> float:
    """The smallest value that a share of at least q of the rows does not exceed; 0 without rows. `counts`
    [n] is the number of rows at each of the [n] rising `values`: bins with their upper edges, or sorted
    rows that count once."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    at = int(np.searchsorted(np.cumsum(counts), np.ceil(q * total)))
    return float(values[min(at, len(values) - 1)])
