"""The pipeline run that a retraining decision starts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.standard import JobJson, standard_run
from flywheel_trainer.policies.decision import Decision, Drift, Reason, Trigger
from flywheel_trainer.policies.policy import Policy


def decision_and_run(
    policy: Policy, drift: Drift, reason: Reason, job_json: JobJson
) -> tuple[Decision, PipelineRun | None]:
    """The decision to record on a drifting window, and the run to start if there is one."""
    run = triggered_run(policy, drift, job_json) if reason is Reason.STARTED else None
    return _decision(policy, Trigger.DRIFT, drift.alert, drift.window_end, reason, run), run


def timed_decision_and_run(
    policy: Policy, trigger: Trigger, time: datetime, reason: Reason, job_json: JobJson
) -> tuple[Decision, PipelineRun | None]:
    """The decision to record on a time or a window, and the run to start if there is one."""
    run = timed_run(policy, trigger, time, job_json) if reason is Reason.STARTED else None
    return _decision(policy, trigger, "", time, reason, run), run


def triggered_run(policy: Policy, drift: Drift, job_json: JobJson) -> PipelineRun:
    """The run for this drift window.

    Its name follows from the window, so that a window starts at most one run.
    """
    run_id = f"pipe-{window_id(policy, drift)}"
    return _run(policy, run_id, drift.window_end, job_json, cause_alert=drift.alert)


def timed_run(policy: Policy, trigger: Trigger, time: datetime, job_json: JobJson) -> PipelineRun:
    """The run for a time of the schedule or for a window; its name follows from them."""
    if trigger is Trigger.CONTINUOUS and policy.continuous is not None:
        spec = replace(policy.pipeline, warm_start_from_champion=True, min_rows=policy.continuous.min_rows)
        policy = replace(policy, pipeline=spec)
    return _run(policy, f"pipe-{time_id(policy, trigger, time)}", time, job_json)


def window_id(policy: Policy, drift: Drift) -> str:
    """An id that is equal for equal (policy, alert, window end), for names of what a window causes."""
    cause = f"{policy.name.policy}/{drift.alert}/{drift.window_end.isoformat()}"
    return f"alert-{hashlib.sha256(cause.encode()).hexdigest()[:24]}"


def time_id(policy: Policy, trigger: Trigger, time: datetime) -> str:
    """An id that is equal for equal (policy, trigger, time)."""
    cause = f"{policy.name}/{trigger}/{time.isoformat()}"
    return f"{trigger.lower()}-{hashlib.sha256(cause.encode()).hexdigest()[:24]}"


def time_range(policy: Policy, end: datetime) -> tuple[datetime, datetime]:
    """The half-open time range of the spine: the policy's history before its end."""
    return end - policy.history, end


def _run(policy: Policy, run_id: str, event_time: datetime, job_json: JobJson, **fields: str) -> PipelineRun:
    start, end = time_range(policy, event_time)
    times = {"start_time": _text(start), "end_time": _text(end), "known_before": _text(end)}
    spine: dict[str, Any] = {
        **policy.pipeline.spine,
        "source": {**policy.pipeline.spine["source"], **times},
    }
    return standard_run(
        PipelineRunName(policy.name.project, run_id),
        replace(policy.pipeline, spine=spine),
        event_time,
        job_json,
        policy=str(policy.name),
        **fields,
    )


def _decision(
    policy: Policy, trigger: Trigger, alert: str, time: datetime, reason: Reason, run: PipelineRun | None
) -> Decision:
    return Decision(
        policy=policy.name,
        alert=alert,
        model=policy.pipeline.model,
        event_time=time,
        started=run is not None,
        reason=reason,
        pipeline_run=str(run.name) if run is not None else "",
        trigger=trigger,
    )


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
