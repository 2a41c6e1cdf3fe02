"""`PolicyStore` and `Decisions` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.fakes.pipeline_definitions import MemoryPipelineDefinitions
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.pipelines.pipeline_run import ModelName
from flywheel_trainer.policies.decision import (
    Active,
    Decision,
    Drift,
    Reason,
    StartedRun,
    Trigger,
    decide,
    decide_time,
    trained_until,
    with_reruns,
)
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.ports import TimedPolicy
from flywheel_trainer.policies.schedule import Due
from flywheel_trainer.policies.triggered_run import (
    Candidate,
    Cause,
    candidate_run,
    decided,
    has_trigger,
    stored_pipeline_of,
)


class MemoryPolicies:
    """`PolicyStore` and `Decisions`; started runs are added to `pipelines`."""

    def __init__(self, pipelines: MemoryPipelines, definitions: MemoryPipelineDefinitions) -> None:
        self._pipelines, self._definitions = pipelines, definitions
        self._requests = MemoryRequests()
        self._policies: dict[PolicyName, Policy] = {}
        self._set_at: dict[PolicyName, datetime] = {}
        self._decisions: list[Decision] = []

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy:
        if self._requests.replay("SetRetrainingPolicy", request_id, body) is None:
            if self._policies.get(policy.name) != policy:
                self._set_at[policy.name] = now
            self._policies[policy.name] = policy
            self._requests.store("SetRetrainingPolicy", request_id, body, policy.name)
        return policy

    async def get(self, name: PolicyName) -> Policy | None:
        return self._policies.get(name)

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        (before,) = decode_token(token, query=str(name)) or [len(self._decisions)]
        older = enumerate(self._decisions[: int(str(before))])
        rows = [(at, d) for at, d in older if d.policy == name][::-1]
        page = cut(rows[: size + 1], size, lambda row: (row[0],), query=str(name))
        return Page([d for _, d in page.items], page.next_page_token)

    async def decide(self, drift: Drift, now: datetime) -> Decision | None:
        model = ModelName.parse(drift.model)
        name = PolicyName(model.project, model.model)
        policy = self._policies.get(name)
        if policy is None or self._is_decided(name, Trigger.DRIFT, drift.alert, drift.window_end):
            return None
        started = self._started(name, Trigger.DRIFT)
        runs = [self._run_of(d) for d in started]
        cause = Cause.of_drift(drift)
        candidate = await self._candidate(policy, cause)
        reason = decide(
            policy,
            drift,
            [run.event_time for run in runs if not run.failed],
            bool(self._active(runs, candidate)),
            [run.event_time for run in runs if run.failed],
        )
        return self._store(policy, cause, reason, candidate, now)

    async def decision_of(self, name: PolicyName, pipeline_run: str) -> Decision | None:
        found = (d for d in self._decisions if d.policy == name and d.started)
        return next((d for d in found if d.pipeline_run == pipeline_run), None)

    async def timed(self) -> Sequence[TimedPolicy]:
        found = [p for p in self._policies.values() if (p.schedule or p.continuous) and not p.disabled]
        return [
            TimedPolicy(policy, self._set_at[policy.name], self._newest(policy.name))
            for policy in sorted(found, key=lambda p: (p.name.project, p.name.policy))
        ]

    async def decide_time(
        self, name: PolicyName, trigger: Trigger, due: Due, now: datetime
    ) -> Decision | None:
        policy = self._policies.get(name)
        if policy is None or not has_trigger(policy, trigger):
            return None
        if self._is_decided(name, trigger, "", due.time):
            return None
        started = self._started(name, trigger)
        runs = [self._run_of(d) for d in started]
        cause = Cause(trigger, due.time, trained_until=trained_until(runs, due.time))
        candidate = await self._candidate(policy, cause)
        reason = decide_time(policy, trigger, due, runs, self._active(runs, candidate))
        if reason is None:
            return None
        return self._store(policy, cause, reason, candidate, now)

    async def _candidate(self, policy: Policy, cause: Cause) -> Candidate:
        stored = stored_pipeline_of(policy, cause.trigger)
        definition = await self._definitions.get(*stored.version) if stored is not None else None
        return candidate_run(policy, cause, definition, spec_to_json)

    def _active(self, started: Sequence[StartedRun], candidate: Candidate) -> Active:
        of_model = bool(candidate.model) and self._pipelines.has_active_run(candidate.model)
        return Active(any(run.active for run in started), of_model)

    def _is_decided(self, name: PolicyName, trigger: Trigger, alert: str, time: datetime) -> bool:
        key = (name, trigger, alert, time)
        return any((d.policy, d.trigger, d.alert, d.event_time) == key for d in self._decisions)

    def _started(self, name: PolicyName, trigger: Trigger) -> list[Decision]:
        return [d for d in self._decisions if (d.policy, d.trigger) == (name, trigger) and d.started]

    def _run_of(self, decision: Decision) -> StartedRun:
        first = self._pipelines.find_run(decision.pipeline_run)
        runs = [first, *self._pipelines.reruns_of(decision.pipeline_run)]
        found = [(run.state, bool(run.run)) if run else (None, False) for run in runs]
        return with_reruns([StartedRun(decision.event_time, *one) for one in found])

    def _newest(self, name: PolicyName) -> dict[Trigger, datetime]:
        found: dict[Trigger, datetime] = {}
        for d in self._decisions:
            if d.policy == name and d.trigger is not Trigger.DRIFT:
                found[d.trigger] = max(d.event_time, found.get(d.trigger, d.event_time))
        return found

    def _store(
        self, policy: Policy, cause: Cause, reason: Reason, candidate: Candidate, now: datetime
    ) -> Decision:
        decision = decided(policy, cause, reason, candidate)
        if decision.started and candidate.run is not None:
            self._pipelines.add(candidate.run, now)
        self._decisions.append(decision)
        return decision

    async def list(self, project: str, size: int, token: str) -> Page[Policy]:
        (after,) = decode_token(token, query=project) or [""]
        found = [p for n, p in self._policies.items() if n.project == project and n.policy > str(after)]
        rows = sorted(found, key=lambda p: p.name.policy)
        return cut(rows[: size + 1], size, lambda p: (p.name.policy,), query=project)
