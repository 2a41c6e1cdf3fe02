"""Use cases of retraining policies."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_common.paging import Page
from flywheel_trainer.policies.decision import Decision
from flywheel_trainer.policies.errors import UnknownPolicy
from flywheel_trainer.policies.policy import Policy, PolicyName, check_policy
from flywheel_trainer.policies.ports import PolicyStore


class Policies:
    """Sets and reads policies, and lists their decisions."""

    def __init__(self, store: PolicyStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def set(self, policy: Policy, request_id: str, body: bytes) -> Policy:
        """Replace the policy of this name. Raises InvalidPolicy, InvalidSpec."""
        check_policy(policy)
        return await self._store.set(policy, request_id, body, self._clock.now())

    async def get(self, name: PolicyName) -> Policy:
        """Raises UnknownPolicy."""
        policy = await self._store.get(name)
        if policy is None:
            raise UnknownPolicy.of(name)
        return policy

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        """Raises UnknownPolicy."""
        await self.get(name)
        return await self._store.decisions(name, size, token)
