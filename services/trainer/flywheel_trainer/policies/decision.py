"""Whether a drift event starts a retraining run: trigger kinds, cooldown, daily budget.

A pure function of the policy, the drift, the runs that the policy started, and whether a run is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from flywheel_trainer.jobs.job import ENDED, JobState
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


@dataclass(frozen=True)
class Active:
    """Which runs that a cause would compete with have not ended."""

    own: bool = False
    """A run that the same trigger started, or a rerun of one."""
    of_model: bool = False
    """A run of the model that the cause's run would register."""

    def __bool__(self) -> bool:
        return self.own or self.of_model


@dataclass(frozen=True)
class StartedRun:
    """A run that a trigger started, with its reruns; `event_time` is that of its cause."""

    event_time: datetime
    state: JobState | None
    """None: the run is gone."""
    tracked: bool = False
    """Whether it has a run of a job."""
    active: bool = False
    """Whether it or a rerun has not ended."""

    @property
    def failed(self) -> bool:
        return self.state in (JobState.FAILED, JobState.LOST)

    @property
    def trained(self) -> bool:
        return self.state is JobState.SUCCEEDED and self.tracked

    @property
    def untrained(self) -> bool:
        return self.state is JobState.SUCCEEDED and not self.tracked


def with_reruns(runs: Sequence[StartedRun]) -> StartedRun:
    """The run of a decision, which comes first, and its reruns as one run.

    A rerun that succeeded replaces the failure of its run: the decision has done its work.
    """
    best = max(runs, key=lambda run: (run.trained, run.state is JobState.SUCCEEDED))
    active = any(run.state is not None and run.state not in ENDED for run in runs)
    return replace(best, active=active)


def trained_until(started: Sequence[StartedRun], before: datetime) -> datetime | None:
    """The end of the last window before a time that was trained on; None: there is none."""
    return max((run.event_time for run in started if run.trained and run.event_time < before), default=None)


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
    policy: Policy, trigger: Trigger, due: Due, started: Sequence[StartedRun], active: Active
) -> Reason | None:
    """The decision on a time of the policy's schedule, or on a window; None: it is to be made later.

    A time or window that comes during the trigger's own last run is skipped, except with the rule ALL. One
    that comes during another run of the model waits for its end.

    `started` are the runs that this trigger started. One that ended without training, because there were
    too few new rows, does not count in the budget.
    """
    if policy.disabled:
        return Reason.DISABLED
    if due.missed:
        return Reason.MISFIRED
    if active:
        every = trigger is Trigger.SCHEDULE and policy.schedule and policy.schedule.misfire is Misfire.ALL
        return Reason.RUN_ACTIVE if active.own and not every else None
    continuous = policy.continuous if trigger is Trigger.CONTINUOUS else None
    if continuous is not None:
        counted = [run.event_time for run in started if not (continuous.new_rows and run.untrained)]
        if _on_day(counted, due.time) >= continuous.daily_budget:
            return Reason.BUDGET
    return Reason.DRY_RUN if policy.dry_run else Reason.STARTED


def _on_day(times: Sequence[datetime], day: datetime) -> int:
    return sum(at.date() == day.date() for at in times)
