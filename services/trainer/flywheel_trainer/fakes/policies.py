"""`PolicyStore` and `Decisions` in memory."""

from __future__ import annotations

from datetime import datetime

from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.pipelines.pipeline_run import ModelName
from flywheel_trainer.policies.decision import Decision, Drift, decide
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.triggered_run import decision_and_run


class MemoryPolicies:
    """`PolicyStore` and `Decisions`; started runs are added to `pipelines`."""

    def __init__(self, pipelines: MemoryPipelines) -> None:
        self._pipelines = pipelines
        self._requests = MemoryRequests()
        self._policies: dict[PolicyName, Policy] = {}
        self._decisions: list[Decision] = []

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy:
        if self._requests.replay("SetRetrainingPolicy", request_id, body) is None:
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
        earlier = [d for d in self._decisions if d.policy == name]
        window = (drift.alert, drift.window_end)
        if policy is None or any((d.alert, d.event_time) == window for d in earlier):
            return None
        started = [d.event_time for d in earlier if d.started]
        reason = decide(policy, drift, started, self._pipelines.has_active_run(drift.model))
        decision, run = decision_and_run(policy, drift, reason, spec_to_json)
        if run is not None:
            self._pipelines.add(run, now)
        self._decisions.append(decision)
        return decision
