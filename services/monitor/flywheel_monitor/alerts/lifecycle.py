"""The lifecycle of alerts as a pure state machine: OPEN → (ACKNOWLEDGED →) RESOLVED, at most one unresolved
alert per (model version, kind).

The newest `m_windows` windows with enough rows decide, for each subject by itself: a feature, or for kinds
that concern no feature the version as a whole. A subject lasts if it drifted in the newest window and in at
least `k_of` of these windows: with features that drift by turns, once each, none does. Drift that lasts opens
an alert. What an alert has shown confirms it with a single window more, and it is resolved when none of
`m_windows` windows has any of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
OF_FEATURES = {
    Kind.DATA_DRIFT: (Verdict.DRIFT, Verdict.WARNING),
    Kind.DATA_QUALITY: (Verdict.DATA_QUALITY,),
}
"""The kinds whose subjects are features, with the verdicts on a feature that are drift of the kind."""
MAJOR = (Verdict.DRIFT, Verdict.DATA_QUALITY)
"""Verdicts that are published as `drift.detected`."""


WHOLE = ""
"""The subject of kinds that concern no feature."""
Drifted = Mapping[str, Verdict]
"""Subject → verdict of what drifted in one window, without NO_DRIFT and INSUFFICIENT."""


@dataclass(frozen=True)
class AlertActions:
    """The effects of the verdict on a window: open an alert, confirm the open one (drift goes on), resolve
    it, and publish the drift as `drift.detected` (`announce`: the drift is major). `subjects` are those that
    open or confirm it."""

    open: bool = False
    confirm: bool = False
    resolve: bool = False
    announce: bool = False
    subjects: frozenset[str] = frozenset()


def alert_actions(
    shown: Collection[str] | None, recent: Sequence[Drifted], policy: MonitorPolicy
) -> AlertActions:
    """The effects of the newest verdict of a kind. `shown`: the subjects of the unresolved alert of the kind,
    None without one. `recent`: what drifted in the windows with enough rows, newest first, beginning with the
    window that was just judged."""
    if not recent:
        return AlertActions()
    judged = recent[: policy.m_windows]
    subjects = lasting(judged, DRIFTED, policy.k_of)
    announce = bool(lasting(judged, MAJOR, policy.k_of))
    if shown is None:
        return AlertActions(open=bool(subjects), announce=announce, subjects=subjects)
    subjects |= judged[0].keys() & set(shown)
    gone = len(judged) == policy.m_windows and not any(d.keys() & set(shown) for d in judged)
    return AlertActions(
        confirm=bool(subjects), resolve=gone and not subjects, announce=announce, subjects=subjects
    )


def lasting(judged: Sequence[Drifted], verdicts: Collection[Verdict], least: int) -> frozenset[str]:
    """The subjects with one of these verdicts in the first and in at least `least` of these windows."""
    return frozenset(
        subject
        for subject, verdict in judged[0].items()
        if verdict in verdicts and sum(d.get(subject) in verdicts for d in judged) >= least
    )
