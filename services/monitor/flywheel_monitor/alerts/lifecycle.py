"""The lifecycle of alerts as a pure state machine: OPEN → (ACKNOWLEDGED →) RESOLVED, at most one unresolved
alert per (model version, kind).

The newest `m_windows` windows with enough rows decide; every verdict but NO_DRIFT counts as drift, also
DATA_QUALITY. An alert opens when the newest window and at least `k_of` of these windows drifted: a single
window opens none if `k_of` is above 1. It is resolved when none of `m_windows` windows drifted.
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
"""Judged when the maximum delay of labels has passed."""
DRIFTED = (Verdict.WARNING, Verdict.DRIFT, Verdict.DATA_QUALITY)
"""Verdicts that support an alert."""
MAJOR = (Verdict.DRIFT, Verdict.DATA_QUALITY)
"""Verdicts that are published as `drift.detected`."""


@dataclass(frozen=True)
class AlertActions:
    """The effects of the verdict on a window: open an alert, confirm the open one (drift goes on), resolve
    it, and publish the drift as `drift.detected` (`announce`: the drift is major)."""

    open: bool = False
    confirm: bool = False
    resolve: bool = False
    announce: bool = False


def alert_actions(unresolved: bool, recent: Sequence[Verdict], policy: MonitorPolicy) -> AlertActions:
    """The effects of the newest verdict of a kind. `unresolved`: whether an unresolved alert of this kind
    exists. `recent`: the verdicts of this kind, newest first, beginning with the window that was just judged;
    windows with too few rows are skipped."""
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
