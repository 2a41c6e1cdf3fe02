"""Error rate and fallback rate."""

from __future__ import annotations

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.rows import Source


def error_rate(failures: int, predictions: int) -> float:
    """Share of predictions that the model should have made and did not: errors, and fallbacks with an
    error reason. 0 without predictions."""
    return failures / predictions if predictions else 0.0


def fallback_rate(sources: Ints, predictions: int) -> float:
    """Share of predictions that came from a fallback (CACHED or DEFAULT). `sources` counts predictions by
    `Source`; 0 without predictions."""
    return int(sources[Source.CACHED] + sources[Source.DEFAULT]) / predictions if predictions else 0.0
