"""Whether a drift event starts a retraining run: trigger kinds, cooldown, daily budget.

A pure function of the policy, the drift, the runs that the policy started, and whether a run is active.
"""

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
    """One drifting window of an alert; `window_end` is the event time that cooldown and budget use."""

    alert: str
    model: str
    kind: str
    window_end: datetime
    data_quality_cause: bool = False


@dataclass(frozen=True)
class Decision:
    """The decision of one policy on one drifting window of an alert."""

    policy: PolicyName
    alert: str
    model: str
    event_time: datetime
    started: bool
    reason: Reason
    pipeline_run: str = ""


def decide(policy: Policy, drift: Drift, started_at: Sequence[datetime], run_active: bool) -> Reason:
    """The first rule that forbids a run. If none does: DRY_RUN for a dry-run policy, else STARTED.

    `started_at` are the event times of the runs that this policy started; `run_active`: the model has a
    pipeline run that has not ended. All times are event times in UTC. The cooldown applies before and after
    each started run, because events of several windows can arrive out of order. The budget limits the runs
    per UTC day of `window_end`.
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
