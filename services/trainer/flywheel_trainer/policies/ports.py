"""The stores of retraining policies and decisions."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_trainer.policies.decision import Decision, Drift
from flywheel_trainer.policies.policy import Policy, PolicyName


class PolicyStore(Protocol):
    """Stores policies and lists their decisions.

    - `set` replaces the policy of this name. It is idempotent by request_id: a repeated request returns its
      policy and changes nothing, even if another policy was set since. Raises RequestIdReused for another
      body.
    - `decisions` returns the newest first.
    """

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy: ...

    async def get(self, name: PolicyName) -> Policy | None: ...

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]: ...


class Decisions(Protocol):
    """Makes the decisions on drift.

    `decide` records the decision on a drifting window (`policies.decision.decide`) and the run that it
    starts, both in one transaction. It returns None and changes nothing if the model has no policy or the
    window was decided before. Decisions of one policy are serialized, so that each sees the runs that earlier
    ones started.
    """

    async def decide(self, drift: Drift, now: datetime) -> Decision | None: ...
