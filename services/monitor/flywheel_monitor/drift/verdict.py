"""The verdict on a window or a feature."""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """Numbers equal `DriftVerdict` of the API."""

    NO_DRIFT = 1
    WARNING = 2
    DRIFT = 3
    DATA_QUALITY = 4
    INSUFFICIENT = 5
