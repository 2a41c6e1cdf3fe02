"""Alerts as a pure state machine: OPEN → ACKNOWLEDGED → RESOLVED, at most one unresolved per (model version, kind).

The verdicts of the last windows decide: k drifted among m open it (so one odd window wakes nobody), m clean ones in a row
resolve it (so that it does not flap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from flywheel_monitor.drift import Verdict
from flywheel_monitor.policy import MonitorPolicy


class AlertState(IntEnum):
    """Numbers equal `AlertState` of the API."""

    OPEN = 1
    ACKNOWLEDGED = 2
    RESOLVED = 3


class Kind(StrEnum):
    DATA_DRIFT = "DATA_DRIFT"
    DATA_QUALITY = "DATA_QUALITY"
    PREDICTION_DRIFT = "PREDICTION_DRIFT"
    LABEL_DRIFT = "LABEL_DRIFT"
    CONCEPT_DRIFT = "CONCEPT_DRIFT"


FEATURE_KINDS = (Kind.DATA_DRIFT, Kind.DATA_QUALITY, Kind.PREDICTION_DRIFT)
"""Judged when a window closes."""
LABEL_KINDS = (Kind.LABEL_DRIFT, Kind.CONCEPT_DRIFT)
"""Judged when the lateness of labels has passed."""


@dataclass(frozen=True)
class Step:
    """What a window's verdict does. `announce`: the drift is major and goes out as `drift.detected`."""

    open: bool = False
    confirm: bool = False
    resolve: bool = False
    announce: bool = False


def step(unresolved: bool, recent: Sequence[Verdict], policy: MonitorPolicy) -> Step:
    """`recent`: verdicts of this kind, newest first, the judged window being the first of them."""
    if not recent or recent[0] == Verdict.INSUFFICIENT:
        return Step()
    judged = [v for v in recent if v != Verdict.INSUFFICIENT][: policy.m_windows]
    moved = [v for v in judged if v != Verdict.NO_DRIFT]
    major = [v for v in judged if v in (Verdict.DRIFT, Verdict.DATA_QUALITY)]
    now_moved = judged[0] != Verdict.NO_DRIFT
    alarming = now_moved and len(moved) >= policy.k_of
    announce = judged[0] in (Verdict.DRIFT, Verdict.DATA_QUALITY) and len(major) >= policy.k_of
    if not unresolved:
        return Step(open=alarming, announce=announce)
    clean = len(judged) == policy.m_windows and not moved
    return Step(confirm=now_moved, resolve=clean, announce=announce)
