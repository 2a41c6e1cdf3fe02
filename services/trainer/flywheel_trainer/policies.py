"""Retraining policies, and what they did about each drift event."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from flywheel_common.clock import Clock
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_common.paging import Page
from flywheel_trainer.names import PipelineRunName, PolicyName
from flywheel_trainer.pipelines import PipelineRun, PipelineSpec, check_pipeline
from flywheel_trainer.retraining import DATA_QUALITY, KINDS, Drift, Policy, Reason, time_range


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


class PolicyStore(Protocol):
    """Keeps policies, and shows what they did. `set` replaces: the newest wins. It is idempotent by request_id: a repeat answers the
    policy and changes nothing, also when another was set since; InvalidArgument REQUEST_ID_REUSED for another body. `decisions`
    come newest first."""

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy: ...

    async def get(self, name: PolicyName) -> Policy | None: ...

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]: ...


class Decisions(Protocol):
    """What policies do about drift. `decide` makes the decision on one window of an alert, as `retraining.decide` has it, and the run that
    it starts: both, or none, in one transaction. It answers None, and does nothing, when the model has no policy or the window
    was decided before. Decisions of a policy are made one after another, so that each sees what those before it started."""

    async def decide(self, drift: Drift, now: datetime) -> Decision | None: ...


class Policies:
    """Use cases of policies."""

    def __init__(self, store: PolicyStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def set(self, policy: Policy, request_id: str, body: bytes) -> Policy:
        """Raises InvalidArgument INVALID_POLICY."""
        spec = PipelineSpec.from_row(policy.pipeline)
        check_pipeline(spec, policy.project)
        model = spec.model.rsplit("/", 1)[-1]
        problems = [
            (model != policy.id, "name", f"ends with the model's id, {model!r}"),
            (policy.cooldown < timedelta(0), "cooldown", "is not negative"),
            (policy.history <= timedelta(0), "history", "is above zero"),
            (policy.daily_budget < 1, "daily_budget", "is at least 1"),
            (
                DATA_QUALITY in policy.trigger_kinds,
                "trigger_kinds",
                "cannot hold DATA_QUALITY: bad data is no reason to train",
            ),
            (not set(policy.trigger_kinds) <= set(KINDS), "trigger_kinds", f"holds only {', '.join(KINDS)}"),
            (
                "source" not in spec.spine,
                "pipeline.spine",
                "is a source spine: its time range is set by the policy",
            ),
        ]
        for wrong, field, rule in problems:
            if wrong:
                raise InvalidArgument(
                    f"policy.{field} {rule}.", reason="INVALID_POLICY", field=f"policy.{field}"
                )
        return await self._store.set(policy, request_id, body, self._clock.now())

    async def get(self, name: PolicyName) -> Policy:
        """Raises NotFound UNKNOWN_POLICY."""
        policy = await self._store.get(name)
        if policy is None:
            raise NotFound(
                f"There is no policy {str(name)!r}: set one first.", reason="UNKNOWN_POLICY", policy=name
            )
        return policy

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        await self.get(name)
        return await self._store.decisions(name, size, token)


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
