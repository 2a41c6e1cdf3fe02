"""The pipeline run that a retraining decision starts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.standard import JobJson, standard_run
from flywheel_trainer.policies.decision import Decision, Drift, Reason
from flywheel_trainer.policies.policy import Policy


def decision_and_run(
    policy: Policy, drift: Drift, reason: Reason, job_json: JobJson
) -> tuple[Decision, PipelineRun | None]:
    """The decision to record, and the run to start if there is one."""
    run = triggered_run(policy, drift, job_json) if reason is Reason.STARTED else None
    decision = Decision(
        policy=policy.name,
        alert=drift.alert,
        model=drift.model,
        event_time=drift.window_end,
        started=run is not None,
        reason=reason,
        pipeline_run=str(run.name) if run is not None else "",
    )
    return decision, run


def triggered_run(policy: Policy, drift: Drift, job_json: JobJson) -> PipelineRun:
    """The run for this drift window.

    Its name follows from the window, so that a window starts at most one run.
    """
    start, end = time_range(policy, drift)
    times = {"start_time": _text(start), "end_time": _text(end), "known_before": _text(end)}
    spine: dict[str, Any] = {
        **policy.pipeline.spine,
        "source": {**policy.pipeline.spine["source"], **times},
    }
    return standard_run(
        PipelineRunName(policy.name.project, f"pipe-{window_id(policy, drift)}"),
        replace(policy.pipeline, spine=spine),
        drift.window_end,
        job_json,
        cause_alert=drift.alert,
        policy=str(policy.name),
    )


def window_id(policy: Policy, drift: Drift) -> str:
    """An id that is equal for equal (policy, alert, window end), for names of what a window causes."""
    cause = f"{policy.name.policy}/{drift.alert}/{drift.window_end.isoformat()}"
    return f"alert-{hashlib.sha256(cause.encode()).hexdigest()[:24]}"


def time_range(policy: Policy, drift: Drift) -> tuple[datetime, datetime]:
    """The half-open time range of the spine: the policy's history before the end of the window."""
    return drift.window_end - policy.history, drift.window_end


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
