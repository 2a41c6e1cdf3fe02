"""Whether a drift event starts a training: a pure decision over the policy and what has happened before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from flywheel_trainer.policies.policy import DATA_QUALITY, Policy, PolicyName


class Reason(StrEnum):
    STARTED = "STARTED"
    COOLDOWN = "COOLDOWN"
    BUDGET = "BUDGET"
    DATA_QUALITY = "DATA_QUALITY"
    DISABLED = "DISABLED"
    DRY_RUN = "DRY_RUN"
    RUN_ACTIVE = "RUN_ACTIVE"
    KIND_NOT_LISTED = "KIND_NOT_LISTED"


@dataclass(frozen=True)
class Drift:
    """One drift event; `window_end` is the event time that everything is measured by."""

    alert: str
    model: str
    kind: str
    window_end: datetime
    data_quality_cause: bool = False


def decide(policy: Policy, drift: Drift, started_at: Sequence[datetime], run_active: bool) -> Reason:
    """The first rule that speaks against it, or STARTED (DRY_RUN where it would have been).

    `started_at` holds the event times of the runs that this policy started. Time is event time: cooldown counts
    from a started run in either direction, because events of several windows may arrive out of order; the budget
    counts runs of the same UTC day.
    """
    if policy.disabled:
        return Reason.DISABLED
    if drift.data_quality_cause or drift.kind == DATA_QUALITY:
        return Reason.DATA_QUALITY
    if policy.trigger_kinds and drift.kind not in policy.trigger_kinds:
        return Reason.KIND_NOT_LISTED
    if run_active:
        return Reason.RUN_ACTIVE
    if any(abs(drift.window_end - at) < policy.cooldown for at in started_at):
        return Reason.COOLDOWN
    if sum(at.date() == drift.window_end.date() for at in started_at) >= policy.daily_budget:
        return Reason.BUDGET
    return Reason.DRY_RUN if policy.dry_run else Reason.STARTED


@dataclass(frozen=True)
class Decision:
    """What one policy did about one drifting window of an alert."""

    policy: PolicyName
    alert: str
    model: str
    event_time: datetime
    started: bool
    reason: Reason
    pipeline_run: str = ""
