"""The JSON form of a retraining policy in its row."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from flywheel_trainer.pipelines.pipeline_run import PipelineSpec
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.schedule import Continuous, Misfire, Schedule
from flywheel_trainer.policies.stored_pipeline import StoredPipeline


def policy_to_json(policy: Policy) -> dict[str, Any]:
    return {
        "pipeline": None if policy.pipeline is None else asdict(policy.pipeline),
        "trigger_kinds": list(policy.trigger_kinds),
        "cooldown_seconds": policy.cooldown.total_seconds(),
        "daily_budget": policy.daily_budget,
        "history_seconds": policy.history.total_seconds(),
        "dry_run": policy.dry_run,
        "disabled": policy.disabled,
        "ignore_drift": policy.ignore_drift,
        "schedule": None if policy.schedule is None else _schedule_to_json(policy.schedule),
        "continuous": None if policy.continuous is None else _continuous_to_json(policy.continuous),
        "drift_pipeline": _stored_to_json(policy.drift_pipeline),
    }


def policy_from_json(name: PolicyName, body: dict[str, Any]) -> Policy:
    return Policy(
        name=name,
        pipeline=None if body["pipeline"] is None else PipelineSpec.from_json(body["pipeline"]),
        trigger_kinds=tuple(body["trigger_kinds"]),
        cooldown=timedelta(seconds=body["cooldown_seconds"]),
        daily_budget=body["daily_budget"],
        history=timedelta(seconds=body["history_seconds"]),
        dry_run=body["dry_run"],
        disabled=body["disabled"],
        ignore_drift=body.get("ignore_drift", False),
        schedule=_schedule_from_json(body.get("schedule")),
        continuous=_continuous_from_json(body.get("continuous")),
        drift_pipeline=_stored_from_json(body.get("drift_pipeline")),
    )


def _schedule_to_json(schedule: Schedule) -> dict[str, Any]:
    return {
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "misfire": schedule.misfire,
        "grace_seconds": schedule.grace.total_seconds(),
        "jitter_seconds": schedule.jitter.total_seconds(),
        "pipeline": _stored_to_json(schedule.pipeline),
    }


def _schedule_from_json(body: dict[str, Any] | None) -> Schedule | None:
    if body is None:
        return None
    return Schedule(
        body["cron"],
        body["time_zone"],
        Misfire(body["misfire"]),
        timedelta(seconds=body["grace_seconds"]),
        timedelta(seconds=body["jitter_seconds"]),
        _stored_from_json(body.get("pipeline")),
    )


def _continuous_to_json(continuous: Continuous) -> dict[str, Any]:
    return {
        "window_seconds": continuous.window.total_seconds(),
        "delay_seconds": continuous.delay.total_seconds(),
        "min_rows": continuous.min_rows,
        "daily_budget": continuous.daily_budget,
        "pipeline": _stored_to_json(continuous.pipeline),
        "new_rows": continuous.new_rows,
    }


def _continuous_from_json(body: dict[str, Any] | None) -> Continuous | None:
    if body is None:
        return None
    return Continuous(
        timedelta(seconds=body["window_seconds"]),
        timedelta(seconds=body["delay_seconds"]),
        body["min_rows"],
        body["daily_budget"],
        _stored_from_json(body.get("pipeline")),
        body.get("new_rows", 0),
    )


def _stored_to_json(stored: StoredPipeline | None) -> dict[str, Any] | None:
    return None if stored is None else {"pipeline": stored.pipeline, "params": dict(stored.params)}


def _stored_from_json(body: dict[str, Any] | None) -> StoredPipeline | None:
    return None if body is None else StoredPipeline(body["pipeline"], body["params"])
