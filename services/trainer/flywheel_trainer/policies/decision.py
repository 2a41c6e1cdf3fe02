"""Whether a drift event starts a retraining run: trigger kinds, cooldown, daily budget.

A pure function of the policy, the drift, the runs that the policy started, and whether a run is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from flywheel_trainer.policies.policy import DATA_QUALITY, Policy, PolicyName
from flywheel_trainer.policies.schedule import Due, Misfire


class Reason(StrEnum):
    STARTED = "STARTED"
    COOLDOWN = "COOLDOWN"
    BUDGET = "BUDGET"
    DATA_QUALITY = "DATA_QUALITY"
    DISABLED = "DISABLED"
    DRY_RUN = "DRY_RUN"
    RUN_ACTIVE = "RUN_ACTIVE"
    KIND_NOT_LISTED = "KIND_NOT_LISTED"
    MISFIRED = "MISFIRED"
    PIPELINE_REFUSED = "PIPELINE_REFUSED"


class Trigger(StrEnum):
    """What a policy decides on."""

    DRIFT = "DRIFT"
    SCHEDULE = "SCHEDULE"
    CONTINUOUS = "CONTINUOUS"


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
    """The decision of one policy on one drifting window of an alert, or on one time of its schedule."""

    policy: PolicyName
    alert: str
    model: str
    event_time: datetime
    started: bool
    reason: Reason
    pipeline_run: str = ""
    trigger: Trigger = Trigger.DRIFT
    message: str = ""
    """Why the stored pipeline was refused, for PIPELINE_REFUSED."""


def decide(
    policy: Policy,
    drift: Drift,
    started_at: Sequence[datetime],
    run_active: bool,
    failed_at: Sequence[datetime] = (),
) -> Reason:
    """The first rule that forbids a run. If none does: DRY_RUN for a dry-run policy, else STARTED.

    `started_at` are the event times of the runs that drift started and that have not failed, `failed_at`
    those of the failed ones; `run_active`: a run of the model or of this trigger has not ended. All times are
    event times in UTC. The cooldown applies before and after each run that has not failed, because events
    of several windows can arrive out of order. The budget limits all runs per UTC day of `window_end`.
    """
    if policy.disabled or policy.ignore_drift:
        return Reason.DISABLED
    if drift.data_quality_cause or drift.kind == DATA_QUALITY:
        return Reason.DATA_QUALITY
    if policy.trigger_kinds and drift.kind not in policy.trigger_kinds:
        return Reason.KIND_NOT_LISTED
    if run_active:
        return Reason.RUN_ACTIVE
    if any(abs(drift.window_end - at) < policy.cooldown for at in started_at):
        return Reason.COOLDOWN
    if _on_day((*started_at, *failed_at), drift.window_end) >= policy.daily_budget:
        return Reason.BUDGET
    return Reason.DRY_RUN if policy.dry_run else Reason.STARTED


def decide_time(
    policy: Policy, trigger: Trigger, due: Due, started_at: Sequence[datetime], run_active: bool
) -> Reason | None:
    """The decision on a time of the policy's schedule, or on a window; None: it is to be made later.

    `started_at` are the event times of the runs that this trigger started.
    """
    if policy.disabled:
        return Reason.DISABLED
    if due.missed:
        return Reason.MISFIRED
    if run_active:
        waits = trigger is Trigger.SCHEDULE and policy.schedule and policy.schedule.misfire is Misfire.ALL
        return None if waits else Reason.RUN_ACTIVE
    continuous = policy.continuous if trigger is Trigger.CONTINUOUS else None
    if continuous is not None and _on_day(started_at, due.time) >= continuous.daily_budget:
        return Reason.BUDGET
    return Reason.DRY_RUN if policy.dry_run else Reason.STARTED


def _on_day(times: Sequence[datetime], day: datetime) -> int:
    return sum(at.date() == day.date() for at in times)
