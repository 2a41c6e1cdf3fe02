"""Ports of retraining policies."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_trainer.policies.decision import Decision, Drift
from flywheel_trainer.policies.policy import Policy, PolicyName


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
