"""Retraining policies, and what they did about each drift event."""

from __future__ import annotations

from datetime import timedelta

from flywheel_common.clock import Clock
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_common.paging import Page
from flywheel_trainer.pipelines.pipeline_run import PipelineSpec, check_pipeline
from flywheel_trainer.policies.decision import Decision
from flywheel_trainer.policies.policy import DATA_QUALITY, KINDS, Policy, PolicyName
from flywheel_trainer.policies.ports import PolicyStore


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
