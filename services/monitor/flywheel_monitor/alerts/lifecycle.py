"""The lifecycle of alerts as a pure state machine: OPEN → ACKNOWLEDGED → RESOLVED, at most one unresolved
alert per (model version, kind).

The verdicts of the last `m_windows` windows decide. An alert opens when the newest window drifted and at
least `k_of` of these windows did, so that one odd window opens none. It is resolved after `m_windows` windows
in a row without drift, so that it does not flap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy


class AlertState(IntEnum):
    """Numbers equal `AlertState` of the API."""

    OPEN = 1
    ACKNOWLEDGED = 2
    RESOLVED = 3


class Kind(StrEnum):
    """What an alert is about."""

    DATA_DRIFT = "DATA_DRIFT"
    DATA_QUALITY = "DATA_QUALITY"
    PREDICTION_DRIFT = "PREDICTION_DRIFT"
    LABEL_DRIFT = "LABEL_DRIFT"
    CONCEPT_DRIFT = "CONCEPT_DRIFT"


FEATURE_KINDS = (Kind.DATA_DRIFT, Kind.DATA_QUALITY, Kind.PREDICTION_DRIFT)
"""Judged when a window closes."""
LABEL_KINDS = (Kind.LABEL_DRIFT, Kind.CONCEPT_DRIFT)
"""Judged when the lateness of labels has passed."""
MAJOR = (Verdict.DRIFT, Verdict.DATA_QUALITY)
"""Verdicts that are published as `drift.detected`."""


@dataclass(frozen=True)
class AlertActions:
    """What the verdict on a window does. `announce`: the drift is major and is published as
    `drift.detected`."""

    open: bool = False
    confirm: bool = False
    resolve: bool = False
    announce: bool = False


def alert_actions(unresolved: bool, recent: Sequence[Verdict], policy: MonitorPolicy) -> AlertActions:
    """What follows from the newest verdict of a kind. `unresolved`: such an alert exists. `recent`: the
    verdicts of this kind, newest first, beginning with the window that was just judged; windows with too
    few rows are skipped."""
    if not recent or recent[0] == Verdict.INSUFFICIENT:
        return AlertActions()
    judged = [v for v in recent if v != Verdict.INSUFFICIENT][: policy.m_windows]
    drifted = sum(v != Verdict.NO_DRIFT for v in judged)
    now_drifted = judged[0] != Verdict.NO_DRIFT
    announce = judged[0] in MAJOR and sum(v in MAJOR for v in judged) >= policy.k_of
    if not unresolved:
        return AlertActions(open=now_drifted and drifted >= policy.k_of, announce=announce)
    clean = len(judged) == policy.m_windows and not drifted
    return AlertActions(confirm=now_drifted, resolve=clean, announce=announce)
