"""Use cases of retraining policies."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_common.paging import Page
from flywheel_trainer.pipelines.definition import PipelineDefinitions
from flywheel_trainer.pipelines.errors import UnknownPipeline
from flywheel_trainer.policies.decision import Decision, Trigger
from flywheel_trainer.policies.errors import UnknownPolicy
from flywheel_trainer.policies.policy import Policy, PolicyName, check_policy
from flywheel_trainer.policies.ports import PolicyStore
from flywheel_trainer.policies.stored_pipeline import expand_stored
from flywheel_trainer.policies.triggered_run import Cause, moment, stored_pipeline_of


class Policies:
    """Sets and reads policies, and lists their decisions."""

    def __init__(self, store: PolicyStore, definitions: PipelineDefinitions, clock: Clock) -> None:
        self._store, self._definitions, self._clock = store, definitions, clock

    async def set(self, policy: Policy, request_id: str, body: bytes) -> Policy:
        """Replace the policy of this name. Raises InvalidPolicy, InvalidSpec.

        Raises UnknownPipeline, InvalidPipeline or MissingInput for a stored pipeline.
        """
        check_policy(policy)
        for trigger in Trigger:
            await self._check_stored(policy, trigger)
        return await self._store.set(policy, request_id, body, self._clock.now())

    async def get(self, name: PolicyName) -> Policy:
        """Raises UnknownPolicy."""
        policy = await self._store.get(name)
        if policy is None:
            raise UnknownPolicy.of(name)
        return policy

    async def list(self, project: str, size: int, token: str) -> Page[Policy]:
        return await self._store.list(project, size, token)

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        """Raises UnknownPolicy."""
        await self.get(name)
        return await self._store.decisions(name, size, token)

    async def _check_stored(self, policy: Policy, trigger: Trigger) -> None:
        """Refuse a pipeline that would be refused at the first run."""
        stored = stored_pipeline_of(policy, trigger)
        if stored is None:
            return
        definition = await self._definitions.get(*stored.version)
        if definition is None:
            raise UnknownPipeline.of(stored.pipeline)
        expand_stored(stored, definition.graph, moment(policy, Cause(trigger, self._clock.now())))
