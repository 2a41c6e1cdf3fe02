"""The pipeline run that a retraining decision starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_trainer.pipelines.definition import Pipeline
from flywheel_trainer.pipelines.errors import UnknownPipeline
from flywheel_trainer.pipelines.expansion import queued
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, PipelineSpec
from flywheel_trainer.pipelines.standard import JobJson, NewRows, standard_run
from flywheel_trainer.policies.decision import Decision, Drift, Reason, Trigger
from flywheel_trainer.policies.errors import InvalidPolicy
from flywheel_trainer.policies.policy import Policy
from flywheel_trainer.policies.stored_pipeline import StoredPipeline, expand_stored


@dataclass(frozen=True)
class Cause:
    """What a policy decides on: a drifting window of an alert, a time of the schedule, or a window."""

    trigger: Trigger
    time: datetime
    alert: str = ""
    trained_until: datetime | None = None
    """The end of the last window that was trained on."""

    @classmethod
    def of_drift(cls, drift: Drift) -> Cause:
        return cls(Trigger.DRIFT, drift.window_end, drift.alert)


@dataclass(frozen=True)
class Candidate:
    """The run that a decision would start, or why its pipeline is refused."""

    run: PipelineRun | None
    refusal: str = ""

    @property
    def model(self) -> str:
        """The model that the run trains; empty if it trains none."""
        return self.run.model if self.run is not None else ""


def has_trigger(policy: Policy, trigger: Trigger) -> bool:
    """Whether the policy has this trigger; drift can be ignored, which is a decision."""
    if trigger is Trigger.DRIFT:
        return True
    return (policy.schedule if trigger is Trigger.SCHEDULE else policy.continuous) is not None


def stored_pipeline_of(policy: Policy, trigger: Trigger) -> StoredPipeline | None:
    """The stored pipeline of a trigger; None: the standard pipeline."""
    if trigger is Trigger.DRIFT:
        return policy.drift_pipeline
    timed = policy.schedule if trigger is Trigger.SCHEDULE else policy.continuous
    return timed.pipeline if timed is not None else None


def candidate_run(policy: Policy, cause: Cause, definition: Pipeline | None, job_json: JobJson) -> Candidate:
    """The run for a cause; `definition` is the stored pipeline of its trigger, if there is one."""
    try:
        return Candidate(run_for(policy, cause, definition, job_json))
    except FlywheelError as error:
        return Candidate(None, error.message)


def run_for(policy: Policy, cause: Cause, definition: Pipeline | None, job_json: JobJson) -> PipelineRun:
    """The run for a cause. Its name follows from the cause, so that a cause starts at most one run.

    Raises UnknownPipeline, InvalidPipeline, MissingInput, InvalidPolicy for a stored pipeline.
    """
    name = PipelineRunName(policy.name.project, f"pipe-{cause_id(policy, cause)}")
    fields: dict[str, Any] = {"policy": str(policy.name), "cause_alert": cause.alert}
    stored = stored_pipeline_of(policy, cause.trigger)
    if stored is None:
        new_rows = _new_rows(policy, cause)
        return standard_run(name, _standard_spec(policy, cause), cause.time, job_json, new_rows, **fields)
    if definition is None:
        raise UnknownPipeline.of(stored.pipeline)
    graph, values = expand_stored(stored, definition.graph, moment(policy, cause))
    fields |= {"pipeline": str(definition.name), "params": values}
    return queued(PipelineRun(name, cause.time, graph, **fields))


def decided(policy: Policy, cause: Cause, reason: Reason, candidate: Candidate) -> Decision:
    """The decision to record; if it has `started`, the run of the candidate is to be started."""
    refused = candidate.run is None and reason in (Reason.STARTED, Reason.DRY_RUN)
    reason = Reason.PIPELINE_REFUSED if refused else reason
    started = reason is Reason.STARTED
    return Decision(
        policy=policy.name,
        alert=cause.alert,
        model=policy.model,
        event_time=cause.time,
        started=started,
        reason=reason,
        pipeline_run=str(candidate.run.name) if started and candidate.run is not None else "",
        trigger=cause.trigger,
        message=candidate.refusal if refused else "",
    )


def moment(policy: Policy, cause: Cause) -> dict[str, str]:
    """The parameters that tell a stored pipeline of its cause."""
    found = {"history_start": _text(cause.time - policy.history)}
    if cause.trigger is Trigger.SCHEDULE:
        return found | {"scheduled_at": _text(cause.time)}
    found["window_end"] = _text(cause.time)
    if cause.trigger is Trigger.DRIFT:
        return found | {"event": cause.alert}
    if policy.continuous is not None:
        found["window_start"] = _text(cause.time - policy.continuous.window)
        found["trained_until"] = _text(_untrained_since(policy, cause))
    return found


def cause_id(policy: Policy, cause: Cause) -> str:
    """An id that is equal for equal (policy, cause), for names of what the cause starts."""
    if cause.trigger is Trigger.DRIFT:
        text = f"{policy.name.policy}/{cause.alert}/{cause.time.isoformat()}"
        return f"alert-{_digest(text)}"
    return f"{cause.trigger.lower()}-{_digest(f'{policy.name}/{cause.trigger}/{cause.time.isoformat()}')}"


def time_range(policy: Policy, end: datetime) -> tuple[datetime, datetime]:
    """The half-open time range of the spine: the policy's history before its end."""
    return end - policy.history, end


def _untrained_since(policy: Policy, cause: Cause) -> datetime:
    """The start of the rows of the history that no earlier window was trained on."""
    start, _ = time_range(policy, cause.time)
    return max(start, cause.trained_until or start)


def _new_rows(policy: Policy, cause: Cause) -> NewRows | None:
    continuous = policy.continuous
    if cause.trigger is not Trigger.CONTINUOUS or continuous is None or not continuous.new_rows:
        return None
    return NewRows(continuous.new_rows, _text(_untrained_since(policy, cause)))


def _standard_spec(policy: Policy, cause: Cause) -> PipelineSpec:
    spec = policy.pipeline
    if spec is None:
        raise InvalidPolicy("policy.pipeline is missing.", field="policy.pipeline")
    if cause.trigger is Trigger.CONTINUOUS and policy.continuous is not None:
        spec = replace(spec, warm_start_from_champion=True, min_rows=policy.continuous.min_rows)
    start, end = time_range(policy, cause.time)
    times = {"start_time": _text(start), "end_time": _text(end), "known_before": _text(end)}
    return replace(spec, spine={**spec.spine, "source": {**spec.spine["source"], **times}})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
