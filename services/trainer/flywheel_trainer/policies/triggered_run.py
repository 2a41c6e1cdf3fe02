"""The pipeline run that a retraining decision starts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, PipelineSpec
from flywheel_trainer.policies.decision import Decision, Drift, Reason
from flywheel_trainer.policies.policy import Policy, PolicyName


def made(policy: Policy, drift: Drift, reason: Reason) -> tuple[Decision, PipelineRun | None]:
    """The decision, and the run if it starts one."""
    run = triggered_run(policy, drift) if reason is Reason.STARTED else None
    decision = Decision(
        policy=PolicyName(policy.project, policy.id),
        alert=drift.alert,
        model=drift.model,
        event_time=drift.window_end,
        started=run is not None,
        reason=reason,
        pipeline_run=str(run.name) if run is not None else "",
    )
    return decision, run


def triggered_run(policy: Policy, drift: Drift) -> PipelineRun:
    """The run that a decision starts. Its id is made of the alert's name and the window's end: a window starts at most one,
    and an alert that goes on drifting may start another when the cooldown is over."""
    cause = f"{policy.id}/{drift.alert}/{drift.window_end.isoformat()}"
    digest = hashlib.sha256(cause.encode()).hexdigest()[:24]
    start, end = time_range(policy, drift)
    spec = PipelineSpec.from_row(policy.pipeline)
    spine: dict[str, Any] = {
        **spec.spine,
        "source": _narrowed(spec.spine["source"], start, end),
    }
    return PipelineRun(
        name=PipelineRunName(policy.project, f"pipe-alert-{digest}"),
        spec=replace(spec, spine=spine),
        event_time=drift.window_end,
        cause_alert=drift.alert,
    )


def _narrowed(source: Mapping[str, Any], start: datetime, end: datetime) -> dict[str, Any]:
    return {**source, "start_time": _text(start), "end_time": _text(end), "known_before": _text(end)}


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def time_range(policy: Policy, drift: Drift) -> tuple[datetime, datetime]:
    """The half-open range of the spine: the history before the window's end."""
    return drift.window_end - policy.history, drift.window_end
